//! The contract between the simulation's model of JetStream and JetStream: scripts that both must follow.
//!
//! Here the model follows them, in virtual time; `tests/integration/contract.rs` plays the same scripts against a real
//! nats-server. And here models with a planted bug fail them, so that the scripts are known to notice. This is not a
//! test of the scheduler, which meets the model in `tests/sim`.

#[allow(dead_code, reason = "the simulation uses the rest")]
#[path = "../sim/broker.rs"]
mod broker;
mod bugs;
mod model;
mod script;
mod scripts;

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bugs::{BUGS, Bug};
use model::{Memory, Modelled};
use script::{Failure, Script, play};
use scripts::SCRIPTS;

/// What the broker knows of requests.
mod clients {
    /// A request as it lies in the stream.
    #[derive(Clone, Debug)]
    pub(crate) struct Body {
        pub(crate) lane: usize,
    }
}

/// Every way in which a killed server may remember.
fn memories(script: &Script) -> &'static [Memory] {
    if script.kills() { Memory::ALL } else { &[Memory::Whole] }
}

fn played(script: &Script, memory: Memory, bug: Option<Bug>) -> Result<(), Failure> {
    let mut queue = Modelled::new(script, memory, bug);
    let mut playing = pin!(play(script, &mut queue));
    match playing.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(verdict) => verdict,
        Poll::Pending => panic!("virtual time waits for nothing"),
    }
}

#[test]
fn the_model_follows_every_script() {
    for script in SCRIPTS {
        for memory in memories(script) {
            assert_eq!(played(script, *memory, None), Ok(()), "{} ({memory:?})", script.claim);
        }
    }
}

#[test]
fn every_planted_bug_is_found_by_its_script() {
    for (bug, claim) in BUGS {
        let script = SCRIPTS.iter().find(|script| script.claim == *claim).expect("a script with this claim");
        let verdicts: Vec<_> = memories(script).iter().map(|memory| played(script, *memory, Some(*bug))).collect();
        let found = verdicts.iter().any(|verdict| matches!(verdict, Err(Failure::Broken(_))));
        assert!(found, "{bug:?} passes for {claim}: {verdicts:?}");
    }
}

#[test]
fn every_script_finds_a_bug() {
    for script in SCRIPTS {
        let finds = |(bug, _): &&(Bug, &str)| {
            memories(script).iter().any(|memory| matches!(played(script, *memory, Some(*bug)), Err(Failure::Broken(_))))
        };
        assert!(BUGS.iter().any(|bug| finds(&bug)), "{} finds none", script.claim);
    }
}

#[test]
fn claims_are_told_apart() {
    let claims: std::collections::BTreeSet<&str> = SCRIPTS.iter().map(|script| script.claim).collect();
    assert_eq!(claims.len(), SCRIPTS.len());
}

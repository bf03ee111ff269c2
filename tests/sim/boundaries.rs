//! Trouble at every boundary: whatever a worker was about to do or had just done, the job ends as it should.

use std::time::Duration;

use darkroom::job::{Fault, FaultCode, Status};
use darkroom::sched::{
    Acted, Action, BatchKey, Claim, Effect, Input, Mono, Offer, Scheduler, TenantKey, Ticket, Transition,
};

use crate::clients::{Body, Deed, Poison};
use crate::knobs::{Chaos, Kind, Knobs, Rates, Trap, Trouble};
use crate::random::Random;
use crate::world::World;

/// A job, the actions on its way, and its end.
struct Way {
    name: &'static str,
    poison: Poison,
    malformed: bool,
    published: u32,
    kinds: &'static [Kind],
    end: Status,
}

const WAYS: &[Way] = &[
    Way {
        name: "a good request",
        poison: Poison::None,
        malformed: false,
        published: 1,
        kinds: &[Kind::Claim, Kind::Store, Kind::Complete, Kind::Publish, Kind::Ack],
        end: Status::Completed,
    },
    Way {
        name: "a good request, published twice",
        poison: Poison::None,
        malformed: false,
        published: 2,
        kinds: &[Kind::Claim, Kind::Store, Kind::Complete, Kind::Publish, Kind::Ack],
        end: Status::Completed,
    },
    Way {
        name: "a request that the engine rejects",
        poison: Poison::Reject,
        malformed: false,
        published: 1,
        kinds: &[Kind::Claim, Kind::Fail, Kind::Publish, Kind::DeadLetter, Kind::Term],
        end: Status::Failed,
    },
    Way {
        name: "a request that never works",
        poison: Poison::Retry,
        malformed: false,
        published: 1,
        kinds: &[Kind::Claim, Kind::Retry, Kind::Nak, Kind::Fail, Kind::Publish, Kind::DeadLetter, Kind::Term],
        end: Status::Failed,
    },
    Way {
        name: "a request that takes the engine down",
        poison: Poison::Fatal,
        malformed: false,
        published: 1,
        kinds: &[Kind::Claim, Kind::Retry, Kind::Nak, Kind::Fail, Kind::Publish, Kind::DeadLetter, Kind::Term],
        end: Status::Failed,
    },
    Way {
        name: "a malformed request",
        poison: Poison::None,
        malformed: true,
        published: 1,
        kinds: &[Kind::Refuse, Kind::Publish, Kind::DeadLetter, Kind::Term],
        end: Status::Failed,
    },
];

fn world(way: &Way, trap: Option<Trap>) -> World {
    let mut body = Body::plain(1, way.poison);
    if way.malformed {
        body.offer = None;
    }
    let deeds = (0..way.published)
        .map(|nth| (Mono::from_micros(1_000_000 + 2_000 * u64::from(nth)), Deed::Publish(body.clone())))
        .collect();
    World::new(Knobs { trap, ..Knobs::quiet() }, Random::new(1), deeds, true)
}

#[track_caller]
fn check(way: &Way, trap: Option<Trap>) {
    let mut world = world(way, trap);
    let verdict = crate::judge(&mut world);
    let ends = world.records.events.get(&1).cloned().unwrap_or_default();
    if verdict.is_err() || ends != [way.end] || trap.is_some() != world.oracle.met.contains_key("trap") {
        let trace = world.trace.unwrap_or_default().join("\n");
        panic!("{trace}\n{} with {trap:?}: {verdict:?}, ends as {ends:?}, met {:?}", way.name, world.oracle.met);
    }
}

#[test]
fn without_trouble_every_request_takes_its_way() {
    for way in WAYS {
        check(way, None);
    }
}

#[test]
fn trouble_at_any_boundary_changes_no_outcome() {
    for way in WAYS {
        for kind in way.kinds.iter().copied() {
            for trouble in Trouble::ALL.iter().copied() {
                check(way, Some(Trap { kind, trouble }));
            }
        }
    }
}

#[test]
fn a_job_that_takes_engines_down_fails_alone() {
    let mut deeds = Vec::new();
    for job in 1..=4 {
        let poison = if job == 2 { Poison::Fatal } else { Poison::None };
        deeds.push((Mono::from_micros(1_000_000 + u64::from(job)), Deed::Publish(Body::plain(job, poison))));
    }
    let mut world = World::new(Knobs { workers: 1, ..Knobs::quiet() }, Random::new(1), deeds, false);
    assert_eq!(crate::judge(&mut world), Ok(()));
    for job in 1..=4 {
        let end = if job == 2 { Status::Failed } else { Status::Completed };
        assert_eq!(world.records.events[&job], [end], "job {job}");
    }
}

/// A worker that dies is held against all of its jobs, not only the one that killed it.
#[test]
fn a_job_that_the_next_dead_worker_ends_is_claimed_with_no_other() {
    let now = Mono::from_micros(1_000_000);
    let mut scheduler = Scheduler::new(Knobs::quiet().config, now);
    let key = BatchKey { width: 64, height: 64 };
    let offer = Offer { images: 1, key, previews: None, steps: 4, tenant: TenantKey(0), deadline: None };
    let mut tell = |input| {
        scheduler.handle(now, input);
        let effects = std::iter::from_fn(|| scheduler.poll_effect());
        let acts = effects.filter_map(|effect| {
            if let Effect::Act { ticket, action } = effect { Some((ticket.0, action)) } else { None }
        });
        acts.collect::<Vec<_>>()
    };
    let come = |ticket| Input::Delivered {
        ticket: Ticket(ticket),
        lane: 0,
        offer: Some(offer.clone()),
        pending: 0,
        deliveries: 3,
    };
    let acted = |ticket, outcome| Input::Acted { ticket: Ticket(ticket), outcome };
    let suspected = || Acted::Claimed(Claim::Won { failures: 0, deaths: 2 });

    assert_eq!(tell(come(1)), [(1, Action::Claim)]);
    assert_eq!(tell(come(2)), [(2, Action::Claim)]);
    assert_eq!(tell(acted(1, suspected())), []);
    assert_eq!(tell(acted(2, suspected())), [(2, Action::Record(Transition::GiveBack))], "they were claimed together");
    assert_eq!(tell(come(3)), [], "and nothing more is");
    let mut todo = tell(Input::Engine(Err(Fault::reject(FaultCode::NotFinite, "NaN"))));
    let mut done = Vec::new();
    while let Some((ticket, action)) = todo.pop() {
        done.push((ticket, action.clone()));
        if action != Action::Claim {
            todo.extend(tell(acted(ticket, Acted::Done)));
        }
    }
    assert_eq!(done.last(), Some(&(3, Action::Claim)), "until it has ended: {done:?}");
}

#[test]
fn preemptions_are_no_failures() {
    // The job takes longer than the grace.
    let key = BatchKey { width: 64, height: 64 };
    let offer = Some(Offer { images: 4, key, previews: None, steps: 100, tenant: TenantKey(0), deadline: None });
    let body = Body { steps: 100, poison_at: 100, offer, ..Body::plain(1, Poison::None) };
    let deeds = vec![(Mono::from_micros(1_000_000), Deed::Publish(body))];
    let chaos = Chaos { drains: 30, ..Chaos::default() };
    let mut knobs = Knobs { workers: 1, chaos, calm_after: Duration::from_secs(100), ..Knobs::quiet() };
    knobs.config.grace = Duration::from_secs(4);
    let mut world = World::new(knobs, Random::new(1), deeds, false);
    assert_eq!(crate::judge(&mut world), Ok(()));
    assert_eq!(world.records.events[&1], [Status::Completed]);
    assert!(world.oracle.met["record: given back"] > 5, "{:?}", world.oracle.met);
}

#[test]
fn a_job_is_not_kept_for_a_store_that_is_down() {
    let deeds = vec![(Mono::from_micros(1_000_000), Deed::Publish(Body::plain(1, Poison::None)))];
    let rates = Rates { store_retry: 1000, ..Rates::default() };
    let mut world = World::new(Knobs { rates, ..Knobs::quiet() }, Random::new(1), deeds, false);
    assert_eq!(crate::judge(&mut world), Ok(()));
    assert_eq!(world.records.events[&1], [Status::Failed]);
}

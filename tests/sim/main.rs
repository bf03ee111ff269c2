//! A deterministic simulation of the scheduler: a seed is a world of workers, clients, a server and a store in which
//! everything goes wrong that may go wrong, and an oracle that knows what must hold nevertheless.
//!
//! `SIM_SEED=7 cargo test --no-default-features --test sim seeds -- --nocapture` prints the trace of one run;
//! `SIM_SEEDS` is the number of runs.

mod boundaries;
mod broker;
mod chaos;
mod clients;
mod knobs;
mod oracle;
mod parts;
mod random;
mod records;
mod regressions;
mod shell;
mod watch;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use knobs::{Bug, Knobs};
use random::Random;
use world::World;

const SEEDS: u64 = 1000;
/// More say nothing new.
const FOUND_MAX: usize = 20;
/// Runs in which one of these never happens prove less than they seem to.
const MUST_BE_MET: &[&str] = &[
    "claim: conflict",
    "claim: duplicate",
    "claim: ended",
    "claim: failed",
    "claim: held elsewhere",
    "claim: unprepared",
    "claim: won",
    "checkpoint",
    "engine: hangs",
    "exit: drained",
    "exit: fatal",
    "exit: idle",
    "given back unclaimed",
    "job: cancelled",
    "job: completed",
    "job: failed",
    "record: cancelled by its holder",
    "record: given back",
    "record: lost",
    "record: too late",
    "record: workers lost",
    "redelivered to its holder",
    "resumed",
    "stopped",
    "worker: killed",
];

/// A run, its verdict and its trace.
fn run(seed: u64, traced: bool) -> (World, Result<(), String>) {
    let mut random = Random::new(seed);
    let knobs = Knobs::from_seed(&mut random);
    let mut world = World::new(knobs, random, Vec::new(), traced);
    let verdict = judge(&mut world);
    (world, verdict)
}

fn judge(world: &mut World) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| world.run()))
        .unwrap_or_else(|_| Err("the scheduler panicked, see above".to_owned()))
}

/// What to tell of seeds that found something.
fn told(seed: u64, verdict: Result<(), String>) -> Option<String> {
    let command = "cargo test --no-default-features --test sim seeds -- --nocapture";
    verdict.err().map(|violation| format!("seed {seed}: {violation}\n  to see it: SIM_SEED={seed} {command}\n"))
}

#[test]
fn every_property_holds_for_all_seeds() {
    if let Some(seed) = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        let (world, verdict) = run(seed, true);
        println!("{:#?}", world.knobs);
        println!("{}", world.trace.unwrap_or_default().join("\n"));
        return assert_eq!(verdict, Ok(()));
    }
    let seeds = std::env::var("SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    let mut met: BTreeMap<&str, u64> = BTreeMap::new();
    let mut found = Vec::new();
    for seed in 0..seeds {
        let (world, verdict) = run(seed, false);
        found.extend(told(seed, verdict));
        if found.len() >= FOUND_MAX {
            break;
        }
        for (what, times) in world.oracle.met {
            *met.entry(what).or_default() += times;
        }
    }
    println!("{met:#?}");
    assert!(found.is_empty(), "{}", found.concat());
    if seeds >= SEEDS {
        let missing: Vec<_> = MUST_BE_MET.iter().filter(|what| !met.contains_key(**what)).collect();
        assert!(missing.is_empty(), "never met: {missing:?}");
    }
}

#[test]
fn every_bug_that_is_built_in_is_found() {
    let found = |bug, words: &str| {
        (0..200).any(|seed| {
            let mut random = Random::new(seed);
            let knobs = Knobs { bug: Some(bug), ..Knobs::from_seed(&mut random) };
            judge(&mut World::new(knobs, random, Vec::new(), false)).is_err_and(|violation| violation.contains(words))
        })
    };
    for (bug, words) in [
        (Bug::LostSettle, "no end"),
        (Bug::RowOverLimit, "too many rows"),
        (Bug::LateLease, "does not extend the lease"),
        (Bug::StarvedShape, "passed over for too long"),
        (Bug::LeakedRow, "rows in the engine"),
    ] {
        assert!(found(bug, words), "{bug:?} is not told as {words:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let trace = |seed| run(seed, true).0.trace.unwrap_or_default();
    for seed in 0..20 {
        let first = trace(seed);
        assert!(!first.is_empty());
        assert!(first == trace(seed), "seed {seed} has two traces");
        assert!(first != trace(seed + 1), "seeds {seed} and {} have one trace", seed + 1);
    }
}

#[test]
fn seeds_that_found_a_bug_find_none_any_more() {
    let found: Vec<String> =
        regressions::FOUND.iter().filter_map(|(_, seed, _)| told(*seed, run(*seed, false).1)).collect();
    assert!(found.is_empty(), "{}", found.concat());
}

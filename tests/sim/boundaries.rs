//! Trouble at every boundary: whatever a worker was about to do or had just done, the job ends as it should.

use std::cell::Cell;
use std::collections::VecDeque;
use std::time::Duration;

use darkroom::job::{Capacity, Fault, FaultCode, Status};
use darkroom::sched::{
    Acted, Action, BatchKey, Claim, Config, Effect, EngineReport, EngineWork, Exit, Input, Mono, Offer, PullOutcome,
    Scheduler, TenantKey, Ticket, Transition, Verdict,
};

use crate::clients::{Body, Deed, Poison};
use crate::knobs::{Chaos, Kind, Knobs, Trap, Trouble};
use crate::random::Random;
use crate::world::World;

/// Small images of one tenant, in no hurry.
fn offer(images: u32, steps: u32) -> Offer {
    let key = BatchKey { width: 64, height: 64 };
    Offer { images, key, previews: None, steps, whole_every: 1, tenant: TenantKey(0), deadline: None }
}

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
    while scheduler.poll_effect().is_some() {}
    let offer = offer(1, 4);
    let begun = Cell::new(0);
    let mut tell = |input| {
        scheduler.handle(now, input);
        let effects = std::iter::from_fn(|| scheduler.poll_effect());
        let acts = effects.filter_map(|effect| {
            begun.set(begun.get() + u32::from(matches!(effect, Effect::Engine(_))));
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
    let suspected = || Acted::Claimed(Claim::Won { failures: 0, deaths: 2, stopping: false });

    assert_eq!(tell(come(1)), [(1, Action::Claim)]);
    assert_eq!(tell(come(2)), [(2, Action::Claim)]);
    assert_eq!(tell(acted(1, suspected())), []);
    assert_eq!(tell(acted(2, suspected())), [(2, Action::Record(Transition::GiveBack))], "they were claimed together");
    assert_eq!(begun.get(), 0, "the other one would die with it");
    assert!(matches!(tell(acted(2, Acted::Done))[..], [(2, Action::Settle(_))]));
    assert_eq!((tell(acted(2, Acted::Done)), begun.get()), (vec![], 1));
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

/// The first step of a size pays for what is done once, and machines have bad moments.
#[test]
fn a_larger_step_that_was_slow_once_is_tried_again() {
    let now = Cell::new(Mono::from_micros(1_000_000));
    let mut config = Knobs::quiet().config;
    config.costs.observed_step(offer(4, 100).key, 1, Duration::from_millis(40));
    let mut scheduler = Scheduler::new(config, now.get());
    while scheduler.poll_effect().is_some() {}
    let mut effects = VecDeque::new();
    let mut tell = |input, took: Duration| {
        now.set(now.get().after(took));
        scheduler.handle(now.get(), input);
        effects.extend(std::iter::from_fn(|| scheduler.poll_effect()));
        std::mem::take(&mut effects)
    };
    let come = Input::Delivered { ticket: Ticket(1), lane: 0, offer: Some(offer(4, 100)), pending: 0, deliveries: 1 };
    tell(come, Duration::ZERO);
    let won = Acted::Claimed(Claim::Won { failures: 0, deaths: 0, stopping: false });
    let mut todo = tell(Input::Acted { ticket: Ticket(1), outcome: won }, Duration::ZERO);
    let mut steps = Vec::new();
    while let Some(effect) = todo.pop_front() {
        let Effect::Engine(work) = effect else { continue };
        let (report, took_ms) = match work {
            EngineWork::Admit { .. } => (EngineReport::Admitted { steps: 100, made: 0 }, 1),
            EngineWork::Step { rows, .. } => {
                let images = rows.len() as u64;
                steps.push(images);
                let is_first_of_many = images > 1 && steps.iter().filter(|images| **images > 1).count() == 1;
                (EngineReport::Stepped, if is_first_of_many { 500 } else { 30 + 10 * images })
            }
            EngineWork::Save { .. } => (EngineReport::Saved, 1),
            EngineWork::Decode { .. } => (EngineReport::Decoded, 1),
            EngineWork::Release { .. } => continue,
        };
        todo.extend(tell(Input::Engine(Ok(report)), Duration::from_millis(took_ms)));
    }
    assert_eq!(steps.iter().sum::<u64>(), 400);
    assert!(steps.iter().filter(|images| **images == 1).count() < 20, "{steps:?}");
}

/// The server may deliver it again before it confirms that it took it back.
#[test]
fn a_job_that_comes_back_before_it_is_gone_is_given_back_once_more() {
    let now = Mono::from_micros(1_000_000);
    let mut scheduler = Scheduler::new(Knobs::quiet().config, now);
    while scheduler.poll_effect().is_some() {}
    let mut tell = |input| {
        scheduler.handle(now, input);
        let effects = std::iter::from_fn(|| scheduler.poll_effect());
        let acts =
            effects.filter_map(|effect| if let Effect::Act { action, .. } = effect { Some(action) } else { None });
        acts.collect::<Vec<_>>()
    };
    let come =
        |deliveries| Input::Delivered { ticket: Ticket(1), lane: 0, offer: Some(offer(1, 4)), pending: 0, deliveries };
    let acted = |outcome| Input::Acted { ticket: Ticket(1), outcome };
    assert_eq!(tell(come(2)), [Action::Claim]);
    let given_back = tell(acted(Acted::Claimed(Claim::HeldElsewhere)));
    assert!(matches!(given_back[..], [Action::Settle(Verdict::Nak(_))]), "{given_back:?}");
    assert_eq!(tell(come(3)), []);
    assert_eq!(tell(acted(Acted::Done)), given_back, "or nobody has it until its lease ends");
    assert_eq!(tell(acted(Acted::Done)), []);
    assert_eq!(tell(come(4)), [Action::Claim], "it is forgotten");
}

/// So that of too many workers some have nothing to do for so long that they end.
#[test]
fn who_had_nothing_to_do_for_ten_seconds_asks_behind_those_that_just_had() {
    let at = |seconds: u64| Mono::from_micros(1_000_000 * seconds);
    // Where a job may run anywhere, list-price machines come behind all cheap ones; for urgent ones, only behind idle ones.
    let (urgent, others) = (0, 1);
    for (capacity, lane, idle) in [
        (Capacity::Spot, urgent, 0),
        (Capacity::OnDemand, urgent, 2),
        (Capacity::Spot, others, 0),
        (Capacity::OnDemand, others, 5),
    ] {
        let config = Config { capacity, ..Knobs::quiet().config };
        let mut scheduler = Scheduler::new(config, at(0));
        while scheduler.poll_effect().is_some() {}
        let mut places = |seconds, input| {
            scheduler.handle(at(seconds), input);
            let effects: Vec<Effect> = std::iter::from_fn(|| scheduler.poll_effect()).collect();
            let place = |effect| {
                let Effect::Pull { lane: of, preference, .. } = effect else { return None };
                (of == lane).then_some(preference)
            };
            effects.into_iter().filter_map(place).collect::<Vec<_>>()
        };
        let expired = || Input::PullEnded { lane, outcome: PullOutcome::Expired };
        assert_eq!(places(9, expired()), [idle]);
        assert_eq!(places(10, expired()), [idle + 1]);
        let offer = offer(1, 4);
        let come = Input::Delivered { ticket: Ticket(1), lane: 0, offer: Some(offer), pending: 0, deliveries: 1 };
        let busy = places(11, come);
        assert!(busy.iter().all(|place| *place > idle + 1), "{busy:?}");
        // Somebody else has it: there is nothing to do again, for no time yet.
        let acted = Input::Acted { ticket: Ticket(1), outcome: Acted::Claimed(Claim::Duplicate) };
        places(30, acted);
        places(30, Input::Acted { ticket: Ticket(1), outcome: Acted::Done });
        assert_eq!(places(31, expired()), [idle]);
        assert_eq!(places(40, expired()), [idle + 1]);
    }
}

/// A floor that nobody has to start again and again.
#[test]
fn who_is_to_stay_does_so_until_it_is_not_to_any_more() {
    let at = |seconds: u64| Mono::from_micros(1_000_000 * seconds);
    let config = Config { exit_when_idle: Some(Duration::from_secs(30)), ..Knobs::quiet().config };
    let mut scheduler = Scheduler::new(config, at(0));
    while scheduler.poll_effect().is_some() {}
    let mut tell = |seconds, input| {
        scheduler.handle(at(seconds), input);
        while scheduler.poll_effect().is_some() {}
        (scheduler.exit().cloned(), scheduler.next_deadline())
    };
    assert_eq!(tell(10, Input::Stay(true)), (None, None), "nothing is due");
    assert_eq!(tell(500, Input::Tick).0, None);
    assert_eq!(tell(501, Input::Stay(false)).0, None, "messages may be on their way");
    assert_eq!(tell(502, Input::PullsStopped).0, Some(Exit::Idle));
}

#[test]
fn preemptions_are_no_failures() {
    // The job takes longer than the grace.
    let offer = Some(offer(4, 100));
    let body = Body { steps: 100, poison_at: 100, offer, ..Body::plain(1, Poison::None) };
    let deeds = vec![(Mono::from_micros(1_000_000), Deed::Publish(body))];
    let chaos = Chaos { drains: 30, ..Chaos::default() };
    let mut knobs = Knobs { workers: 1, chaos, calm_after: Duration::from_secs(100), ..Knobs::quiet() };
    knobs.config.grace = Duration::from_secs(4);
    let mut world = World::new(knobs, Random::new(1), deeds, false);
    assert_eq!(crate::judge(&mut world), Ok(()));
    assert_eq!(world.records.events[&1], [Status::Completed]);
    assert!(world.oracle.met["record: given back"] > 1, "{:?}", world.oracle.met);
    assert!(world.oracle.met["resumed"] > 4, "{:?}", world.oracle.met);
    assert_eq!(world.steps[&1], 4 * 100, "no step is made twice");
}

#[test]
fn a_store_that_is_down_fails_nothing_and_nothing_is_begun_meanwhile() {
    let deeds = (1..=12).map(|job| {
        let at = Mono::from_micros(1_000_000 + 3_000_000 * u64::from(job));
        (at, Deed::Publish(Body::plain(job, Poison::None)))
    });
    let mut world = World::new(Knobs { workers: 1, ..Knobs::quiet() }, Random::new(1), deeds.collect(), false);
    world.store_out_until = Mono::from_micros(600_000_000);
    assert_eq!(crate::judge(&mut world), Ok(()));
    for job in 1..=12 {
        assert_eq!(world.records.events[&job], [Status::Completed], "job {job}");
        assert_eq!(world.steps[&job], 4, "job {job} was made once");
    }
    assert_eq!(world.oracle.met["claim: won"], 12);
    let begun = world.begun_at.values().filter(|at| **at < world.store_out_until).count();
    assert!(begun <= 5, "{begun} jobs were begun while nothing could be stored, more than one and a batch");
}

#[test]
fn what_alone_cannot_be_stored_fails() {
    let mut body = Body::plain(1, Poison::None);
    body.unstorable = true;
    let mut deeds = vec![(Mono::from_micros(1_000_000), Deed::Publish(body))];
    for job in 2..=30 {
        let at = Mono::from_micros(1_000_000 + 500_000 * u64::from(job));
        deeds.push((at, Deed::Publish(Body::plain(job, Poison::None))));
    }
    let mut world = World::new(Knobs { workers: 1, ..Knobs::quiet() }, Random::new(1), deeds, false);
    assert_eq!(crate::judge(&mut world), Ok(()));
    assert_eq!(world.records.events[&1], [Status::Failed]);
    for job in 2..=30 {
        assert_eq!(world.records.events[&job], [Status::Completed], "job {job}");
    }
}

#[test]
fn a_lost_worker_costs_no_more_steps_than_lie_between_two_checkpoints() {
    let offer = Some(offer(1, 20));
    let body = Body { steps: 20, poison_at: 20, offer, ..Body::plain(1, Poison::None) };
    for killed_at_ms in (1_000..1_900).step_by(25) {
        let deeds = vec![
            (Mono::from_micros(1_000_000), Deed::Publish(body.clone())),
            (Mono::from_micros(killed_at_ms * 1_000), Deed::KillAll),
        ];
        let mut knobs = Knobs { workers: 1, ..Knobs::quiet() };
        (knobs.config.checkpoint_every, knobs.config.checkpoint_steps) = (Duration::MAX, Some(3));
        let mut world = World::new(knobs, Random::new(killed_at_ms), deeds, false);
        assert_eq!(crate::judge(&mut world), Ok(()));
        assert_eq!(world.records.events[&1], [Status::Completed]);
        // Three, and those that are made while the checkpoint is on its way to the store and the record.
        let on_the_way = 700 / 10;
        assert!(world.steps[&1] <= 20 + 3 + on_the_way, "{} steps", world.steps[&1]);
    }
}

#[test]
fn what_is_stopped_keeps_what_is_there() {
    let offer = Some(offer(2, 100));
    let body = Body { steps: 100, poison_at: 100, offer, ..Body::plain(1, Poison::None) };
    for stopped_at_ms in [900, 1_200, 1_400, 1_500, 3_000, 60_000] {
        let deeds = vec![
            (Mono::from_micros(1_000_000), Deed::Publish(body.clone())),
            (Mono::from_micros(stopped_at_ms * 1_000), Deed::Cancel { job: 1, keep_partial: true }),
        ];
        let mut world = World::new(Knobs { workers: 1, ..Knobs::quiet() }, Random::new(1), deeds, false);
        assert_eq!(crate::judge(&mut world), Ok(()));
        let (ended, steps) = (world.records.events[&1].clone(), world.steps.get(&1).copied().unwrap_or(0));
        match stopped_at_ms {
            // Nobody knew the job then, or all was made.
            900 | 60_000 => assert_eq!((ended, steps), (vec![Status::Completed], 200)),
            _ => {
                assert_eq!(ended, [Status::Cancelled], "at {stopped_at_ms} ms");
                assert!(steps < 200, "at {stopped_at_ms} ms");
            }
        }
    }
}

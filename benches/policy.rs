//! What the scheduler itself costs: `cargo bench --no-default-features --bench policy`.
//!
//! One worker with 64 rows in the engine and 1,000 jobs that wait. Measured is the answer to a step: taking it in, and
//! deciding what is next.

use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use darkroom::job::{Capacity, Pool, Priority};
use darkroom::sched::{
    Acted, BatchKey, Claim, Config, CostModel, Effect, EngineReport, EngineWork, Input, Lane, Mono, Offer, Policy,
    Scheduler, TenantKey, Ticket,
};

const ROWS: u32 = 64;
const WAITING: u64 = 1000;

/// A scheduler whose engine steps, and the time.
fn busy() -> (Scheduler, Mono) {
    let lanes = Priority::ALL.iter().map(|priority| Lane { priority: *priority, pool: Pool::Any }).collect();
    let mut costs = CostModel::default();
    let sides = [512, 768, 1024];
    for (side, one_ms) in sides.into_iter().zip([40, 90, 160]) {
        let key = BatchKey { width: side, height: side };
        costs.measured_step(key, 1, Duration::from_millis(one_ms));
        costs.measured_step(key, ROWS, Duration::from_millis(one_ms * u64::from(ROWS) / 3));
    }
    let config = Config {
        lanes,
        images_in_batch_max: ROWS,
        memory_bytes: None,
        images_parked_max: 0,
        capacity: Capacity::OnDemand,
        jobs_ahead_max: 1000,
        stall_max: Duration::from_millis(500),
        checkpoint_every: Duration::MAX,
        checkpoint_steps: None,
        engine_stall_max: Duration::from_secs(60),
        passed_over_max: Duration::from_secs(3),
        policy: Policy::Adaptive,
        costs,
        ack_wait: Duration::from_secs(3600),
        failures_max: 3,
        deaths_max: 3,
        exit_when_idle: None,
        grace: Duration::from_secs(30),
    };
    let mut now = Mono::ZERO;
    let mut scheduler = Scheduler::new(config, now);
    let mut asked = settled(&mut scheduler);
    for ticket in 1..=WAITING + u64::from(ROWS) {
        let side = sides[ticket as usize % sides.len()];
        let offer = Offer {
            images: 1,
            key: BatchKey { width: side, height: side },
            previews: None,
            // Nobody ends while it is measured.
            steps: 1_000_000,
            whole_every: 1,
            tenant: TenantKey(ticket % 3),
            deadline: None,
        };
        let input = Input::Delivered { ticket: Ticket(ticket), lane: 1, offer: Some(offer), pending: 1, deliveries: 1 };
        for input in [
            input,
            Input::Acted {
                ticket: Ticket(ticket),
                outcome: Acted::Claimed(Claim::Won { failures: 0, deaths: 0, stopping: false }),
            },
        ] {
            scheduler.handle(now, input);
            asked = settled(&mut scheduler).or(asked);
        }
    }
    let mut rows = 0;
    loop {
        let report = match asked.take() {
            Some(EngineWork::Admit { .. }) => {
                rows += 1;
                EngineReport::Admitted { steps: 1_000_000, made: 0 }
            }
            Some(EngineWork::Step { .. }) => {
                assert_eq!((rows, scheduler.jobs_held() as u64), (ROWS, WAITING + u64::from(ROWS)));
                return (scheduler, now);
            }
            Some(EngineWork::Save { .. } | EngineWork::Decode { .. } | EngineWork::Release { .. }) | None => {
                unreachable!("jobs without end are admitted and step")
            }
        };
        now = now.after(Duration::from_millis(1));
        scheduler.handle(now, Input::Engine(Ok(report)));
        asked = settled(&mut scheduler);
    }
}

fn step(criterion: &mut Criterion) {
    let name = format!("step with {ROWS} rows and {WAITING} waiting jobs");
    let (scheduler, now) = busy();
    criterion.bench_function(&name, |bencher| {
        bencher.iter_batched_ref(
            || (scheduler.clone(), now),
            |(scheduler, now)| {
                scheduler.handle(now.after(Duration::from_millis(40)), Input::Engine(Ok(EngineReport::Stepped)));
                settled(scheduler)
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, step);
criterion_main!(benches);

/// Drains the effects; what the engine is asked.
fn settled(scheduler: &mut Scheduler) -> Option<EngineWork> {
    let mut asked = None;
    while let Some(effect) = scheduler.poll_effect() {
        if let Effect::Engine(work) = effect {
            asked = Some(work);
        }
    }
    asked
}

//! What must hold of every rule on every trace, and days that a hand can work out.

use super::*;
use crate::sched::BatchKey;
use crate::simulation::workload::Job;

/// Encoding 10 ms, a step of n images 60 + 40 n ms, decoding 20 ms.
const COSTS: &str = "name = \"tiny\"\nencode_ms = 10\n[[size]]\nwidth = 64\nheight = 64\ndecode_ms = 20\n\
                     step_ms = [[1, 100], [8, 380]]\n[[size]]\nwidth = 128\nheight = 128\ndecode_ms = 80\n\
                     step_ms = [[1, 300], [8, 1420]]\n";

const SETUP: &str = r#"
name = "tiny"
seed = 1
costs = "tiny"
fixed = [6]
[arrivals]
jobs = 1500
hours = 1
curve = [0.2, 2.0, 0.1, 1.0]
bursts = 3
burst_jobs = 60
burst_s = 5
steps = [[10, 0.5], [50, 0.5]]
sides = [[64, 0.8], [128, 0.2]]
images = [[1, 0.8], [3, 0.2]]
[worker]
instance = "x.large"
images_in_batch_max = 8
cold_start_s = 30
exit_when_idle_s = 20
grace_s = 1
store_ms = 30
workers_max = 12
[darkroom]
every_s = 5
target_waits_s = [1, 60]
[kubernetes]
polling_s = 5
cooldown_s = 60
lag_thresholds = [3]
sync_s = 15
stabilization_s = 60
queue_per_worker = 3
[spot]
interruptions_per_hour = [6.0]
notice_s = 10
checkpoint_steps = 5
target_wait_s = 5
repeats = 2
"#;

const PRICES: WorkerPrices = WorkerPrices { spot: Some(0.4), on_demand: 1.0 };
const OURS: Rule = Rule::Darkroom { target_wait: Duration::from_secs(5) };

fn costs() -> Costs {
    Costs::parse(COSTS).unwrap()
}

fn setup(seed: u64) -> Setup {
    Setup { seed, ..Setup::parse(SETUP).unwrap() }
}

fn run(rule: Rule) -> Run {
    Run { rule, spot: None, checkpoint_steps: None, prices: PRICES, chance: 0 }
}

fn on_spot(on_notice: OnNotice, checkpoint_steps: Option<u32>) -> Run {
    let spot = Interruptions { interruptions_per_hour: 20.0, notice_us: 2_000_000, on_notice };
    Run { spot: Some(spot), checkpoint_steps, ..run(OURS) }
}

fn every_rule() -> [Rule; 5] {
    [
        OURS,
        Rule::ScaledObject { lag_threshold: 3 },
        Rule::ScaledJob { lag_threshold: 3 },
        Rule::QueueHpa { queue_per_worker: 3 },
        Rule::Fixed { workers: 4 },
    ]
}

/// A trace of jobs of one image of 64 pixels a side: when they come, in seconds, and their steps.
fn jobs(of: &[(u64, u32)]) -> Trace {
    let job = |(at_s, steps): &(u64, u32)| Job {
        arrived_us: at_s * 1_000_000,
        deadline_us: u64::MAX,
        tenant: 0,
        priority: crate::job::Priority::Normal,
        key: BatchKey { width: 64, height: 64 },
        steps: *steps,
        images: 1,
    };
    Trace {
        jobs: of.iter().map(job).collect(),
        tenants: vec!["all".to_owned()],
        weights: vec![1.0],
        window_us: 3_600_000_000,
    }
}

/// What the images alone take if nothing is shared and nothing is lost, in seconds.
fn alone_s(trace: &Trace, costs: &Costs) -> f64 {
    let of_job = |job: &Job| {
        let image = costs.encode() + costs.decode(job.key) + costs.step(job.key, 1) * job.steps;
        image.as_secs_f64() * f64::from(job.images)
    };
    trace.jobs.iter().map(of_job).sum()
}

#[test]
fn no_rule_loses_a_job_and_ours_disturbs_none() {
    let costs = costs();
    for seed in 1..6 {
        let setup = setup(seed);
        let trace = trace(&setup, &costs).unwrap();
        for rule in every_rule() {
            let outcome = simulate(&setup, &run(rule), &trace, &costs).unwrap();
            assert_eq!(outcome.jobs, trace.jobs.len(), "{rule:?}");
            assert!((outcome.busy + outcome.starting + outcome.idle - 1.0).abs() < 1e-9, "{rule:?}");
            assert!(outcome.idle > -1e-9 && outcome.workers_most <= 12, "{rule:?} {outcome:?}");
            // Batches save time, and only what is lost is done twice.
            let busy_s = outcome.busy * outcome.gpu_hours * 3600.0 - outcome.wasted_gpu_s;
            assert!(busy_s <= alone_s(&trace, &costs) * 1.02 && busy_s > 0.3 * alone_s(&trace, &costs), "{rule:?}");
            if rule.lets_workers_exit() {
                assert_eq!((outcome.disturbed_by_scaling_in, outcome.wasted_gpu_s), (0, 0.0), "{rule:?}");
            }
        }
    }
}

#[test]
fn a_seed_is_an_outcome() {
    let costs = costs();
    let play = |seed, rule| {
        let setup = setup(seed);
        simulate(&setup, &run(rule), &trace(&setup, &costs).unwrap(), &costs).unwrap()
    };
    for rule in every_rule() {
        assert_eq!(play(1, rule), play(1, rule));
        assert_ne!(play(1, rule), play(2, rule));
    }
}

#[test]
fn one_job_wakes_one_worker_at_once_and_it_ends_when_idle() {
    let (costs, trace) = (costs(), jobs(&[(100, 10)]));
    let mut setup = setup(1);
    setup.arrivals.hours = 0.1;
    let outcome = simulate(&setup, &run(OURS), &trace, &costs).unwrap();
    // 30 s of start, 10 ms of prompt; 1 s of steps, 20 ms of decoding, 30 ms of upload; 20 s of idleness.
    assert!((outcome.wait.p50_ms - 30_010.0).abs() < 1.0, "{}", outcome.wait.p50_ms);
    assert!((outcome.total.p50_ms - 31_060.0).abs() < 1.0, "{}", outcome.total.p50_ms);
    assert!((outcome.gpu_hours * 3600.0 - 51.03).abs() < 0.01, "{}", outcome.gpu_hours * 3600.0);
    assert!((outcome.cost - 51.03 / 3600.0).abs() < 1e-5);
    // KEDA looks every five seconds, and its pod stays for the cooldown.
    let trace = jobs(&[(101, 10)]);
    let outcome = simulate(&setup, &run(Rule::ScaledObject { lag_threshold: 3 }), &trace, &costs).unwrap();
    assert!((outcome.wait.p50_ms - 34_010.0).abs() < 1.0, "{}", outcome.wait.p50_ms);
    assert!(outcome.gpu_hours * 3600.0 > 60.0);
}

#[test]
fn an_autoscaler_ends_whoever_is_youngest_and_what_that_was_doing_is_done_again() {
    let costs = costs();
    // A burst makes the pods, and long jobs are still there when the burst is over.
    let mut of: Vec<(u64, u32)> = (0..30).map(|_| (10, 20)).collect();
    of.extend((0..3).map(|_| (80, 2000)));
    let (trace, setup) = (jobs(&of), setup(1));
    let outcome = simulate(&setup, &run(Rule::ScaledObject { lag_threshold: 3 }), &trace, &costs).unwrap();
    assert!(outcome.disturbed_by_scaling_in > 0 && outcome.wasted_gpu_s > 1.0, "{outcome:?}");
    let kept = Run { checkpoint_steps: Some(5), ..run(Rule::ScaledObject { lag_threshold: 3 }) };
    let kept = simulate(&setup, &kept, &trace, &costs).unwrap();
    assert!(kept.wasted_gpu_s < outcome.wasted_gpu_s / 4.0, "{} {}", kept.wasted_gpu_s, outcome.wasted_gpu_s);
}

#[test]
fn who_waits_less_pays_more() {
    let costs = costs();
    for seed in 1..4 {
        let setup = setup(seed);
        let trace = trace(&setup, &costs).unwrap();
        let play = |rule| simulate(&setup, &run(rule), &trace, &costs).unwrap();
        let patient = play(Rule::Darkroom { target_wait: Duration::from_secs(300) });
        let (prompt, always) =
            (play(Rule::Darkroom { target_wait: Duration::ZERO }), play(Rule::Fixed { workers: 12 }));
        assert!(
            patient.cost < prompt.cost && prompt.cost < always.cost,
            "{} {} {}",
            patient.cost,
            prompt.cost,
            always.cost
        );
        assert!(always.wait.p95_ms <= prompt.wait.p95_ms && prompt.wait.p95_ms <= patient.wait.p95_ms);
        assert!((always.gpu_hours - 12.0).abs() < 0.5, "{}", always.gpu_hours);
    }
}

#[test]
fn machines_that_are_taken_away_cost_less_and_whoever_hands_over_loses_nothing() {
    let costs = costs();
    let (mut ignored_s, mut saved_s) = (0.0, 0.0);
    for seed in 1..6 {
        let setup = setup(seed);
        let trace = trace(&setup, &costs).unwrap();
        let play = |run: &Run| simulate(&setup, run, &trace, &costs).unwrap();
        let ignored = play(&on_spot(OnNotice::Ignore, None));
        let handed_over = play(&on_spot(OnNotice::HandOver, Some(5)));
        assert_eq!(handed_over.wasted_gpu_s, 0.0);
        assert!(handed_over.spot_hours > 0.99 * handed_over.gpu_hours);
        assert!(handed_over.cost < play(&run(OURS)).cost);
        ignored_s += ignored.wasted_gpu_s;
        saved_s += play(&on_spot(OnNotice::Ignore, Some(5))).wasted_gpu_s;
    }
    assert!(ignored_s > 0.0 && saved_s < ignored_s / 2.0, "{saved_s} of {ignored_s}");
}

#[test]
fn what_must_not_be_interrupted_never_runs_on_spot() {
    let costs = costs();
    let mut setup = setup(1);
    setup.arrivals.on_demand_share = 1.0;
    let trace = trace(&setup, &costs).unwrap();
    let outcome = simulate(&setup, &on_spot(OnNotice::HandOver, Some(5)), &trace, &costs).unwrap();
    assert_eq!((outcome.spot_hours, outcome.disturbed_by_spot), (0.0, 0.0));
    setup.arrivals.on_demand_share = 0.3;
    let outcome = simulate(&setup, &on_spot(OnNotice::HandOver, Some(5)), &trace, &costs).unwrap();
    assert!(outcome.spot_hours > 0.0 && outcome.spot_hours < outcome.gpu_hours);
}

#[test]
fn a_comparison_has_every_rule_and_its_tables_and_plots_have_numbers() {
    let (costs, setup) = (costs(), setup(1));
    let trace = trace(&setup, &costs).unwrap();
    let mut heard = 0;
    let comparison = compare(&setup, &trace, &costs, PRICES, |_| heard += 1).unwrap();
    assert_eq!((comparison.rules.len(), comparison.spot.len(), heard), (6, 5, 11));
    let ratios = ratios(&comparison.rules);
    assert_eq!(ratios.len(), 4);
    let texts = [table(&comparison.rules), ratio_table(&ratios), spot_table(&comparison.spot)];
    assert_eq!(texts.each_ref().map(|text| text.lines().count()), [8, 6, 7]);
    let plots = plots(&setup.name, &comparison.rules);
    assert_eq!(plots[0].0, "tiny-cost.svg");
    for text in texts.iter().chain(plots.iter().map(|(_, svg)| svg)) {
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }
    let no_spot = WorkerPrices { spot: None, ..PRICES };
    assert!(compare(&setup, &trace, &costs, no_spot, |_| {}).unwrap().spot.is_empty());
}

#[test]
fn at_equal_p95_the_cheapest_of_ours_is_named() {
    let (costs, setup) = (costs(), setup(1));
    let trace = trace(&setup, &costs).unwrap();
    let outcome = simulate(&setup, &run(OURS), &trace, &costs).unwrap();
    let own = |name: &str, cost: f64, p95_ms: f64| {
        let wait = crate::simulation::report::Spread { p95_ms, ..outcome.wait };
        Outcome { name: name.to_owned(), cost, wait, ..outcome.clone() }
    };
    let other = Outcome { rule: Rule::Fixed { workers: 3 }, ..own("theirs", 10.0, 5.0) };
    let ratios = ratios(&[own("dear", 9.0, 1.0), own("right", 6.0, 5.0), own("slow", 2.0, 6.0), other]);
    assert_eq!(ratios[0].by_wait, Some(("right".to_owned(), 0.6)));
}

#[test]
fn a_wrong_field_is_named() {
    for (right, wrong, field) in [
        ("jobs = 1500", "jobs = 0", "arrivals.jobs"),
        ("hours = 1\n", "hours = nan\n", "arrivals.hours"),
        ("curve = [0.2, 2.0, 0.1, 1.0]", "curve = []", "arrivals.curve"),
        ("curve = [0.2, 2.0, 0.1, 1.0]", "curve = [0, 0]", "arrivals.curve"),
        ("bursts = 3", "bursts = 3000", "arrivals.bursts"),
        ("[[10, 0.5], [50, 0.5]]", "[[0, 1]]", "arrivals.steps"),
        ("[[1, 0.8], [3, 0.2]]", "[[9, 1]]", "arrivals.images"),
        ("cold_start_s = 30", "cold_start_s = -1", "worker.cold_start_s"),
        ("exit_when_idle_s = 20", "exit_when_idle_s = 0", "worker.exit_when_idle_s"),
        ("workers_max = 12", "workers_max = 0", "worker.workers_max"),
        ("fixed = [6]", "fixed = [13]", "fixed"),
        ("target_waits_s = [1, 60]", "target_waits_s = []", "darkroom.target_waits_s"),
        ("lag_thresholds = [3]", "lag_thresholds = [0]", "kubernetes.lag_thresholds"),
        ("notice_s = 10", "notice_s = -1", "spot.notice_s"),
        ("repeats = 2", "repeats = 0", "spot.repeats"),
    ] {
        assert!(SETUP.contains(right), "{right}");
        let error = Setup::parse(&SETUP.replace(right, wrong)).unwrap_err().to_string();
        assert!(error.contains(field), "{wrong}: {error}");
    }
    let error = setup(1).check_sizes(&Costs::named("a10g-sd15").unwrap()).unwrap_err().to_string();
    assert!(error.contains("arrivals.sides"), "{error}");
}

#[test]
fn the_files_that_come_along_can_be_replayed() {
    for (name, text) in [
        ("a10g-sdxl-day", include_str!("../../../docs/scaling/a10g-sdxl-day.toml")),
        ("a10g-sdxl-bursts", include_str!("../../../docs/scaling/a10g-sdxl-bursts.toml")),
        ("a10g-sd15-quiet", include_str!("../../../docs/scaling/a10g-sd15-quiet.toml")),
    ] {
        let mut setup = Setup::parse(text).unwrap();
        assert_eq!(setup.name, name);
        let costs = Costs::named(&setup.costs).unwrap();
        setup.arrivals = Arrivals { jobs: 100.0, hours: 0.2, bursts: 0.0, ..setup.arrivals };
        let trace = trace(&setup, &costs).unwrap();
        assert_eq!(simulate(&setup, &run(OURS), &trace, &costs).unwrap().jobs, trace.jobs.len());
    }
}

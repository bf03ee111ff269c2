//! The simulator: what it counts, agreement with what can be worked out by hand, and that no policy loses a job.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use darkroom::job::Priority;
use darkroom::sched::BatchKey;
use darkroom::simulation::costs::Costs;
use darkroom::simulation::ledger::Ledger;
use darkroom::simulation::policy::Policy;
use darkroom::simulation::report::{Report, estimate_table, jain, percentile};
use darkroom::simulation::workload::{Job, LatencyMs, Load, Saturated, Trace, Workload};
use darkroom::simulation::{Fleet, compare, plots, simulate};

/// Encoding 10 ms, a step of n images 60 + 40 n ms, decoding 20 ms.
const COSTS: &str = "name = \"tiny\"\nencode_ms = 10\n[[size]]\nwidth = 64\nheight = 64\ndecode_ms = 20\n\
                     step_ms = [[1, 100], [8, 380]]\n[[size]]\nwidth = 128\nheight = 128\ndecode_ms = 80\n\
                     step_ms = [[1, 300], [8, 1420]]\n";

const WORKLOAD: &str = r#"
name = "tiny"
seed = 7
workers = 3
jobs = 600
costs = "tiny"
loads = [0.7, "saturated"]
images_in_batch_max = 8
steps = [[2, 0.5], [5, 0.5]]
sides = [[64, 0.8], [128, 0.2]]
images = [[1, 0.8], [3, 0.2]]
priorities = [["high", 0.2], ["normal", 0.6], ["low", 0.2]]
deadlines = [[4.0, 0.5]]
[[tenants]]
name = "a"
share = 0.7
[[tenants]]
name = "b"
share = 0.3
burst = 20
"#;

fn costs() -> Costs {
    Costs::parse(COSTS).unwrap()
}

fn fleet(workers: u32) -> Fleet {
    Fleet { workers, images_in_batch_max: 8, latency_ms: LatencyMs::default() }
}

fn job(arrived_ms: u64, steps: u32) -> Job {
    Job {
        arrived_us: arrived_ms * 1000,
        deadline_us: u64::MAX,
        tenant: 0,
        priority: Priority::Normal,
        key: BatchKey { width: 64, height: 64 },
        steps,
        images: 1,
    }
}

fn trace(jobs: Vec<Job>) -> Trace {
    Trace { jobs, tenants: vec!["a".to_owned()], weights: vec![1.0], window_us: 1_000_000 }
}

fn totals_ms(ledger: &Ledger<'_>, trace: &Trace) -> Vec<u64> {
    ledger.finished_us.iter().zip(&trace.jobs).map(|(end, job)| (end - job.arrived_us) / 1000).collect()
}

#[test]
fn a_seed_is_a_report() {
    let reports = |seed: &str| {
        let workload = Workload::parse(&WORKLOAD.replace("seed = 7", seed)).unwrap();
        compare(&workload, &costs(), Policy::ALL, |_, _| {}).unwrap()
    };
    assert_eq!(reports("seed = 7"), reports("seed = 7"));
    assert_ne!(reports("seed = 7"), reports("seed = 8"));
}

#[test]
fn every_policy_does_all_work_once_and_books_all_of_it() {
    let workload = Workload::parse(WORKLOAD).unwrap();
    let costs = costs();
    for load in workload.loads.iter().copied() {
        let trace = workload.trace(&costs, load).unwrap();
        assert_eq!(trace.jobs.len(), 600);
        let images: u64 = trace.jobs.iter().map(|job| u64::from(job.images)).sum();
        let image_steps: u64 = trace.jobs.iter().map(|job| u64::from(job.images * job.steps)).sum();
        for policy in Policy::ALL.iter().copied() {
            let ledger = simulate(policy, &Fleet::from(&workload), &trace, &costs).unwrap();
            assert_eq!(ledger.jobs_finished, 600, "{policy}");
            assert_eq!((ledger.encodes, ledger.decodes, ledger.image_steps), (images, images, image_steps), "{policy}");
            let booked_ns = ledger.service_ns.iter().sum::<u64>() + ledger.wasted_ns;
            let busy_ns = ledger.busy_us * 1000;
            // Shares of a step are whole nanoseconds.
            assert!(booked_ns <= busy_ns && busy_ns - booked_ns <= 8 * ledger.steps, "{policy}: {booked_ns} {busy_ns}");
            assert_eq!(ledger.wasted_ns > 0, policy == Policy::Fastapi, "{policy}");
            for ((job, started_us), finished_us) in trace.jobs.iter().zip(&ledger.started_us).zip(&ledger.finished_us) {
                let least = costs.step(job.key, 1) * job.steps + costs.decode(job.key);
                let took = Duration::from_micros(finished_us - started_us);
                assert!(job.arrived_us < *started_us && took >= least, "{policy}: {job:?} {took:?}");
            }
        }
    }
}

#[test]
fn one_at_a_time_is_what_a_hand_works_out() {
    let (costs, trace) = (costs(), trace(vec![job(0, 2), job(100, 2), job(1000, 3)]));
    let ledger = simulate(Policy::One, &fleet(1), &trace, &costs).unwrap();
    // 10 + 2 * 100 + 20 and 30 for the upload; the second waits for 130.
    assert_eq!(totals_ms(&ledger, &trace), [260, 390, 360]);
    assert_eq!(ledger.started_us, [10_000, 240_000, 1_010_000]);
    assert_eq!(ledger.busy_us, 790_000);
}

#[test]
fn one_at_a_time_waits_as_queueing_theory_says() {
    let text = WORKLOAD
        .replace("workers = 3", "workers = 1")
        .replace("jobs = 600", "jobs = 200_000")
        .replace("images_in_batch_max = 8", "images_in_batch_max = 1")
        .replace("[[2, 0.5], [5, 0.5]]", "[[2, 1]]")
        .replace("[[64, 0.8], [128, 0.2]]", "[[64, 1]]")
        .replace("[[1, 0.8], [3, 0.2]]", "[[1, 1]]")
        .replace("burst = 20", "burst = 1");
    let (costs, workload) = (costs(), Workload::parse(&text).unwrap());
    let trace = workload.trace(&costs, Load::Share(0.7)).unwrap();
    let ledger = simulate(Policy::One, &Fleet::from(&workload), &trace, &costs).unwrap();
    let waited_ms = |(started_us, job): (&u64, &Job)| (started_us - job.arrived_us) as f64 / 1e3 - 10.0;
    let mean_ms = ledger.started_us.iter().zip(&trace.jobs).map(waited_ms).sum::<f64>() / 200_000.0;
    // M/D/1: load / (2 (1 - load)) of the time of a job.
    let expected_ms = 0.7 / (2.0 * 0.3) * 230.0;
    assert!((mean_ms / expected_ms - 1.0).abs() < 0.05, "{mean_ms} instead of {expected_ms}");
}

#[test]
fn triton_joins_equal_steps_only_and_fastapi_runs_the_most() {
    let costs = costs();
    let run = |policy, steps: [u32; 2]| {
        let trace = trace(vec![job(0, steps[0]), job(0, steps[1])]);
        let ledger = simulate(policy, &fleet(1), &trace, &costs).unwrap();
        (ledger.steps, ledger.image_steps, ledger.wasted_ns / 1_000_000, totals_ms(&ledger, &trace))
    };
    // 100 of delay, 2 * 10 for prompts, 3 * 140 for steps, 2 * 20 for decoding, 30 for the upload.
    assert_eq!(run(Policy::Triton, [3, 3]), (3, 6, 0, vec![610, 610]));
    assert_eq!(run(Policy::Triton, [2, 3]), (5, 5, 0, vec![360, 690]));
    // 500 of delay; the first does not need the third step: half of 140 is wasted.
    assert_eq!(run(Policy::Fastapi, [2, 3]), (3, 5, 70, vec![1010, 1010]));
}

#[test]
fn steps_are_shared_first_come_first_served_and_sizes_hold_each_other_up() {
    let costs = costs();
    let large = Job { key: BatchKey { width: 128, height: 128 }, ..job(10, 1) };
    let trace = trace(vec![job(0, 2), large, job(20, 2)]);
    let ledger = simulate(Policy::FcfsSteps, &fleet(1), &trace, &costs).unwrap();
    // The third would fit beside the first, but stands behind the second.
    assert_eq!(ledger.steps, ledger.image_steps);
    assert!(ledger.started_us[2] > ledger.finished_us[1] - 30_000, "{:?}", ledger.started_us);
    let ledger = simulate(Policy::Fixed, &fleet(1), &trace, &costs).unwrap();
    assert_eq!((ledger.steps, ledger.image_steps), (3, 5), "Darkroom steps the first and third together");
}

#[test]
fn a_lonely_job_takes_its_round_trips_and_its_work() {
    let (costs, trace) = (costs(), trace(vec![job(60_000, 3)]));
    for policy in [Policy::Adaptive, Policy::Fixed] {
        let ledger = simulate(policy, &fleet(4), &trace, &costs).unwrap();
        // Delivery 1, claim 3, prompt 10, steps 300, decoding 20, upload 30, record 2, event 2.
        assert_eq!(totals_ms(&ledger, &trace), [368], "{policy}");
        assert_eq!(ledger.started_us, [60_014_000], "{policy}");
    }
}

#[test]
fn jobs_begin_about_when_they_were_told() {
    let text = WORKLOAD.replace("jobs = 600", "jobs = 3000").replace("burst = 20", "burst = 1");
    let workload = Workload::parse(&text.replace("\"saturated\"", "0.5")).unwrap();
    let reports = compare(&workload, &costs(), &[Policy::Adaptive, Policy::One], |_, _| {}).unwrap();
    for report in &reports {
        let estimate = report.overall.estimate;
        assert_eq!(estimate.is_some(), report.policy == "adaptive", "{}: only Darkroom tells", report.policy);
        if let Some(error) = estimate {
            assert!(error.share > 0.99 && error.close > 0.8, "load {}: {error:?}", report.load);
            assert!(error.p50_ms < report.overall.wait.p50_ms.max(100.0), "load {}: {error:?}", report.load);
        }
    }
    assert_eq!(estimate_table(&reports).lines().count(), 2 + 2 * 4, "all and three priorities at two loads");
}

/// One size and one priority; who floods sends most of the work.
const FLOOD: &str = r#"
name = "flood"
seed = 3
workers = 2
jobs = 1500
costs = "tiny"
loads = [0.8]
images_in_batch_max = 8
steps = [[4, 0.5], [20, 0.5]]
sides = [[64, 0.8], [128, 0.2]]
images = [[1, 1.0]]
priorities = [["normal", 1.0]]
deadlines = []
[[tenants]]
name = "quiet"
share = 0.5
images = [[1, 1.0]]
steps = [[4, 1.0]]
[[tenants]]
name = "flood"
share = 0.5
burst = 60
images = [[1, 0.5], [4, 0.5]]
"#;

/// What jobs of a kind waited, from the shortest.
fn waits_ms(ledger: &Ledger<'_>, trace: &Trace, of: impl Fn(&Job) -> bool) -> Vec<u64> {
    let waits = ledger.started_us.iter().zip(&trace.jobs).filter(|(_, job)| of(job));
    let mut waits: Vec<u64> = waits.map(|(start, job)| (start - job.arrived_us) / 1000).collect();
    waits.sort_unstable();
    waits
}

#[test]
fn a_tenant_that_floods_hardly_delays_another() {
    let (workload, costs) = (Workload::parse(FLOOD).unwrap(), costs());
    let trace = workload.trace(&costs, Load::Share(0.8)).unwrap();
    let waits = |policy| {
        let ledger = simulate(policy, &Fleet::from(&workload), &trace, &costs).unwrap();
        waits_ms(&ledger, &trace, |job| job.tenant == 0)
    };
    let (ours, request_level) = (waits(Policy::Adaptive), waits(Policy::Triton));
    let (ours, request_level) = (percentile(&ours, 0.95), percentile(&request_level, 0.95));
    assert!(ours * 10 < request_level, "{ours} ms, {request_level} ms under Triton");
}

#[test]
fn an_urgent_job_waits_for_few_steps_while_others_saturate_the_fleet() {
    let text = FLOOD
        .replace("[[64, 0.8], [128, 0.2]]", "[[64, 1.0]]")
        .replace("[[\"normal\", 1.0]]", "[[\"high\", 0.05], [\"low\", 0.95]]")
        .replace("loads = [0.8]", "loads = [1.2]");
    let (workload, costs) = (Workload::parse(&text).unwrap(), costs());
    let trace = workload.trace(&costs, Load::Share(1.2)).unwrap();
    let ledger = simulate(Policy::Adaptive, &Fleet::from(&workload), &trace, &costs).unwrap();
    let high = waits_ms(&ledger, &trace, |job| job.priority == Priority::High && job.tenant == 0);
    let low = waits_ms(&ledger, &trace, |job| job.priority == Priority::Low);
    // The longest step, of a whole batch.
    let step_ms = 380;
    assert!(percentile(&high, 0.99) <= 3 * step_ms, "{} ms", percentile(&high, 0.99));
    assert!(percentile(&low, 0.95) > 20 * step_ms, "the fleet is not saturated: {} ms", percentile(&low, 0.95));
}

#[test]
fn a_full_queue_is_done_as_fast_as_by_batches_of_requests() {
    for text in [WORKLOAD, FLOOD] {
        let (workload, costs) = (Workload::parse(text).unwrap(), costs());
        let trace = workload.trace(&costs, Load::All(Saturated::Saturated)).unwrap();
        let span_us = |policy| {
            let ledger = simulate(policy, &Fleet::from(&workload), &trace, &costs).unwrap();
            ledger.finished_us.iter().max().copied().unwrap()
        };
        let (ours, request_level) = (span_us(Policy::Adaptive), span_us(Policy::Triton));
        assert!(ours <= request_level, "{ours} µs, {request_level} µs under Triton");
    }
}

#[test]
fn the_load_is_a_share_of_what_the_fleet_can_do() {
    let text = WORKLOAD.replace("jobs = 600", "jobs = 50_000");
    let (costs, workload) = (costs(), Workload::parse(&text).unwrap());
    let trace = workload.trace(&costs, Load::Share(0.7)).unwrap();
    let span_us = trace.jobs.last().unwrap().arrived_us as f64;
    let best_us = |job: &Job| {
        let step_us = (1..=8).map(|images| costs.step(job.key, images).as_micros() as f64 / f64::from(images));
        let step_us = step_us.fold(f64::INFINITY, f64::min);
        let other_us = (costs.encode() + costs.decode(job.key)).as_micros() as f64;
        f64::from(job.images) * (other_us + f64::from(job.steps) * step_us)
    };
    let share = trace.jobs.iter().map(best_us).sum::<f64>() / (3.0 * span_us);
    assert!((share - 0.7).abs() < 0.02, "{share}");
    let of_b = trace.jobs.iter().filter(|job| job.tenant == 1).count();
    assert_eq!(of_b, 15_000);
}

#[test]
fn percentiles_and_fairness_of_what_one_can_count() {
    let sorted: Vec<u64> = (1..=100).collect();
    assert_eq!([0.0, 0.5, 0.95, 0.99, 1.0].map(|share| percentile(&sorted, share)), [1, 50, 95, 99, 100]);
    assert_eq!((percentile(&[], 0.5), percentile(&[4], 0.01)), (0, 4));
    assert_eq!(jain(&[5.0, 5.0, 5.0]), Some(1.0));
    assert_eq!(jain(&[1.0, 0.0, 0.0, 0.0]), Some(0.25));
    assert_eq!(jain(&[1.0, 3.0]), Some(0.8));
    assert_eq!(jain(&[0.0, 0.0]), None);
}

#[test]
fn fairness_counts_what_tenants_got_for_their_weight_while_both_waited() {
    let costs = costs();
    let both = |nth: u32| Job { tenant: nth % 2, ..job(0, 2) };
    let run = |weights: Vec<f64>, jobs: Vec<Job>| {
        let trace = Trace { jobs, tenants: vec!["a".to_owned(), "b".to_owned()], weights, window_us: 10_000_000 };
        let ledger = simulate(Policy::One, &fleet(1), &trace, &costs).unwrap();
        let report = Report::new(Policy::One, Load::SATURATED, 1, &ledger);
        (report.jain.map(|jain| (jain * 20.0).round() / 20.0), report.jain_windows)
    };
    // They alternate, so each gets half; 100 jobs of 230 ms fill two windows of ten seconds.
    assert_eq!(run(vec![1.0, 1.0], (0..100).map(both).collect()), (Some(1.0), 2));
    assert_eq!(run(vec![1.0, 3.0], (0..100).map(both).collect()), (Some(0.8), 2));
    // The second is behind the first and gets nothing, until the first has nothing left to wait for.
    let behind = |nth: u32| Job { tenant: nth / 50, ..job(0, 2) };
    assert_eq!(run(vec![1.0, 1.0], (0..100).map(behind).collect()), (Some(0.5), 1));
    assert_eq!(run(vec![1.0, 1.0], (0..100).map(|_| both(0)).collect()), (None, 0));
}

#[test]
fn plots_are_svg() {
    let workload = Workload::parse(&WORKLOAD.replace("loads = [", "loads = [0.5, ")).unwrap();
    let reports = compare(&workload, &costs(), &[Policy::One, Policy::Fixed], |_, _| {}).unwrap();
    let plots = plots("tiny", &reports);
    let names: Vec<&str> = plots.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["tiny-total-50.svg", "tiny-total-70.svg", "tiny-total-allatonce.svg", "tiny-p95.svg"]);
    for (name, svg) in &plots {
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{name}");
        assert_eq!(svg.matches("<polyline").count(), 2, "{name}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}");
    }
}

#[test]
fn the_workloads_that_come_along_can_be_replayed() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/workloads");
    let mut found = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let mut workload = Workload::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!(path.file_stem().unwrap().to_str(), Some(workload.name.as_str()));
            workload.jobs = 50;
            workload.workers = 2;
            let costs = Costs::named(&workload.costs).unwrap();
            compare(&workload, &costs, Policy::ALL, |_, _| {}).unwrap();
            found += 1;
        }
    }
    assert!(found > 4, "{found}");
}

#[test]
fn workloads_that_make_no_sense_are_refused() {
    for (good, bad) in [
        ("workers = 3", "workers = 0"),
        ("loads = [0.7, \"saturated\"]", "loads = [0]"),
        ("loads = [0.7, \"saturated\"]", "loads = [\"much\"]"),
        ("[[1, 0.8], [3, 0.2]]", "[[9, 1]]"),
        ("[[2, 0.5], [5, 0.5]]", "[[2, 0]]"),
        ("\"high\"", "\"urgent\""),
        ("share = 0.3", "share = -1"),
        ("burst = 20", "burst = 0"),
        ("seed = 7", "seed = 7\nsed = 8"),
    ] {
        assert!(Workload::parse(&WORKLOAD.replace(good, bad)).is_err(), "{bad}");
    }
    let unknown = Workload::parse(&WORKLOAD.replace("[128, 0.2]", "[96, 0.2]")).unwrap();
    assert!(unknown.trace(&costs(), Load::SATURATED).is_err());
}

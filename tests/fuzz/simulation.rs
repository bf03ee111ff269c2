//! Workloads and cost tables of the simulator.

use darkroom::simulation::costs::Costs;
use darkroom::simulation::policy::Policy;
use darkroom::simulation::workload::Workload;
use darkroom::simulation::{ComparisonError, compare};

/// What is larger takes longer and shows no more.
const JOBS_MAX: u32 = 60;
const WORKERS_MAX: u32 = 20;
const LOADS_MAX: usize = 4;

fn texts(directory: &str) -> Vec<Vec<u8>> {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let paths = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|found| found == "toml")).collect();
    paths.sort();
    paths.into_iter().map(|path| std::fs::read(path).unwrap()).collect()
}

pub(crate) fn workloads() -> Vec<Vec<u8>> {
    let of_few_jobs = |text: Vec<u8>| {
        let text = String::from_utf8(text).unwrap();
        let lines = text.lines().map(|line| if line.starts_with("jobs = ") { "jobs = 40" } else { line });
        lines.collect::<Vec<_>>().join("\n").into_bytes()
    };
    texts("docs/workloads").into_iter().map(of_few_jobs).collect()
}

pub(crate) fn tables() -> Vec<Vec<u8>> {
    texts("docs/workloads/costs")
}

pub(crate) fn workload(bytes: &[u8]) {
    let Ok(workload) = Workload::parse(&String::from_utf8_lossy(bytes)) else { return };
    if workload.jobs > JOBS_MAX || workload.workers > WORKERS_MAX || workload.loads.len() > LOADS_MAX {
        return;
    }
    let Ok(costs) = Costs::named(&workload.costs) else { return };
    for load in &workload.loads {
        let Ok(trace) = workload.trace(&costs, *load) else { continue };
        assert_eq!(trace.jobs.len(), workload.jobs as usize);
        assert!(trace.jobs.is_sorted_by_key(|job| job.arrived_us));
        assert!(
            trace
                .jobs
                .iter()
                .all(|job| job.deadline_us >= job.arrived_us && job.images <= workload.images_in_batch_max)
        );
        assert_eq!((trace.tenants.len(), trace.weights.len()), (workload.tenants.len(), workload.tenants.len()));
    }
    match compare(&workload, &costs, Policy::ALL, |_, _| {}) {
        Ok(reports) => assert_eq!(reports.len(), Policy::ALL.len() * workload.loads.len()),
        Err(ComparisonError::Workload(_)) => {}
        Err(error) => panic!("{error:?}"),
    }
}

pub(crate) fn costs(bytes: &[u8]) {
    let Ok(costs) = Costs::parse(&String::from_utf8_lossy(bytes)) else { return };
    for side in [0, 512, 1024] {
        let key = darkroom::sched::BatchKey { width: side, height: side };
        for images in [0, 1, 3, 8, 1000, u32::MAX] {
            costs.step(key, images);
        }
        costs.decode(key);
        assert!(costs.knows(key) || costs.decode(key).is_zero());
    }
}

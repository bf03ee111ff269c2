//! The books of one run: when each job began and ended, what every GPU second was spent on, and for whom.

use super::SimulationError;
use super::costs::Costs;
use super::workload::{Job, Trace};

/// Not yet.
const NEVER: u64 = u64::MAX;

/// The part of a batch that is one job's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) job: u32,
    pub(super) images: u32,
    /// Steps that it wants; more are waste.
    pub(super) steps: u32,
}

/// What happened in one run.
#[derive(Clone, Debug)]
pub struct Ledger<'a> {
    pub(super) trace: &'a Trace,
    costs: &'a Costs,
    /// When the first step of each job began, in microseconds.
    pub started_us: Vec<u64>,
    /// When that was to begin as far as one could tell when it arrived; `u64::MAX` where nobody could.
    pub estimated_start_us: Vec<u64>,
    /// When each job's images were stored and its event published, in microseconds.
    pub finished_us: Vec<u64>,
    /// Jobs that are finished.
    pub jobs_finished: u32,
    /// All GPUs together worked so long, in microseconds.
    pub busy_us: u64,
    /// Of that, steps that nobody wanted, in nanoseconds.
    pub wasted_ns: u64,
    /// The rest, by tenant, in nanoseconds.
    pub service_ns: Vec<u64>,
    /// Prompts encoded, one for each image.
    pub encodes: u64,
    /// Images decoded.
    pub decodes: u64,
    /// Steps, of however many images.
    pub steps: u64,
    /// Steps times images that wanted them.
    pub image_steps: u64,
    /// By window, then tenant, in nanoseconds.
    pub(super) windows_ns: Vec<f64>,
}

impl<'a> Ledger<'a> {
    pub(super) fn new(trace: &'a Trace, costs: &'a Costs) -> Self {
        Self {
            trace,
            costs,
            started_us: vec![NEVER; trace.jobs.len()],
            estimated_start_us: vec![NEVER; trace.jobs.len()],
            finished_us: vec![NEVER; trace.jobs.len()],
            jobs_finished: 0,
            busy_us: 0,
            wasted_ns: 0,
            service_ns: vec![0; trace.tenants.len()],
            encodes: 0,
            decodes: 0,
            steps: 0,
            image_steps: 0,
            windows_ns: Vec::new(),
        }
    }

    pub(super) fn job(&self, job: u32) -> &'a Job {
        &self.trace.jobs[job as usize]
    }

    /// The prompts of so many images are encoded one after the other; answers how long that takes.
    pub(super) fn encode(&mut self, from_us: u64, job: u32, images: u32) -> u64 {
        self.encodes += u64::from(images);
        self.alone(from_us, job, u64::from(images) * self.costs.encode_us())
    }

    /// So many images are decoded one after the other; answers how long that takes.
    pub(super) fn decode(&mut self, from_us: u64, job: u32, images: u32) -> u64 {
        self.decodes += u64::from(images);
        self.alone(from_us, job, u64::from(images) * self.costs.decode_us(self.job(job).key))
    }

    fn alone(&mut self, from_us: u64, job: u32, took_us: u64) -> u64 {
        self.busy_us += took_us;
        self.serve(from_us, took_us, job, took_us * 1000);
        took_us
    }

    /// The members, all of one size, go through so many steps together; answers how long that takes.
    pub(super) fn step(&mut self, from_us: u64, members: &[Member], steps: u32) -> u64 {
        let Some(first) = members.first() else { return 0 };
        let images: u32 = members.iter().map(|member| member.images).sum();
        let step_us = self.costs.step_us(self.job(first.job).key, images);
        self.busy_us += step_us * u64::from(steps);
        self.steps += u64::from(steps);
        for member in members {
            let begun = &mut self.started_us[member.job as usize];
            *begun = from_us.min(*begun);
            let share_ns = step_us * 1000 * u64::from(member.images) / u64::from(images);
            let wanted = u64::from(member.steps.min(steps));
            self.image_steps += wanted * u64::from(member.images);
            self.wasted_ns += share_ns * (u64::from(steps) - wanted);
            self.serve(from_us, step_us * wanted, member.job, share_ns * wanted);
        }
        step_us * u64::from(steps)
    }

    fn serve(&mut self, from_us: u64, took_us: u64, job: u32, ns: u64) {
        let tenants = self.trace.tenants.len();
        let tenant = self.job(job).tenant as usize;
        self.service_ns[tenant] += ns;
        let window_us = self.trace.window_us;
        let (first, last) = (from_us / window_us, from_us.saturating_add(took_us) / window_us);
        let needed = (last as usize + 1) * tenants;
        if self.windows_ns.len() < needed {
            self.windows_ns.resize(needed, 0.0);
        }
        for window in first..=last {
            let (begin, end) = (from_us.max(window * window_us), (from_us + took_us).min((window + 1) * window_us));
            let part = if first == last { 1.0 } else { (end - begin) as f64 / took_us as f64 };
            self.windows_ns[window as usize * tenants + tenant] += ns as f64 * part;
        }
    }

    /// The job is done for whoever waits for it.
    pub(super) fn finish(&mut self, at_us: u64, job: u32) -> Result<(), SimulationError> {
        let finished = &mut self.finished_us[job as usize];
        if *finished != NEVER {
            return Err(SimulationError::FinishedTwice { job });
        }
        *finished = at_us;
        self.jobs_finished += 1;
        Ok(())
    }

    pub(super) fn is_done(&self) -> bool {
        self.jobs_finished as usize == self.trace.jobs.len()
    }

    pub(super) fn close(self) -> Result<Self, SimulationError> {
        match self.finished_us.iter().zip(0..).find(|(finished, _)| **finished == NEVER) {
            Some((_, job)) => Err(SimulationError::Unfinished { job }),
            None => Ok(self),
        }
    }
}

//! A model of the bucket with the jobs' records, of the event stream and of the dead letters.
//!
//! It follows the shell's rules for claims; states change through [`JobState`] alone.

use std::collections::{BTreeMap, BTreeSet};

use darkroom::job::{Fault, FaultCode, JobState, JobStep, Status, WorkerId};
use darkroom::sched::{Acted, Claim, RecordChange, Transition};

/// A job's record.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) state: JobState,
    pub(crate) digest: u64,
    pub(crate) sequence: u64,
    /// Steps saved, by image.
    pub(crate) saved: BTreeMap<u32, u32>,
    revision: u64,
}

impl Record {
    /// What proves that nobody else changed it.
    pub(crate) fn fence(&self) -> u64 {
        self.revision
    }
}

/// Who claims what.
#[derive(Clone, Debug)]
pub(crate) struct Claimant {
    pub(crate) job: u32,
    pub(crate) digest: u64,
    pub(crate) sequence: u64,
    pub(crate) count: u64,
    pub(crate) worker: WorkerId,
}

/// All that the bus keeps of jobs, but the requests.
#[derive(Debug, Default)]
pub(crate) struct Records {
    records: BTreeMap<u32, Record>,
    revisions: u64,
    damaged: BTreeSet<u32>,
    /// Terminal events, by job.
    pub(crate) events: BTreeMap<u32, Vec<Status>>,
    /// Messages that lie in the dead-letter stream.
    pub(crate) dead_letters: BTreeSet<u64>,
}

impl Records {
    pub(crate) fn new(damaged: Vec<u32>) -> Self {
        Self { damaged: BTreeSet::from_iter(damaged), ..Self::default() }
    }

    pub(crate) fn get(&self, job: u32) -> Option<&Record> {
        self.records.get(&job)
    }

    pub(crate) fn is_damaged(&self, job: u32) -> bool {
        self.damaged.contains(&job)
    }

    fn put(&mut self, job: u32, record: Record) -> u64 {
        self.revisions += 1;
        self.records.insert(job, Record { revision: self.revisions, ..record });
        self.revisions
    }

    /// The answer, and the revision that is the fence.
    pub(crate) fn claim(&mut self, claimant: &Claimant) -> (Acted, Option<u64>) {
        let Claimant { job, digest, sequence, count, worker } = claimant;
        if self.is_damaged(*job) {
            return (Acted::Failed(Fault::reject(FaultCode::JobIdConflict, "damaged record")), None);
        }
        let saved = BTreeMap::new();
        let fresh = Record { state: JobState::accepted(), digest: *digest, sequence: *sequence, saved, revision: 0 };
        let found = self.records.get(job).cloned().unwrap_or(fresh);
        let another_message = found.sequence != *sequence;
        let another_holder = found.state.worker.as_ref().is_some_and(|holder| holder != worker);
        let claim = if found.digest != *digest {
            Claim::Conflict
        } else if found.state.status.is_terminal() {
            Claim::Ended { dead_letter: found.state.status == Status::Failed && !another_message }
        } else if another_message {
            Claim::Duplicate
        } else if another_holder && *count <= 1 {
            Claim::HeldElsewhere
        } else {
            let Ok(state) = found.state.next(JobStep::Claim { worker: worker.clone() }) else {
                return (Acted::Lost, None);
            };
            let (failures, deaths, stopping) = (state.failures, state.deaths, state.stopping);
            let revision = self.put(*job, Record { state, ..found });
            return (Acted::Claimed(Claim::Won { failures, deaths, stopping }), Some(revision));
        };
        (Acted::Claimed(claim), None)
    }

    /// What became of a job that `worker` claimed.
    pub(crate) fn change_of(&self, job: u32, worker: &WorkerId) -> Option<RecordChange> {
        let Record { state, .. } = self.records.get(&job)?;
        match state.status {
            Status::Cancelled => Some(RecordChange::Cancelled),
            Status::Processing if state.worker.as_ref() == Some(worker) => {
                state.stopping.then_some(RecordChange::Stopping)
            }
            Status::Pending | Status::Processing | Status::Completed | Status::Failed => Some(RecordChange::Taken),
        }
    }

    /// Whether the record is still the holder's, whatever else was written into it; else what to tell the holder.
    fn owned(&self, job: u32, fence: Option<u64>, worker: &WorkerId) -> Result<Record, Acted> {
        let Some(found) = self.records.get(&job) else { return Err(Acted::Lost) };
        let is_held = found.state.status == Status::Processing && found.state.worker.as_ref() == Some(worker);
        match found.state.status {
            Status::Cancelled => Err(Acted::Ended),
            Status::Processing if fence == Some(found.revision) || is_held => Ok(found.clone()),
            Status::Pending | Status::Processing | Status::Completed | Status::Failed => Err(Acted::Lost),
        }
    }

    /// The holder saved rows.
    pub(crate) fn checkpoint(
        &mut self,
        job: u32,
        fence: Option<u64>,
        worker: &WorkerId,
        saved: &BTreeMap<u32, u32>,
    ) -> Acted {
        match self.owned(job, fence, worker) {
            Ok(found) => {
                self.put(job, Record { saved: saved.clone(), ..found });
                Acted::Done
            }
            Err(outcome) => outcome,
        }
    }

    /// The holder's step, by compare-and-set.
    pub(crate) fn change(&mut self, job: u32, fence: Option<u64>, worker: &WorkerId, transition: &Transition) -> Acted {
        let step = match transition {
            Transition::Complete => JobStep::Complete,
            Transition::Cancel => JobStep::Cancel,
            Transition::Fail(_) | Transition::Refuse => JobStep::Fail,
            Transition::Retry(_) => JobStep::Retry,
            Transition::GiveBack => JobStep::GiveBack,
        };
        let found = match self.owned(job, fence, worker) {
            Ok(found) => found,
            Err(outcome) => return outcome,
        };
        let Ok(state) = found.state.next(step) else { return Acted::Lost };
        let saved = if matches!(transition, Transition::Retry(_)) { BTreeMap::new() } else { found.saved.clone() };
        self.put(job, Record { state, saved, ..found });
        Acted::Done
    }

    /// A failed record for a malformed request, unless the id is taken.
    pub(crate) fn refuse(&mut self, job: u32, digest: u64, sequence: u64) -> Acted {
        let refused = JobState { status: Status::Failed, ..JobState::accepted() };
        match self.records.get(&job) {
            _ if self.is_damaged(job) => Acted::Lost,
            None => {
                self.put(job, Record { state: refused, digest, sequence, saved: BTreeMap::new(), revision: 0 });
                Acted::Done
            }
            Some(found) if found.digest == digest && found.state.status == Status::Failed => Acted::Done,
            Some(_) => Acted::Lost,
        }
    }

    /// A client's cancellation, whose author may vanish before the event; whether the job's end is this.
    pub(crate) fn cancel(&mut self, job: u32, and_publish: bool) -> bool {
        let Some(found) = self.records.get(&job).cloned() else { return false };
        let Ok(state) = found.state.next(JobStep::Cancel) else { return false };
        self.put(job, Record { state, ..found });
        if and_publish {
            self.publish(job, Status::Cancelled);
        }
        true
    }

    /// A client's wish that the holder stops and keeps what is there; whether there is a holder.
    pub(crate) fn stop(&mut self, job: u32) -> bool {
        let Some(found) = self.records.get(&job).cloned() else { return false };
        let Ok(state) = found.state.next(JobStep::Stop) else { return false };
        self.put(job, Record { state, ..found });
        true
    }

    /// Exactly once by subject.
    pub(crate) fn publish(&mut self, job: u32, status: Status) {
        let events = self.events.entry(job).or_default();
        if !events.contains(&status) {
            events.push(status);
        }
    }
}

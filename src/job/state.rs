//! The life of a job as one total transition function, used live and when a record is read back.
//!
//! | from \ step | claim | give back | retry | complete | fail | cancel | stop |
//! |---|---|---|---|---|---|---|---|
//! | pending | processing | – | – | – | failed | cancelled | – |
//! | processing | processing (taken over) | pending | pending, one failure more | completed | failed | cancelled | processing (stopping) |
//! | completed, failed, cancelled | – | – | – | – | – | – | – |
//!
//! It does not know who may take a step: that is the fence, the revision of the record in the bucket.

use std::fmt;
use std::str::FromStr;

use super::id::{InvalidToken, WorkerId};

macro_rules! word {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            /// Every value, in this order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl FromStr for $name {
            type Err = InvalidToken;

            fn from_str(text: &str) -> Result<Self, InvalidToken> {
                match text { $($text => Ok(Self::$variant),)+ _ => Err(InvalidToken) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(self.as_str())
            }
        }
    };
}

word! {
    /// Where a job stands, in the words that users read everywhere.
    Status {
        /// Accepted; no worker has it.
        Pending = "pending",
        /// A worker has it.
        Processing = "processing",
        /// Its images are stored.
        Completed = "completed",
        /// It will never have images; the error says why.
        Failed = "failed",
        /// Somebody stopped it.
        Cancelled = "cancelled",
    }
}

impl Status {
    /// Whether nothing will change any more.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Completed | Self::Failed | Self::Cancelled => true,
            Self::Pending | Self::Processing => false,
        }
    }
}

/// A job's state, with what must survive the process that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobState {
    /// Where it stands.
    pub status: Status,
    /// The worker that holds it; only while processing.
    pub worker: Option<WorkerId>,
    /// Times a worker claimed it, but for those it was given back from unharmed.
    pub attempts: u32,
    /// Attempts that ended in a failure of the world; crashes and hand-overs are not failures.
    pub failures: u32,
    /// Workers from which it was taken over, because they died or stood still for longer than their lease.
    pub deaths: u32,
    /// Somebody wants it stopped and what is there kept: whoever holds it stores that and cancels it.
    pub stopping: bool,
}

/// What can happen to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobStep {
    /// A worker takes it, from the queue or from a worker whose lease has run out.
    Claim {
        /// The new holder.
        worker: WorkerId,
    },
    /// The holder hands it back unharmed.
    GiveBack,
    /// The holder hands it back after a failure of the world.
    Retry,
    /// Its images are stored.
    Complete,
    /// It can never complete.
    Fail,
    /// Somebody wants it stopped, or who held it has stopped it.
    Cancel,
    /// Somebody wants it stopped, and what is there of its images kept.
    Stop,
}

/// A step that the state does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {} cannot {step}", status.as_str())]
pub struct IllegalStep {
    /// Where the job stands.
    pub status: Status,
    /// What was asked of it.
    pub step: JobStep,
}

impl fmt::Display for JobStep {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim { worker } => write!(formatter, "be claimed by {worker}"),
            Self::GiveBack => formatter.write_str("be given back"),
            Self::Retry => formatter.write_str("be retried"),
            Self::Complete => formatter.write_str("complete"),
            Self::Fail => formatter.write_str("fail"),
            Self::Cancel => formatter.write_str("be cancelled"),
            Self::Stop => formatter.write_str("be stopped"),
        }
    }
}

impl JobState {
    /// The state of a job that nobody has claimed yet.
    pub fn accepted() -> Self {
        Self { status: Status::Pending, worker: None, attempts: 0, failures: 0, deaths: 0, stopping: false }
    }

    /// The state after `step`.
    ///
    /// # Errors
    /// [`IllegalStep`] when the table above has no entry.
    pub fn next(&self, step: JobStep) -> Result<Self, IllegalStep> {
        let ended = |status| Self { status, worker: None, ..self.clone() };
        match (self.status, step) {
            (Status::Pending | Status::Processing, JobStep::Claim { worker }) => Ok(Self {
                deaths: self
                    .deaths
                    .saturating_add(u32::from(self.worker.as_ref().is_some_and(|holder| *holder != worker))),
                status: Status::Processing,
                worker: Some(worker),
                attempts: self.attempts.saturating_add(1),
                ..self.clone()
            }),
            (Status::Processing, JobStep::GiveBack) => {
                Ok(Self { attempts: self.attempts.saturating_sub(1), ..ended(Status::Pending) })
            }
            (Status::Processing, JobStep::Retry) => {
                Ok(Self { failures: self.failures.saturating_add(1), ..ended(Status::Pending) })
            }
            (Status::Processing, JobStep::Complete) => Ok(ended(Status::Completed)),
            (Status::Pending | Status::Processing, JobStep::Fail) => Ok(ended(Status::Failed)),
            (Status::Pending | Status::Processing, JobStep::Cancel) => Ok(ended(Status::Cancelled)),
            (Status::Processing, JobStep::Stop) => Ok(Self { stopping: true, ..self.clone() }),
            (Status::Pending, step @ (JobStep::GiveBack | JobStep::Retry | JobStep::Complete | JobStep::Stop))
            | (Status::Completed | Status::Failed | Status::Cancelled, step) => {
                Err(IllegalStep { status: self.status, step })
            }
        }
    }
}

word! {
    /// How urgent a request is.
    Priority {
        /// Before everything else.
        High = "high",
        /// The usual.
        Normal = "normal",
        /// When nothing else waits.
        Low = "low",
    }
}

word! {
    /// Which machines may run a request.
    Pool {
        /// Any, spot machines included.
        Any = "any",
        /// Only machines that are not taken away.
        OnDemand = "ondemand",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker() -> WorkerId {
        "w1".parse().unwrap()
    }

    fn state(status: Status) -> JobState {
        let worker = (status == Status::Processing).then(worker);
        JobState { status, worker, attempts: 2, failures: 1, deaths: 0, stopping: false }
    }

    #[test]
    fn the_table_is_the_function() {
        use Status::{Cancelled, Completed, Failed, Pending, Processing};
        let steps = [
            JobStep::Claim { worker: worker() },
            JobStep::GiveBack,
            JobStep::Retry,
            JobStep::Complete,
            JobStep::Fail,
            JobStep::Cancel,
            JobStep::Stop,
        ];
        let table = [
            (Pending, [Some(Processing), None, None, None, Some(Failed), Some(Cancelled), None]),
            (
                Processing,
                [
                    Some(Processing),
                    Some(Pending),
                    Some(Pending),
                    Some(Completed),
                    Some(Failed),
                    Some(Cancelled),
                    Some(Processing),
                ],
            ),
            (Completed, [None; 7]),
            (Failed, [None; 7]),
            (Cancelled, [None; 7]),
        ];
        for (from, row) in table {
            for (step, expected) in steps.iter().zip(row) {
                let next = state(from).next(step.clone());
                assert_eq!(next.as_ref().ok().map(|state| state.status), expected, "{from:?} {step:?}");
                if let Ok(next) = next {
                    assert_eq!(next.worker.is_some(), next.status == Processing, "{from:?} {step:?}");
                }
            }
        }
    }

    #[test]
    fn only_a_retry_counts_as_a_failure_and_what_is_given_back_is_no_attempt() {
        let processing = state(Status::Processing);
        assert_eq!(processing.next(JobStep::Retry).unwrap().failures, 2);
        assert_eq!(processing.next(JobStep::GiveBack).unwrap().failures, 1);
        assert_eq!(processing.next(JobStep::GiveBack).unwrap().attempts, 1);
        assert_eq!(processing.next(JobStep::Claim { worker: worker() }).unwrap().attempts, 3);
        assert_eq!(processing.next(JobStep::Complete).unwrap().attempts, 2);
    }

    #[test]
    fn what_shall_stop_stays_so_whoever_holds_it() {
        let stopping = state(Status::Processing).next(JobStep::Stop).unwrap();
        assert!(stopping.stopping);
        for step in [JobStep::Claim { worker: worker() }, JobStep::GiveBack, JobStep::Retry, JobStep::Stop] {
            assert!(stopping.next(step.clone()).unwrap().stopping, "{step:?}");
        }
    }

    #[test]
    fn only_what_is_taken_from_another_worker_counts_as_its_death() {
        let other = || JobStep::Claim { worker: "w2".parse().unwrap() };
        let processing = state(Status::Processing);
        assert_eq!(processing.next(JobStep::Claim { worker: worker() }).unwrap().deaths, 0);
        assert_eq!(processing.next(other()).unwrap().deaths, 1);
        assert_eq!(processing.next(JobStep::GiveBack).unwrap().next(other()).unwrap().deaths, 0);
    }
}

//! What went wrong, and whose fault it is: the only input to the retry policy.
//!
//! A fault is classified by the module that understands it; nothing downstream looks at its message.

use std::fmt;

/// Who has to change before the same work can succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultClass {
    /// The request is wrong: fail the job.
    Reject,
    /// The world is wrong: give the message back with a delay, and count the failure.
    Retry,
    /// This process is wrong: give every lease back and exit non-zero.
    Fatal,
}

/// Stable names of faults, as they appear in events and dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultCode {
    /// The body, the headers or the subject break the rules of requests.
    InvalidRequest,
    /// The job id is taken by a different request.
    JobIdConflict,
    /// No consumer serves the subject that the request was published to.
    Unserved,
    /// The job could not be done by its deadline.
    DeadlineExceeded,
    /// The engine failed at a stage of this job.
    EngineFailed,
    /// The device has not enough memory for this job.
    OutOfMemory,
    /// The result is not a picture: the latents hold NaN or infinity.
    NotFinite,
    /// The object store refused or did not answer.
    StoreFailed,
    /// A picture that the request points to did not arrive.
    FetchFailed,
    /// NATS refused or did not answer.
    BusFailed,
    /// Workers died or stood still with this job.
    WorkersLost,
    /// The engine thread is gone.
    EngineLost,
    /// The server delivered the request as often as its consumer allows, and nobody ended it.
    DeliveriesExhausted,
    /// The request is not in the stream any more, although its job has not ended.
    RequestLost,
    /// The job has a record, and its request was never published.
    NeverPublished,
}

impl FaultCode {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::JobIdConflict => "job_id_conflict",
            Self::Unserved => "unserved",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::EngineFailed => "engine_failed",
            Self::OutOfMemory => "out_of_memory",
            Self::NotFinite => "not_finite",
            Self::StoreFailed => "store_failed",
            Self::FetchFailed => "fetch_failed",
            Self::BusFailed => "bus_failed",
            Self::WorkersLost => "workers_lost",
            Self::EngineLost => "engine_lost",
            Self::DeliveriesExhausted => "deliveries_exhausted",
            Self::RequestLost => "request_lost",
            Self::NeverPublished => "never_published",
        }
    }
}

/// One thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Who has to change.
    pub class: FaultClass,
    /// What it is called on the wire.
    pub code: FaultCode,
    /// One sentence for people, with the causes, never a prompt or a secret.
    pub message: String,
}

impl Fault {
    /// A fault of the request.
    pub fn reject(code: FaultCode, message: impl Into<String>) -> Self {
        Self { class: FaultClass::Reject, code, message: message.into() }
    }

    /// A fault of the world.
    pub fn retry(code: FaultCode, message: impl Into<String>) -> Self {
        Self { class: FaultClass::Retry, code, message: message.into() }
    }

    /// A fault of this process.
    pub fn fatal(code: FaultCode, message: impl Into<String>) -> Self {
        Self { class: FaultClass::Fatal, code, message: message.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.code.as_str(), self.message)
    }
}

impl std::error::Error for Fault {}

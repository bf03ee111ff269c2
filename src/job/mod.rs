//! What a job is: identifiers, the validated specification, the state machine, faults and limits.
//!
//! Nothing here does I/O, reads a clock, is async or can be serialised: `wire` owns every format.

pub mod fault;
pub mod id;
pub mod limits;
pub mod model;
pub mod spec;
pub mod state;

pub use fault::{Fault, FaultClass, FaultCode};
pub use id::{InvalidToken, JobId, ModelName, Tenant, WorkerId};
pub use model::{Defaults, ModelLimits, ModelManifest};
pub use spec::{Draft, ImageSpec, JobSpec, OutputFormat, Rng, SamplerKind, Violation};
pub use state::{IllegalStep, JobState, JobStep, Pool, Priority, Status};

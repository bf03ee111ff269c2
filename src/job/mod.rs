//! What a job is: identifiers, the validated specification, the state machine, faults and limits.
//!
//! Nothing here does I/O, reads a clock, is async or can be serialised: `wire` owns every format.

pub mod capacity;
pub mod fault;
pub mod id;
pub mod limits;
pub mod model;
pub mod options;
pub mod spec;
pub mod state;
pub mod webhook;

pub use capacity::{Capacity, UnknownCapacity};
pub use fault::{Fault, FaultClass, FaultCode};
pub use id::{InvalidToken, JobId, LoraName, ModelName, Tenant, WorkerId};
pub use model::{Defaults, ModelLimits, ModelManifest, Task};
pub use options::{
    Deadline, FeatureCache, LongPrompt, LoraChoice, OnLate, PictureSource, PromptOptions, Rng, Sizes, Start, Weighting,
};
pub use spec::{Draft, ImageSpec, JobSpec, OutputFormat, SamplerKind, SigmaSpacing, Violation};
pub use state::{IllegalStep, JobState, JobStep, Pool, Priority, Status};
pub use webhook::{InvalidWebhookUrl, Undelivered, Webhook, WebhookEvent, WebhookFormat, WebhookUrl};

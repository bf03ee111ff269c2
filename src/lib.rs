//! Darkroom: text-to-image diffusion as a serverless, event-driven function over NATS JetStream.
//!
//! Modules in reading order, each allowed to import only those before it (and `shell` all of them):
//!
//! * [`job`]: what a job is: ids, the checked specification, its states, faults, limits.
//! * [`sched`]: the scheduler is a value: what to pull, batch, extend, store and settle, and when.
//! * [`simulation`]: a fleet in virtual time, under this scheduler and under other policies.
//! * [`wire`]: the bus protocol: subjects, headers, requests, events, records, object keys.
//! * `engine`: candle behind a trait without tensors.
//! * `shell`: NATS, object storage, telemetry, the clock, the engine's thread and the one event loop.

pub mod job;
pub mod sched;
pub mod simulation;
pub mod wire;

#[cfg(feature = "engine")]
pub mod engine;
#[cfg(feature = "shell")]
pub mod shell;

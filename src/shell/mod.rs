//! The imperative shell: NATS, object storage, telemetry, the clock, the engine's thread and the event loop.
//!
//! It carries out what `sched` decides and translates with `wire`; it holds no policy of its own.

pub mod accounts;
pub mod advisories;
pub mod api_keys;
pub mod bus;
pub mod cancel;
pub mod client;
pub mod clock;
pub mod config;
pub mod consume;
pub mod costs;
pub mod dead_letters;
pub mod deadletter;
pub mod ending;
pub mod events;
pub mod exposition;
pub mod fleet;
pub mod function;
pub mod gpu;
pub mod guard;
#[cfg(feature = "gateway")]
pub mod http;
pub mod inputs;
pub mod loras;
pub mod metrics;
pub mod model_cache;
pub mod outlook;
pub mod reconciler;
pub mod records;
pub mod scaler;
pub mod service;
pub mod shutdown;
pub mod spot;
pub mod store;
pub mod stored;
pub mod supervisor;
pub mod telemetry;
pub mod topology;
pub mod usage;
pub mod webhooks;
pub mod writable;

#[cfg(feature = "engine")]
pub mod engine_thread;
#[cfg(feature = "engine")]
mod failpoint;
#[cfg(feature = "engine")]
pub mod fetch;
#[cfg(feature = "engine")]
pub mod worker;

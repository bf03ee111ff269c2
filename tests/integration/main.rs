//! Darkroom against the real thing: nats-server, an S3 server, an OTLP receiver, and its own programs as processes.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod bad_input;
mod cancel;
mod checkpoints;
mod cli;
mod clients;
mod cluster;
mod contract;
mod costs;
mod dlq;
mod estimates;
mod faces;
mod faults;
mod hostile;
mod http;
mod main_job;
mod model_cache;
mod pictures;
mod reconcile;
mod retention;
mod scaler;
mod scraped;
mod stack;
mod stores;
mod telemetry;
mod tenants;
mod tls;
mod told;
mod up;
mod urgency;
mod webhooks;

#[path = "../support/mod.rs"]
mod support;

//! The fault laboratory: what the promises are worth when workers, servers, networks and stores break.
//!
//! A scenario breaks something in a [`laboratory`] and asks the [`checker`] about the [`history`]. Which scenarios there are,
//! and where each is tested, stands in `docs/faults.md`.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "tests, which tell what they measured")]

mod checker;
mod history;
#[allow(dead_code, reason = "the random faults use the rest")]
mod laboratory;
mod planted;
mod proxy;
mod scenarios;
#[path = "../integration/stack.rs"]
#[allow(dead_code, reason = "the integration tests use the rest")]
mod stack;
#[path = "../support/mod.rs"]
mod support;

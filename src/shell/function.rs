//! The process of a function that computes nothing: a runtime of one thread, telemetry, an exit status.
//!
//! What the function does is not known here.

use std::fmt::Display;
use std::process::ExitCode;

use super::telemetry;

/// Runs the function called `name` to its end, and says on standard error why it failed.
pub fn run<E: Display>(name: &'static str, work: impl Future<Output = Result<(), E>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure(name, &format!("no runtime: {error}")),
    };
    let telemetry = match telemetry::start(name, "info") {
        Ok(telemetry) => telemetry,
        Err(error) => return failure(name, &super::bus::chain(&error)),
    };
    let outcome = runtime.block_on(work);
    telemetry.flush();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // With its causes, where it has them.
        Err(error) => failure(name, &format!("{error:#}")),
    }
}

#[expect(clippy::print_stderr, reason = "telemetry may not be there to say it")]
fn failure(name: &str, why: &str) -> ExitCode {
    eprintln!("{name}: {why}");
    ExitCode::FAILURE
}

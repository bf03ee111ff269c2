//! The process of a function: a runtime, telemetry, an exit status.
//!
//! What the function does is not known here.

use std::fmt::Display;
use std::io;
use std::process::ExitCode;

use tokio::runtime::{Builder, Runtime};

use super::exposition::ExpositionOptions;
use super::telemetry::{self, Scraped};

/// Runs the function called `name` to its end on this thread, and says on standard error why it failed.
pub fn run<E: Display>(
    name: &'static str,
    exposition: ExpositionOptions,
    work: impl Future<Output = Result<(), E>>,
) -> ExitCode {
    run_on(name, exposition, Builder::new_current_thread().enable_all().build(), work)
}

/// The same on two threads, for one whose engine has threads of its own. One that hangs is not waited for.
pub fn run_beside_engine<E: Display>(
    name: &'static str,
    exposition: ExpositionOptions,
    work: impl Future<Output = Result<(), E>>,
) -> ExitCode {
    run_on(name, exposition, Builder::new_multi_thread().worker_threads(2).enable_all().build(), work)
}

fn run_on<E: Display>(
    name: &'static str,
    exposition: ExpositionOptions,
    runtime: io::Result<Runtime>,
    work: impl Future<Output = Result<(), E>>,
) -> ExitCode {
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return failure(name, &format!("no runtime: {error}")),
    };
    let telemetry = match telemetry::start(name, "info", scraped(exposition)) {
        Ok(telemetry) => telemetry,
        Err(error) => return failure(name, &super::bus::chain(&error)),
    };
    let outcome = runtime.block_on(work);
    telemetry.flush();
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // With its causes, where it has them.
        Err(error) => failure(name, &format!("{error:#}")),
    }
}

/// Who reads metrics of a process that is watched so.
fn scraped(exposition: ExpositionOptions) -> Scraped {
    if exposition.metrics_listen.is_some() { Scraped::ByPrometheus } else { Scraped::Never }
}

#[expect(clippy::print_stderr, reason = "telemetry may not be there to say it")]
fn failure(name: &str, why: &str) -> ExitCode {
    eprintln!("{name}: {why}");
    ExitCode::FAILURE
}

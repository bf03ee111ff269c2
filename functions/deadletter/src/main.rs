//! The `deadletter` function: ends jobs that no worker will end, so that nothing waits silently.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use darkroom::shell::config::BusOptions;
use darkroom::shell::deadletter::DeadletterOptions;
use darkroom::shell::{bus, deadletter, shutdown, telemetry};

/// Fails requests that no consumer serves or delivers any more, keeps them as dead letters, and mends what queue, records and
/// events of jobs disagree on.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(flatten)]
    bus: BusOptions,
    #[command(flatten)]
    deadletter: DeadletterOptions,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime").and_then(|runtime| {
            let telemetry = telemetry::start("darkroom-deadletter", "info")?;
            let outcome = runtime.block_on(run(options));
            telemetry.flush();
            outcome
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure(&error),
    }
}

async fn run(options: Options) -> anyhow::Result<()> {
    let stop = shutdown::on_signal().context("signals cannot be handled")?;
    let bus = bus::connect(&options.bus, "darkroom-deadletter").await?;
    Box::pin(deadletter::run(bus, options.deadletter, stop)).await?;
    Ok(())
}

#[expect(clippy::print_stderr, reason = "telemetry may not be there to say it")]
fn failure(error: &anyhow::Error) -> ExitCode {
    eprintln!("darkroom-deadletter: {error:#}");
    ExitCode::FAILURE
}

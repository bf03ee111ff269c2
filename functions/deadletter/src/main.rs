//! The `deadletter` function: fails requests that no consumer serves, so that nothing waits silently.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use darkroom::shell::config::BusOptions;
use darkroom::shell::{bus, deadletter, shutdown, telemetry};

/// Fails requests for models, priorities and pools that no consumer serves, and keeps them as dead letters.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(flatten)]
    bus: BusOptions,
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
    deadletter::run(bus, stop).await?;
    Ok(())
}

#[expect(clippy::print_stderr, reason = "telemetry may not be there to say it")]
fn failure(error: &anyhow::Error) -> ExitCode {
    eprintln!("darkroom-deadletter: {error:#}");
    ExitCode::FAILURE
}

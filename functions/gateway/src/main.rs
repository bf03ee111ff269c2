//! The `gateway` function: answers what clients ask for, and what tenants may not do for themselves.
//!
//! So far it speaks NATS request–reply. Stateless; as many as you like may run, and each request is answered by one of them.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use darkroom::shell::config::{BusOptions, Retention};
use darkroom::shell::{bus, service, shutdown, telemetry};

/// Answers requests of clients on `darkroom.api.>`.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(flatten)]
    bus: BusOptions,
    #[command(flatten)]
    retention: Retention,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime").and_then(|runtime| {
            let telemetry = telemetry::start("darkroom-gateway", "info")?;
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
    let bus = bus::connect(&options.bus, "darkroom-gateway").await?;
    service::run(bus, options.retention, stop).await?;
    Ok(())
}

#[expect(clippy::print_stderr, reason = "telemetry may not be there to say it")]
fn failure(error: &anyhow::Error) -> ExitCode {
    eprintln!("darkroom-gateway: {error:#}");
    ExitCode::FAILURE
}

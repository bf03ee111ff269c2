//! The `webhook` function: tells events of jobs to the receivers that their requests name, by HTTP.
//!
//! Stateless; several may run, and each may be killed at any moment.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use darkroom::shell::config::BusOptions;
use darkroom::shell::webhooks::WebhookOptions;
use darkroom::shell::{bus, shutdown, telemetry, webhooks};

/// Delivers webhooks, signed by Standard Webhooks 1.0, and tries again what fails.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(flatten)]
    bus: BusOptions,
    #[command(flatten)]
    webhook: WebhookOptions,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime").and_then(|runtime| {
            let telemetry = telemetry::start("darkroom-webhook", "info")?;
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
    let bus = bus::connect(&options.bus, "darkroom-webhook").await?;
    webhooks::run(bus, options.webhook, stop).await?;
    Ok(())
}

#[expect(clippy::print_stderr, reason = "telemetry may not be there to say it")]
fn failure(error: &anyhow::Error) -> ExitCode {
    eprintln!("darkroom-webhook: {error:#}");
    ExitCode::FAILURE
}

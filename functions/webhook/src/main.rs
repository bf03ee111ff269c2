//! The `webhook` function: tells events of jobs to the receivers that their requests name, by HTTP.
//!
//! Stateless; several may run, and each may be killed at any moment.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use darkroom::shell::config::BusOptions;
use darkroom::shell::exposition::{self, ExpositionOptions};
use darkroom::shell::webhooks::WebhookOptions;
use darkroom::shell::{bus, function, shutdown, webhooks};

/// Delivers webhooks, signed by Standard Webhooks 1.0, and tries again what fails.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(flatten)]
    bus: BusOptions,
    #[command(flatten)]
    exposition: ExpositionOptions,
    #[command(flatten)]
    webhook: WebhookOptions,
}

fn main() -> ExitCode {
    let options = Options::parse();
    function::run("darkroom-webhook", options.exposition, run(options))
}

async fn run(options: Options) -> anyhow::Result<()> {
    let stop = shutdown::on_signal().context("signals cannot be handled")?;
    let bus = bus::connect(&options.bus, "darkroom-webhook").await?;
    exposition::start(options.exposition, &bus).await?;
    webhooks::run(bus, options.webhook, stop).await?;
    Ok(())
}

//! The `deadletter` function: ends jobs that no worker will end, so that nothing waits silently.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use darkroom::shell::config::BusOptions;
use darkroom::shell::deadletter::DeadletterOptions;
use darkroom::shell::exposition::{self, ExpositionOptions};
use darkroom::shell::{bus, deadletter, function, shutdown};

/// Fails requests that no consumer serves or delivers any more, keeps them as dead letters, and mends what queue, records and
/// events of jobs disagree on.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(flatten)]
    bus: BusOptions,
    #[command(flatten)]
    exposition: ExpositionOptions,
    #[command(flatten)]
    deadletter: DeadletterOptions,
}

fn main() -> ExitCode {
    let options = Options::parse();
    function::run("darkroom-deadletter", options.exposition, run(options))
}

async fn run(options: Options) -> anyhow::Result<()> {
    let stop = shutdown::on_signal().context("signals cannot be handled")?;
    let bus = bus::connect(&options.bus, "darkroom-deadletter").await?;
    exposition::start(options.exposition, &bus).await?;
    Box::pin(deadletter::run(bus, options.deadletter, stop)).await?;
    Ok(())
}

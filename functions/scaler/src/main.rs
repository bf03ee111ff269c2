//! The `scaler` function: says how many workers and functions there should be, to KEDA or to whoever asks over HTTP.
//!
//! It starts and ends nothing. One is enough; while it is gone, what runs goes on.

mod keda;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use darkroom::shell::config::BusOptions;
use darkroom::shell::exposition::{self, ExpositionOptions};
use darkroom::shell::scaler::{self, Scaler, ScalerOptions};
use darkroom::shell::{bus, function, shutdown};

/// Answers KEDA (external scaler over gRPC, and metrics-api over HTTP) from predicted engine time, not from numbers of messages.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(flatten)]
    bus: BusOptions,
    #[command(flatten)]
    exposition: ExpositionOptions,
    #[command(flatten)]
    scaler: ScalerOptions,
    /// Address and port to answer KEDA's gRPC calls on
    #[arg(long, env = "DARKROOM_SCALER_LISTEN", default_value = "127.0.0.1:6000", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Address and port to answer HTTP on; none when absent
    #[arg(long, env = "DARKROOM_SCALER_HTTP_LISTEN", value_name = "ADDRESS")]
    http_listen: Option<SocketAddr>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    function::run("darkroom-scaler", options.exposition, run(options))
}

async fn run(options: Options) -> anyhow::Result<()> {
    let stop = shutdown::on_signal().context("signals cannot be handled")?;
    let bus = bus::connect(&options.bus, "darkroom-scaler").await?;
    exposition::start(options.exposition, &bus).await?;
    let scaler = Scaler::start(bus.clone(), options.scaler, stop.clone()).await?;
    let over_http = async {
        match options.http_listen {
            Some(address) => scaler::serve_http(scaler.clone(), address, stop.clone())
                .await
                .with_context(|| format!("--http-listen: {address} cannot be listened on")),
            None => Ok(()),
        }
    };
    let over_grpc = async {
        keda::serve(bus, scaler.clone(), options.listen, stop.clone())
            .await
            .with_context(|| format!("--listen: {} cannot be listened on", options.listen))
    };
    tokio::try_join!(over_http, over_grpc)?;
    Ok(())
}

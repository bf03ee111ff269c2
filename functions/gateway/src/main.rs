//! The `gateway` function: answers what clients ask for, and what tenants may not do for themselves.
//!
//! It speaks NATS request–reply, and HTTP where it is told to listen. Stateless; as many as you like may run, and each request is answered by one of them.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use darkroom::shell::config::{BusOptions, Retention, StoreOptions, parse_duration};
use darkroom::shell::exposition::{self, ExpositionOptions};
use darkroom::shell::http::{self, HttpOptions};
use darkroom::shell::{bus, function, service, shutdown, store, writable};

/// Answers requests of clients on `darkroom.api.>`, and over HTTP.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(flatten)]
    bus: BusOptions,
    #[command(flatten)]
    exposition: ExpositionOptions,
    #[command(flatten)]
    retention: Retention,
    #[command(flatten)]
    http: HttpOptions,
    /// URL of the object store that images are read from, where clients cannot read it themselves
    #[arg(long, env = "DARKROOM_STORE", value_name = "URL")]
    store: Option<String>,
    /// How long presigned URLs are good
    #[arg(long, env = "DARKROOM_URL_EXPIRES", default_value = "1h", value_parser = parse_duration, value_name = "DURATION")]
    url_expires: Duration,
}

fn main() -> ExitCode {
    let options = Options::parse();
    function::run("darkroom-gateway", options.exposition, run(options))
}

async fn run(options: Options) -> anyhow::Result<()> {
    let stop = shutdown::on_signal().context("signals cannot be handled")?;
    let bus = bus::connect(&options.bus, "darkroom-gateway").await?;
    exposition::start(options.exposition, &bus).await?;
    let store = match options.store {
        Some(store) => Some(store::open(&StoreOptions { store, url_expires: options.url_expires })?),
        None => None,
    };
    let unwritable = writable::watch(bus.clone(), stop.clone());
    let over_http = async {
        match options.http.http_listen {
            Some(address) => {
                let (bus, found, stop) = (bus.clone(), unwritable.clone(), stop.clone());
                let served = http::serve(bus, options.http, address, store, options.retention, found, stop);
                anyhow::Ok(Box::pin(served).await?)
            }
            None => Ok(()),
        }
    };
    let over_nats = async {
        let (bus, found, stop) = (bus.clone(), unwritable.clone(), stop.clone());
        anyhow::Ok(service::run(bus, options.retention, found, stop).await?)
    };
    tokio::try_join!(over_http, over_nats)?;
    Ok(())
}

//! The `generate` function: pulls requests of one model, makes their images, stores and announces them.
//!
//! Everything but its options is in the library: `shell::worker` drives, `sched` decides, `engine` draws.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use darkroom::engine;
use darkroom::job::{Pool, WorkerId};
use darkroom::sched::Policy;
use darkroom::shell::config::{
    BusOptions, FetchOptions, Interruptions, Machine, ModelOptions, Retention, StoreOptions, parse_bytes,
    parse_duration,
};
use darkroom::shell::exposition::{self, ExpositionOptions};
use darkroom::shell::{bus, clock::Clock, function, gpu, model_cache, shutdown, spot, store, telemetry, worker};

/// Turns requests on NATS JetStream into images, for one model, until there is nothing to do.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(flatten)]
    bus: BusOptions,
    #[command(flatten)]
    exposition: ExpositionOptions,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    fetch: FetchOptions,
    #[command(flatten)]
    model: ModelOptions,
    /// Where to compute: auto, cpu or cuda
    #[arg(long, env = "DARKROOM_DEVICE", default_value = "auto")]
    device: engine::DeviceChoice,
    /// Number format of all parts: f32, f16 or bf16; what the model's darkroom.toml says, or suits the device, when absent
    #[arg(long, env = "DARKROOM_DTYPE", value_name = "NAME")]
    dtype: Option<engine::Precision>,
    /// The folder with LoRAs, as NAME.safetensors; what it lacks comes from `loras/` in the object store
    #[arg(long, env = "DARKROOM_LORAS", value_name = "DIR")]
    loras: Option<PathBuf>,
    #[command(flatten)]
    machine: Machine,
    /// Which requests to take, instead of those that suit the capacity: `any`, `ondemand` or both
    #[arg(long, env = "DARKROOM_POOLS", value_delimiter = ',')]
    pools: Vec<Pool>,
    /// Name of this worker in records and events, which no other process may have, nor the same one once it is started
    /// again; a new one each time when absent
    #[arg(long, env = "DARKROOM_WORKER")]
    worker: Option<WorkerId>,
    /// Images denoised at the same time; the model's own limit when absent
    #[arg(long, env = "DARKROOM_BATCH")]
    batch: Option<u32>,
    /// Memory that steps may take besides the loaded model, as `8GiB`; most of what the device has left when absent
    #[arg(long, env = "DARKROOM_MEMORY", value_parser = parse_bytes, value_name = "BYTES")]
    memory: Option<u64>,
    /// How batches are made: adaptive, or fixed, in which nobody joins a batch until all of it is done
    #[arg(long, env = "DARKROOM_POLICY", default_value = "adaptive", value_name = "NAME")]
    policy: Policy,
    /// What `darkroom profile` measured of the model here; where that keeps it in the user's cache when absent
    #[arg(long, env = "DARKROOM_COSTS", value_name = "FILE")]
    costs: Option<PathBuf>,
    #[command(flatten)]
    interruptions: Interruptions,
    /// Exit with 0 when there was nothing to do for so long, as `30s`; never when absent
    #[arg(long, env = "DARKROOM_EXIT_WHEN_IDLE", value_parser = parse_duration, value_name = "DURATION")]
    exit_when_idle: Option<Duration>,
    /// Workers of the model and this capacity that stay even if they are idle, those that were there first; a plan of
    /// `darkroom scale` may say more
    #[arg(long, env = "DARKROOM_WORKERS_MIN", default_value_t = 0, value_name = "COUNT")]
    workers_min: u32,
    #[command(flatten)]
    retention: Retention,
}

fn main() -> ExitCode {
    let (clock, options) = (Clock::start(), Options::parse());
    function::run_beside_engine("darkroom-generate", options.exposition, run(options, clock))
}

async fn run(options: Options, clock: Clock) -> anyhow::Result<()> {
    let stop = shutdown::on_signal().context("signals cannot be handled")?;
    let name = options.worker.map_or_else(worker::fresh_name, Ok)?;
    let model = model_cache::start(&options.model, clock)?;
    let store = store::open(&options.store)?;
    let bus = bus::connect(&options.bus, &format!("darkroom-{name}")).await?;
    exposition::start(options.exposition, &bus).await?;
    gpu::watch(&telemetry::meter());
    let machine = options.machine;
    spot::watch(machine.spot_notices, stop.clone())?;
    let config = worker::Config {
        worker: name,
        pools: if options.pools.is_empty() { machine.capacity.pools().to_vec() } else { options.pools },
        price_per_hour: machine.price()?,
        capacity: machine.capacity,
        instance_type: machine.instance_type,
        images_in_batch_max: options.batch,
        memory: options.memory,
        policy: options.policy,
        costs: options.costs,
        interruptions: options.interruptions,
        exit_when_idle: options.exit_when_idle,
        workers_min: options.workers_min,
        fetch_allow: options.fetch.fetch_allow,
        loras: options.loras.clone(),
        retention: options.retention,
        clock,
        model: Some(model.clone()),
    };
    let precisions = engine::Precisions::all(options.dtype);
    let load_options = engine::LoadOptions { device: options.device, precisions, loras: options.loras };
    let open = move || worker::open(&model, &load_options);
    Box::pin(worker::run(config, open, bus, store, stop)).await?;
    Ok(())
}

//! The command line: options, exit codes and the choice of command. It decides nothing about jobs.

mod accounts;
mod costs;
mod dlq;
mod doctor;
mod jobs;
mod keys;
mod models;
mod output;
mod picture;
mod plan;
mod platform;
mod profile;
mod render;
mod scale;
mod simulate;
mod webhooks;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use darkroom::job::{Fault, FaultCode};
use darkroom::shell::bus::{ApiError, ConnectError, PublishError};
use darkroom::shell::client::{SubmitError, WatchError};
use darkroom::shell::config::BusOptions;
use darkroom::shell::dead_letters::DeadLetterError;
use darkroom::shell::telemetry::Scraped;

use output::Output;

/// What scripts may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Success = 0,
    /// The job failed, or something is wrong that has no code of its own.
    Failure = 1,
    // 2 is a wrong command line; clap says so.
    /// The server's topology differs in what must not be changed.
    Drift = 3,
    /// NATS or JetStream does not answer.
    Unreachable = 4,
    /// The request breaks rules.
    InvalidRequest = 5,
    /// No such job, dead letter or model.
    NotFound = 6,
    /// The job id belongs to a different request, or the job has ended otherwise.
    Conflict = 7,
    /// The job was cancelled.
    Cancelled = 8,
    /// The time given with --timeout is over.
    Timeout = 9,
    /// The job ended, and its record was removed after its retention.
    Gone = 10,
    /// The tenant has as many requests in the queue as it may.
    QuotaReached = 11,
    /// The queue of all tenants is full.
    QueueFull = 12,
}

const EXIT_CODES: &str = "Exit codes:
  0  done
  1  the job failed, a check found a problem, or anything without a code of its own
  2  wrong command line
  3  streams or consumers differ from this build in what must not be changed
  4  NATS or JetStream does not answer
  5  the request breaks rules; all of them are listed
  6  no such job, dead letter, model or key
  7  the job id belongs to a different request; or what is to be cancelled has ended otherwise
  8  the job was cancelled
  9  the time given with --timeout is over
  10 the job ended, and its record was removed after its retention
  11 the tenant has as many requests in the queue as it may
  12 the queue of all tenants is full

Logs: DARKROOM_LOG=info (or debug, trace), DARKROOM_LOG_FORMAT=json. Traces, metrics, logs: OTEL_EXPORTER_OTLP_ENDPOINT.";

/// Text to image as an event-driven function over NATS JetStream
#[derive(Debug, Parser)]
#[command(name = "darkroom", version, after_help = EXIT_CODES, after_long_help = EXIT_CODES)]
struct Options {
    #[command(flatten)]
    bus: BusOptions,
    /// One JSON object per line on standard output, for scripts
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the streams, the bucket and the consumers of models; safe to repeat
    ///
    /// Creates what is missing, updates what may be updated, reports what differs and must not be changed, and never
    /// deletes anything.
    #[command(
        after_help = "Examples:\n  darkroom setup --model ./stable-diffusion-v1-5\n  darkroom setup --replicas 3 --model ./stable-diffusion-v1-5"
    )]
    Setup(platform::SetupOptions),
    /// Publish a request
    #[command(
        after_help = "Examples:\n  darkroom submit \"a red circle on a blue background\" --out circle.png\n  darkroom submit \"a ring\" --steps 8 --scheduler dpmpp_2m --seed 7 --watch"
    )]
    Submit(Box<jobs::SubmitOptions>),
    /// Follow a job to its end
    Watch(jobs::WatchOptions),
    /// Say where a job stands
    Status(jobs::StatusOptions),
    /// Stop a job: one that waits never begins, one that runs ends with its next step
    #[command(after_help = "Example:\n  darkroom cancel 0197-… --keep-partial")]
    Cancel(jobs::CancelOptions),
    /// List jobs, newest first
    List(jobs::ListOptions),
    /// Requests that failed: list them, look at them, send them again, drop them
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// API keys of the gateway
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Webhooks that were given up, endpoints that are told nothing, and the secrets of tenants
    #[command(subcommand)]
    Webhooks(webhooks::WebhooksCommand),
    /// Plans by hour of week, which the scaler keeps to
    #[command(subcommand)]
    Scale(scale::ScaleCommand),
    /// Say what images cost, by model, capacity and tenant
    #[command(after_help = "Example:\n  darkroom costs --since 7d")]
    Costs(costs::CostsOptions),
    /// List the models that are served; put models into the object store, bring them here
    Models(models::ModelsOptions),
    /// Make the image of a request with the engine alone, without NATS
    #[command(
        after_help = "Example:\n  echo '{\"prompt\": \"a red star\", \"seed\": 7}' > r.json\n  darkroom render --model local/models/shapes --request r.json --out star.png"
    )]
    Render(render::RenderOptions),
    /// Measure how long each stage of an image takes on this machine, without NATS
    #[command(
        after_help = "Example:\n  darkroom profile --model local/models/shapes --size 128x128,256x256 --images 1,4"
    )]
    Profile(profile::ProfileOptions),
    /// Replay a workload on a fleet in virtual time, under this scheduler and others, without NATS
    #[command(
        after_help = "Example:\n  darkroom simulate --workload docs/workloads/a10g-sd15-steady.toml --policy adaptive,triton --out plots\n  darkroom simulate --scaling docs/scaling/a10g-sdxl-day.toml --out plots"
    )]
    Simulate(simulate::SimulateOptions),
    /// Say which machines to buy, how many and how, for so many jobs a second and a promised wait, without NATS
    #[command(after_help = "Example:\n  darkroom plan --model sdxl --rate 2 --slo 5s --steps 20:0.7,50:0.3")]
    Plan(plan::PlanOptions),
    /// Run everything on this machine until Ctrl-C, workers only while there is work
    Up(platform::UpOptions),
    /// Check the server, the topology, the store and the model, and say what to do
    Doctor(doctor::DoctorOptions),
    /// Make the directory that a nats-server with accounts runs from: its configuration and the keys of the roles
    #[command(after_help = "Example:\n  darkroom accounts --dir /etc/darkroom/nats")]
    Accounts(accounts::AccountsOptions),
    /// Tenants of a nats-server with accounts
    #[command(subcommand)]
    Tenant(accounts::TenantCommand),
    /// Write the JSON schemas of requests and events
    Schema {
        /// Where to
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
}

/// A failure with the exit code that stands for it.
#[derive(Debug)]
pub(crate) struct Failed {
    exit: Exit,
    code: &'static str,
    error: anyhow::Error,
}

impl Failed {
    pub(crate) fn new(exit: Exit, code: &'static str, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, code, error: error.into() }
    }

    fn of_dead_letter(error: DeadLetterError) -> Self {
        let (exit, code) = match &error {
            DeadLetterError::Unknown { .. } => (Exit::NotFound, "unknown_dead_letter"),
            DeadLetterError::StreamMissing => (Exit::NotFound, "no_stream"),
            DeadLetterError::NotARequest { .. }
            | DeadLetterError::Unreadable(_)
            | DeadLetterError::UnreadableWebhook { .. } => (Exit::InvalidRequest, "invalid_request"),
            DeadLetterError::Ambiguous { .. } => (Exit::Failure, "ambiguous"),
            DeadLetterError::TenantsAccount
            | DeadLetterError::Name { .. }
            | DeadLetterError::Submit(_)
            | DeadLetterError::Api(_)
            | DeadLetterError::Bus(_) => (Exit::Failure, "failed"),
        };
        Self { exit, code, error: error.into() }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        let error: anyhow::Error = error.into();
        let error: anyhow::Error = match error.downcast::<DeadLetterError>() {
            Ok(DeadLetterError::Submit(error)) => error.into(),
            Ok(DeadLetterError::Api(error)) => error.into(),
            Ok(DeadLetterError::Bus(fault)) => fault.into(),
            Ok(error) => return Self::of_dead_letter(error),
            Err(error) => error,
        };
        let bus_failed = |fault: &Fault| fault.code == FaultCode::BusFailed;
        let (exit, code) = if error.is::<ConnectError>()
            || error.is::<ApiError>()
            || error.downcast_ref::<Fault>().is_some_and(bus_failed)
        {
            (Exit::Unreachable, "unreachable")
        } else {
            match (error.downcast_ref::<SubmitError>(), error.downcast_ref::<WatchError>()) {
                (Some(SubmitError::UnknownModel { .. }), _) => (Exit::NotFound, "unknown_model"),
                (Some(SubmitError::Invalid { .. }), _) => (Exit::InvalidRequest, "invalid_request"),
                (Some(SubmitError::Conflict { .. }), _) => (Exit::Conflict, "job_id_conflict"),
                (Some(SubmitError::Gone { .. }), _) | (_, Some(WatchError::Gone { .. })) => (Exit::Gone, "gone"),
                (Some(SubmitError::QuotaReached { .. }), _) => (Exit::QuotaReached, "quota_reached"),
                (Some(SubmitError::QueueFull { .. }), _) => (Exit::QueueFull, "queue_full"),
                (Some(SubmitError::Api(_) | SubmitError::Bus(_)), _) => (Exit::Unreachable, "unreachable"),
                (_, Some(WatchError::Unknown { .. })) => (Exit::NotFound, "unknown_job"),
                (_, Some(WatchError::Closed | WatchError::Bus(_))) => (Exit::Unreachable, "unreachable"),
                (Some(SubmitError::Publish(PublishError::Unconfirmed { .. })), _) => (Exit::Unreachable, "unreachable"),
                (Some(SubmitError::Publish(_)) | None, None) => (Exit::Failure, "failed"),
            }
        };
        Self { exit, code, error }
    }
}

/// Runs the command line of this process.
pub(crate) fn main() -> ExitCode {
    let options = Options::parse();
    let output = Output::new(options.json);
    match run(options, &output) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(Failed { exit, code, error }) => {
            output.error(code, &error);
            ExitCode::from(exit as u8)
        }
    }
}

fn run(options: Options, output: &Output) -> Result<Exit, Failed> {
    let Options { bus, command, .. } = options;
    let quiet = if matches!(command, Command::Up(_)) { "info" } else { "warn" };
    let telemetry = darkroom::shell::telemetry::start("darkroom", quiet, Scraped::Never)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = match command {
        Command::Setup(options) => runtime.block_on(platform::setup(&bus, &options, output)),
        Command::Submit(options) => runtime.block_on(jobs::submit(&bus, *options, output)),
        Command::Watch(options) => runtime.block_on(jobs::watch(&bus, &options, output)),
        Command::Status(options) => runtime.block_on(jobs::status(&bus, &options, output)),
        Command::Cancel(options) => runtime.block_on(jobs::cancel(&bus, &options, output)),
        Command::List(options) => runtime.block_on(jobs::list(&bus, &options, output)),
        Command::Keys(command) => runtime.block_on(keys::keys(&bus, command, output)),
        Command::Dlq(command) => runtime.block_on(dlq::run(&bus, command, output)),
        Command::Webhooks(command) => runtime.block_on(webhooks::run(&bus, command, output)),
        Command::Scale(command) => runtime.block_on(scale::scale(&bus, command, output)),
        Command::Costs(options) => runtime.block_on(costs::costs(&bus, &options, output)),
        Command::Models(options) => runtime.block_on(models::models(&bus, options, output)),
        Command::Render(options) => render::render(&options, output),
        Command::Profile(options) => profile::profile(&options, output),
        Command::Simulate(options) => simulate::simulate(&options, output),
        Command::Plan(options) => plan::plan(&options, output),
        Command::Up(options) => runtime.block_on(platform::up(options, output)),
        Command::Doctor(options) => runtime.block_on(doctor::doctor(&bus, options, output)),
        Command::Accounts(options) => accounts::make(&options, output),
        Command::Tenant(accounts::TenantCommand::Add(options)) => accounts::add_tenant(options, output),
        Command::Schema { dir } => platform::schema(&dir, output),
    };
    telemetry.flush();
    outcome
}
/// Does something with each: what fails holds up no other, and is told under its name.
async fn each<'a, T: 'a>(
    found: impl IntoIterator<Item = &'a T>,
    output: &Output,
    name: impl Fn(&T) -> String,
    mut act: impl AsyncFnMut(&T) -> Result<(), Failed>,
) -> Exit {
    let mut exit = Exit::Success;
    for one in found {
        if let Err(Failed { code, error, .. }) = act(one).await {
            output.error(code, &error.context(name(one)));
            exit = Exit::Failure;
        }
    }
    exit
}

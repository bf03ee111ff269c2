//! `setup`, `up` and `schema`: what operators run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use darkroom::engine::read_manifest;
use darkroom::job::ModelManifest;
use darkroom::shell::config::{BusOptions, parse_duration};
use darkroom::shell::supervisor;
use darkroom::shell::topology::{self, Finding, Mode, Outcome};
use darkroom::shell::{bus, shutdown};
use darkroom::wire::schema::all;
use serde_json::json;

use super::output::Output;
use super::{Exit, Failed};

#[derive(Debug, clap::Args)]
pub(crate) struct SetupOptions {
    /// A model to serve: a diffusers directory; may be repeated
    #[arg(long, value_name = "DIR")]
    model: Vec<PathBuf>,
    /// Copies of every stream, each on a server of its own: 1, 3 or 5; as they are, or 1, when absent
    #[arg(long, env = "DARKROOM_REPLICAS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=5))]
    replicas: Option<u32>,
    /// Only say what is missing or differs; exit code 1 if anything does
    #[arg(long)]
    check: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct UpOptions {
    /// Where messages and images are kept
    #[arg(long, env = "DARKROOM_DATA", default_value = ".darkroom", value_name = "DIR")]
    data: PathBuf,
    /// Port for NATS clients; WebSocket clients use the one above it
    #[arg(long, env = "DARKROOM_NATS_PORT", default_value_t = 4222, value_name = "N", value_parser = clap::value_parser!(u16).range(1..65535))]
    nats_port: u16,
    /// Port for HTTP clients, who need no key here
    #[arg(long, env = "DARKROOM_HTTP_PORT", default_value_t = 8080, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    http_port: u16,
    /// A worker ends after so long without work
    #[arg(long, default_value = "30s", value_parser = parse_duration, value_name = "DURATION")]
    idle: Duration,
    /// Workers per model, at the most
    #[arg(long, default_value_t = 1, value_name = "N")]
    workers: u32,
    /// Another worker is started when requests would wait longer than this for those that run
    #[arg(long, default_value = "10s", value_parser = parse_duration, value_name = "DURATION")]
    target_wait: Duration,
    /// A model to serve: a diffusers directory; may be repeated
    #[arg(long, env = "DARKROOM_MODELS", value_delimiter = ',', value_name = "DIR", required = true)]
    model: Vec<PathBuf>,
    /// The nats-server program
    #[arg(long, env = "DARKROOM_NATS_SERVER", default_value = "nats-server", value_name = "FILE")]
    nats_server: PathBuf,
}

/// The manifests of model directories.
pub(crate) fn manifests(directories: &[PathBuf]) -> anyhow::Result<Vec<ModelManifest>> {
    let read = |directory: &PathBuf| {
        read_manifest(directory).with_context(|| format!("the model {} cannot be used", directory.display()))
    };
    directories.iter().map(read).collect()
}

/// A finding for people and for scripts.
pub(crate) fn show(finding: &Finding, mode: Mode, output: Output) {
    let Finding { kind, name, outcome } = finding;
    let (word, differences) = match (outcome, mode) {
        (Outcome::Unchanged, _) => ("unchanged", &[][..]),
        (Outcome::Created, Mode::Apply) => ("created", &[][..]),
        (Outcome::Created, Mode::Check) => ("missing", &[][..]),
        (Outcome::Updated(differences), Mode::Apply) => ("updated", &differences[..]),
        (Outcome::Updated(differences), Mode::Check) => ("outdated", &differences[..]),
        (Outcome::Drifted(differences), _) => ("drifted", &differences[..]),
    };
    let texts: Vec<String> = differences.iter().map(ToString::to_string).collect();
    let why = if texts.is_empty() { String::new() } else { format!(": {}", texts.join("; ")) };
    let fields: Vec<_> = differences
        .iter()
        .map(|difference| json!({"field": difference.field, "found": difference.found, "wanted": difference.wanted}))
        .collect();
    output.line(
        format!("{kind} {name}: {word}{why}"),
        &json!({"kind": kind, "name": name, "outcome": word, "differences": fields}),
    );
}

pub(crate) async fn setup(bus: &BusOptions, options: &SetupOptions, output: &Output) -> Result<Exit, Failed> {
    let manifests = manifests(&options.model)?;
    let bus = bus::connect(bus, "darkroom-setup").await?;
    let mode = if options.check { Mode::Check } else { Mode::Apply };
    let findings = topology::reconcile_with(&bus, &manifests, options.replicas, mode).await?;
    for finding in &findings {
        show(finding, mode, *output);
    }
    if findings.iter().any(|finding| matches!(finding.outcome, Outcome::Drifted(_))) {
        output.note("What drifted was left as it is: changing it would strand or lose messages.");
        return Ok(Exit::Drift);
    }
    if options.check && findings.iter().any(|finding| finding.outcome != Outcome::Unchanged) {
        return Ok(Exit::Failure);
    }
    Ok(Exit::Success)
}

pub(crate) async fn up(options: UpOptions, output: &Output) -> Result<Exit, Failed> {
    let stop = shutdown::on_signal().context("signals cannot be handled")?;
    let manifests = manifests(&options.model)?;
    let mut names: Vec<&str> = manifests.iter().map(|manifest| manifest.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(anyhow::anyhow!("two models are called {}; name one in its darkroom.toml", twice[0]).into());
    }
    let program = std::env::current_exe().context("the program's own path")?;
    let config = supervisor::Config {
        data: options.data,
        nats_port: options.nats_port,
        http_port: options.http_port,
        nats_server: options.nats_server,
        functions: program.parent().unwrap_or_else(|| Path::new(".")).to_owned(),
        idle: options.idle,
        workers: options.workers.max(1),
        target_wait: options.target_wait,
        models: options.model.into_iter().zip(manifests).collect(),
    };
    supervisor::run(config, stop, |addresses| {
        let line = json!({
            "ready": true,
            "nats": addresses.nats,
            "websocket": addresses.websocket,
            "gateway": addresses.gateway,
            "store": addresses.store,
        });
        // Who does not read it may use it all the same; ending here would leave the functions behind.
        if let Err(error) = output.try_line(line.to_string(), &line) {
            tracing::warn!(%error, "up.ready");
        }
    })
    .await?;
    Ok(Exit::Success)
}

pub(crate) fn schema(directory: &Path, output: &Output) -> Result<Exit, Failed> {
    std::fs::create_dir_all(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
    let mut written = Vec::new();
    for (name, schema) in all() {
        let path = directory.join(name);
        let text = serde_json::to_string_pretty(&schema)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
        written.push(path.display().to_string());
    }
    // All files first: a reader that goes away ends the program.
    for path in written {
        output.line(&path, &json!({ "path": path }));
    }
    Ok(Exit::Success)
}

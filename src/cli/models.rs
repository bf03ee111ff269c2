//! `models`: those that are served, and those of the object store: put there, brought here.

use std::path::PathBuf;

use anyhow::Context as _;
use bytesize::ByteSize;
use darkroom::sched::Mono;
use darkroom::shell::clock::Clock;
use darkroom::shell::config::{BusOptions, ModelOptions, ModelSource};
use darkroom::shell::model_cache::{self, ModelCache, ToSend};
use serde_json::json;

use super::output::Output;
use super::{Exit, Failed, jobs};

#[derive(Debug, clap::Args)]
pub(crate) struct ModelsOptions {
    #[command(subcommand)]
    command: Option<ModelsCommand>,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ModelsCommand {
    /// List the models that are served; what `models` alone does
    List,
    /// Put a diffusers directory into the object store, with a manifest of its files' digests
    #[command(after_help = "Example:\n  darkroom models push ./stable-diffusion-v1-5 s3://bucket/models/sd15")]
    Push {
        /// The model: a diffusers directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Where to, as s3://bucket/models/sd15
        #[arg(value_name = "URL")]
        url: ModelSource,
        /// Send every file, also those that are there already: objects may be damaged
        #[arg(long)]
        all: bool,
    },
    /// Bring a model of the object store into this machine's cache, as a worker does when it starts
    #[command(after_help = "Example:\n  darkroom models fetch --model s3://bucket/models/sd15")]
    Fetch(ModelOptions),
}

pub(crate) async fn models(bus: &BusOptions, options: ModelsOptions, output: &Output) -> Result<Exit, Failed> {
    match options.command.unwrap_or(ModelsCommand::List) {
        ModelsCommand::List => jobs::models(bus, output).await,
        ModelsCommand::Push { directory, url, all } => {
            let ModelSource::Url(url) = url else {
                return Err(anyhow::anyhow!("URL must be one of an object store, as s3://bucket/models/sd15").into());
            };
            let pushed = model_cache::push(&directory, &url, if all { ToSend::All } else { ToSend::Changed }).await?;
            let bytes: u64 = pushed.files.iter().map(|file| file.size).sum();
            output.line(
                format!(
                    "{url}: {} files, {}; {} sent",
                    pushed.files.len(),
                    ByteSize::b(bytes),
                    ByteSize::b(pushed.sent)
                ),
                &json!({"url": url, "files": pushed.files.len(), "bytes": bytes, "sent_bytes": pushed.sent}),
            );
            Ok(Exit::Success)
        }
        ModelsCommand::Fetch(options) => {
            let ModelSource::Url(url) = &options.model else {
                return Err(anyhow::anyhow!("--model must be the URL of a model in an object store").into());
            };
            let clock = Clock::start();
            let present = ModelCache::new(&options)?.bring(url, clock, Mono::ZERO).await?;
            let fetched = present.fetched.context("what is brought was fetched")?;
            output.line(
                present.directory.display().to_string(),
                &json!({"directory": present.directory, "fetch_ms": fetched.took.as_millis() as u64,
                    "fetched_bytes": fetched.bytes, "resumed_bytes": fetched.resumed_bytes}),
            );
            Ok(Exit::Success)
        }
    }
}

//! `submit`, `watch`, `status`, `cancel`, `list` and `models`: what clients run.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use darkroom::job::{JobId, ModelName, Pool, Priority, Status, Tenant};
use darkroom::sched::estimate::Estimate;
use darkroom::shell::bus::{self, Access, Bus};
use darkroom::shell::client::{self, Submission, Submitted, Watch};
use darkroom::shell::clock::Clock;
use darkroom::shell::config::{BusOptions, StoreOptions, parse_duration};
use darkroom::shell::records::{self, Found};
use darkroom::shell::{outlook, store, topology};
use darkroom::wire::cancel::CancelOutcome;
use darkroom::wire::event::{EventKind, StoredImage};
use darkroom::wire::request::{CacheDocument, LoraDocument, RequestDocument, WebhookDocument};
use darkroom::wire::time::rfc3339;
use serde_json::{Value, json};

use super::output::{Output, mark};
use super::picture;
use super::render::numbered;
use super::{Exit, Failed};

#[derive(Debug, clap::Args)]
pub(crate) struct SubmitOptions {
    /// What to draw
    prompt: String,
    /// The model; the only one served when absent
    #[arg(long, env = "DARKROOM_MODEL_NAME", value_name = "NAME")]
    model: Option<ModelName>,
    /// Whose job it is
    #[arg(long, env = "DARKROOM_TENANT", default_value = "default")]
    tenant: Tenant,
    /// The job's id; the same id with the same request is the same job. A new one when absent
    #[arg(long, value_name = "ID")]
    job: Option<JobId>,
    /// high, normal or low
    #[arg(long, default_value = "normal")]
    priority: Priority,
    /// any, or ondemand for machines that are not taken away
    #[arg(long, default_value = "any")]
    pool: Pool,
    /// What to avoid
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Denoising steps, 1 to 100
    #[arg(long, visible_alias = "num-inference-steps", value_name = "N")]
    steps: Option<u32>,
    /// Classifier-free guidance, 1 to 20; 1 is none
    #[arg(long, visible_alias = "guidance", value_name = "X")]
    guidance_scale: Option<f32>,
    /// Pixels
    #[arg(long, value_name = "N")]
    width: Option<u32>,
    /// Pixels
    #[arg(long, value_name = "N")]
    height: Option<u32>,
    /// Decides the noise; the same seed gives the same image
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Images, 1 to 8
    #[arg(long, value_name = "N")]
    num_images: Option<u32>,
    /// The sampler, such as ddim, euler or dpmpp_2m_karras; `darkroom models` says which one a model has by itself
    #[arg(long, value_name = "NAME")]
    scheduler: Option<String>,
    /// A picture to start from: a file (which goes to --store, or into the request if it is small), a key or a URL
    #[arg(long, value_name = "FILE|KEY|URL")]
    init_image: Option<String>,
    /// How much of the picture is made anew, above 0 to 1
    #[arg(long, value_name = "X")]
    strength: Option<f32>,
    /// Where the picture is made anew: white there, of its size
    #[arg(long, value_name = "FILE|KEY|URL", requires = "init_image")]
    mask_image: Option<String>,
    /// A LoRA, with a weight if it is not 1; may be repeated
    #[arg(long, value_name = "NAME[:WEIGHT]", value_parser = parse_lora)]
    lora: Vec<LoraDocument>,
    /// How much of guidance's growth in contrast is taken back, 0 to 1
    #[arg(long, value_name = "X")]
    guidance_rescale: Option<f32>,
    /// Only every N-th step is a whole one, 2 to 10: quicker, and a somewhat other picture
    #[arg(long, value_name = "N")]
    cache_interval: Option<u32>,
    /// Whose random numbers the seed gives: torch-cpu or torch-cuda
    #[arg(long, value_name = "NAME")]
    rng: Option<String>,
    /// What happens to prompts over 77 tokens: truncate or chunk
    #[arg(long, value_name = "NAME")]
    long_prompt: Option<String>,
    /// Give `(word:1.3)`, `(word)`, `[word]` and BREAK in prompts a meaning
    #[arg(long)]
    prompt_weighting: bool,
    /// png, jpeg or webp
    #[arg(long, visible_alias = "format", value_name = "NAME")]
    output_format: Option<String>,
    /// A small picture with the progress of every N-th step
    #[arg(long, value_name = "N")]
    previews: Option<u32>,
    /// When it is to be done: a time in RFC 3339, or from now such as 30s. It fails when that cannot be any more
    #[arg(long, value_name = "TIME|DURATION")]
    deadline: Option<String>,
    /// What becomes of a job that cannot make its deadline: fail or continue
    #[arg(long, value_name = "NAME", requires = "deadline")]
    on_late: Option<String>,
    /// Who is told by HTTP when it ends; `darkroom webhooks secret` prints what it is signed with
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,
    /// Of which events: started, progress, completed, failed, cancelled; those that end the job when absent. May be repeated
    #[arg(long, value_name = "NAME", requires = "webhook")]
    webhook_event: Vec<String>,
    /// A JSON object that comes back with the events
    #[arg(long, value_name = "JSON")]
    metadata: Option<String>,
    /// Follow the job to its end
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    fetch: FetchOptions,
}

#[derive(Debug, clap::Args)]
pub(crate) struct FetchOptions {
    /// Wait for the end and write the image there; several images get -0, -1 … before the extension
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The object store to fetch from, and to put starting pictures in; not needed for files of this machine
    #[arg(long, env = "DARKROOM_STORE", value_name = "URL")]
    store: Option<String>,
    /// Give up waiting after so long; the job goes on
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    timeout: Option<Duration>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct WatchOptions {
    /// The job's id
    job: JobId,
    /// Whose job it is
    #[arg(long, env = "DARKROOM_TENANT", default_value = "default")]
    tenant: Tenant,
    #[command(flatten)]
    fetch: FetchOptions,
}

#[derive(Debug, clap::Args)]
pub(crate) struct StatusOptions {
    /// The job's id
    job: JobId,
    /// Whose job it is
    #[arg(long, env = "DARKROOM_TENANT", default_value = "default")]
    tenant: Tenant,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CancelOptions {
    /// The job's id
    job: JobId,
    /// Whose job it is
    #[arg(long, env = "DARKROOM_TENANT", default_value = "default")]
    tenant: Tenant,
    /// Store what is there of the images of a running job
    #[arg(long)]
    keep_partial: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListOptions {
    /// Only this tenant's jobs
    #[arg(long)]
    tenant: Option<Tenant>,
    /// At most so many
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: usize,
    /// Also jobs that ended and whose record was removed after its retention
    #[arg(long)]
    gone: bool,
}

pub(crate) async fn submit(options: &BusOptions, submit: SubmitOptions, output: &Output) -> Result<Exit, Failed> {
    let metadata = match submit.metadata.as_deref().map(serde_json::from_str) {
        None => None,
        Some(Ok(metadata)) => Some(metadata),
        Some(Err(error)) => {
            let error = anyhow::Error::from(error).context("--metadata is not a JSON object");
            return Err(Failed::new(Exit::InvalidRequest, "invalid_request", error));
        }
    };
    let bus = bus::connect(options, "darkroom-submit").await?;
    let model = match submit.model {
        Some(model) => model,
        None => only_model(&bus).await?,
    };
    let init_image = picture(submit.init_image.as_deref(), &submit.tenant, &submit.fetch).await?;
    let mask_image = picture(submit.mask_image.as_deref(), &submit.tenant, &submit.fetch).await?;
    let job = submit.job.map_or_else(|| uuid::Uuid::now_v7().to_string().parse(), Ok)?;
    let submission = Submission {
        tenant: submit.tenant,
        job,
        model,
        priority: submit.priority,
        pool: submit.pool,
        request: RequestDocument {
            id: None,
            prompt: submit.prompt,
            negative_prompt: submit.negative_prompt,
            num_inference_steps: submit.steps,
            guidance_scale: submit.guidance_scale,
            width: submit.width,
            height: submit.height,
            seed: submit.seed,
            num_images: submit.num_images,
            scheduler: submit.scheduler,
            output_format: submit.output_format,
            priority: None,
            deadline: submit.deadline.map(|text| deadline(text, Clock::start())),
            on_late: submit.on_late,
            previews: submit.previews,
            guidance_rescale: submit.guidance_rescale,
            rng: submit.rng,
            init_image,
            strength: submit.strength,
            mask_image,
            loras: submit.lora,
            long_prompt: submit.long_prompt,
            prompt_weighting: submit.prompt_weighting.then_some(true),
            original_size: None,
            crops_coords_top_left: None,
            target_size: None,
            cache: submit.cache_interval.map(|interval| CacheDocument { interval }),
            webhook: webhook(submit.webhook, submit.webhook_event),
            metadata,
        },
    };
    let follow = submit.watch || submit.fetch.out.is_some();
    let watch = match follow {
        true => Some(Watch::start(&bus, &submission.tenant, &submission.job).await?),
        false => None,
    };
    let submitted = client::submit(&bus, &Clock::start(), &submission).await?;
    let Submitted { stream_sequence, pool, pending, estimate } = submitted;
    let (job, tenant) = (submission.job.as_str(), submission.tenant.as_str());
    let mut value = json!({
        "job": job, "tenant": tenant, "pool": pool.map(Pool::as_str), "stream_sequence": stream_sequence, "pending": pending,
    });
    add_estimate(&mut value, estimate.as_ref());
    output.line(job, &value);
    if let Some(estimate) = &estimate {
        output.note(outlook_text(estimate));
    }
    let Some(mut watch) = watch else { return Ok(Exit::Success) };
    if stream_sequence.is_none() {
        output.note("This job was submitted before.");
        watch.catch_up().await?;
    }
    follow_to_the_end(watch, &submit.fetch, output).await
}

/// The estimate of a job that waits; null what nobody can tell.
fn add_estimate(value: &mut Value, estimate: Option<&Estimate>) {
    value["queue_position"] = json!(estimate.map(|estimate| estimate.position));
    value["estimated_start_ms"] = json!(estimate.and_then(|estimate| estimate.start_ms));
    value["estimated_time_ms"] = json!(estimate.and_then(|estimate| estimate.end_ms));
}

fn outlook_text(estimate: &Estimate) -> String {
    let seconds = |ms: u64| format!("{:.1} s", Duration::from_millis(ms).as_secs_f64());
    let when = match (estimate.start_ms, estimate.end_ms) {
        (Some(start_ms), Some(end_ms)) => format!("begins in about {}, done in {}", seconds(start_ms), seconds(end_ms)),
        (Some(start_ms), None) => format!("begins in about {}", seconds(start_ms)),
        (None, _) => "nobody can tell yet when it begins".to_owned(),
    };
    match estimate.position {
        0 => format!("It is next; {when}."),
        1 => format!("1 job is before it; {when}."),
        position => format!("{position} jobs are before it; {when}."),
    }
}

async fn picture(given: Option<&str>, tenant: &Tenant, fetch: &FetchOptions) -> anyhow::Result<Option<String>> {
    match given {
        None => Ok(None),
        Some(given) => picture::named(given, tenant, fetch.store.as_deref()).await.map(Some),
    }
}

/// A time as requests have it, from one, or from how far away it is. What is neither is left to the check of the request.
fn deadline(text: String, clock: Clock) -> String {
    match parse_duration(&text) {
        Ok(from_now) => {
            let from_now_ms = i64::try_from(from_now.as_millis()).unwrap_or(i64::MAX);
            rfc3339(clock.unix_ms().saturating_add(from_now_ms))
        }
        Err(_) => text,
    }
}

fn webhook(url: Option<String>, events: Vec<String>) -> Option<WebhookDocument> {
    let events = (!events.is_empty()).then_some(events);
    url.map(|url| WebhookDocument { url, events, format: None })
}

fn parse_lora(text: &str) -> Result<LoraDocument, String> {
    let (name, weight) = match text.split_once(':') {
        None => (text, None),
        Some((name, weight)) => (name, Some(weight.parse().map_err(|_| format!("{weight} is not a number"))?)),
    };
    Ok(LoraDocument { name: name.to_owned(), weight })
}

async fn only_model(bus: &Bus) -> Result<ModelName, Failed> {
    if bus.access().await? == Access::Tenant {
        let error = anyhow::anyhow!("a tenant cannot ask which models are served; choose one with --model");
        return Err(Failed::new(Exit::NotFound, "unknown_model", error));
    }
    let served = topology::served(bus).await?;
    let names: Vec<&ModelName> = topology::manifests(&served).iter().map(|manifest| &manifest.name).collect();
    match &names[..] {
        [only] => Ok((*only).clone()),
        [] => {
            let error = anyhow::anyhow!("no model is served; run `darkroom setup --model DIR`");
            Err(Failed::new(Exit::NotFound, "unknown_model", error))
        }
        several => {
            let names: Vec<&str> = several.iter().map(|name| name.as_str()).collect();
            let error = anyhow::anyhow!("several models are served; choose one with --model: {}", names.join(", "));
            Err(Failed::new(Exit::NotFound, "unknown_model", error))
        }
    }
}

pub(crate) async fn watch(options: &BusOptions, watch: &WatchOptions, output: &Output) -> Result<Exit, Failed> {
    let bus = bus::connect(options, "darkroom-watch").await?;
    let mut following = Watch::start(&bus, &watch.tenant, &watch.job).await?;
    following.catch_up().await?;
    if let Some(record) = client::status(&bus, &watch.tenant, &watch.job).await?
        && let Some(estimate) = outlook::of_record(&bus, &record).await
    {
        let mut value = json!({"job": watch.job.as_str(), "tenant": watch.tenant.as_str(), "status": "pending"});
        add_estimate(&mut value, Some(&estimate));
        if output.is_json() {
            output.line("", &value);
        }
        output.note(outlook_text(&estimate));
    }
    follow_to_the_end(following, &watch.fetch, output).await
}

async fn follow_to_the_end(watch: Watch, fetch: &FetchOptions, output: &Output) -> Result<Exit, Failed> {
    let following = follow(watch, fetch, output);
    match fetch.timeout {
        None => following.await,
        Some(limit) => match tokio::time::timeout(limit, following).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let error = anyhow::anyhow!("the job has not ended within {}", humantime::format_duration(limit));
                Err(Failed::new(Exit::Timeout, "timeout", error))
            }
        },
    }
}

async fn follow(mut watch: Watch, fetch: &FetchOptions, output: &Output) -> Result<Exit, Failed> {
    let mut bar = output.bar();
    bar.message("waiting for a worker");
    loop {
        let seen = watch.next().await?;
        let data = &seen.event.data;
        if output.is_json() {
            output.line("", &serde_json::to_value(&seen.event)?);
        }
        match seen.kind {
            EventKind::Accepted => bar.message("accepted"),
            EventKind::Started => bar.message("started"),
            EventKind::Checkpoint => {}
            EventKind::Progress => {
                let number = |field: &str| data[field].as_u64().unwrap_or_default();
                let remaining = Duration::from_millis(number("remaining_ms"));
                bar.step(*output, number("step"), number("steps"), remaining);
            }
            EventKind::Completed => {
                bar.clear();
                completed(data, fetch, output).await?;
                return Ok(Exit::Success);
            }
            EventKind::Failed => {
                bar.clear();
                let error = &data["error"];
                let text = |field: &str| error[field].as_str().unwrap_or("unknown").to_owned();
                let (code, message) = (text("code"), text("message"));
                let exit = if code == "invalid_request" { Exit::InvalidRequest } else { Exit::Failure };
                return Err(Failed::new(exit, "job_failed", anyhow::anyhow!("the job failed: {code}: {message}")));
            }
            EventKind::Cancelled => {
                bar.clear();
                if data["images"].as_array().is_some_and(|images| !images.is_empty()) {
                    completed(data, fetch, output).await?;
                }
                return Err(Failed::new(Exit::Cancelled, "cancelled", anyhow::anyhow!("the job was cancelled")));
            }
        }
    }
}

/// Says where the images are, and brings them if asked to.
async fn completed(data: &Value, fetch: &FetchOptions, output: &Output) -> Result<(), Failed> {
    for warning in data["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        output.note(warning);
    }
    let images: Vec<StoredImage> = serde_json::from_value(data["images"].clone())?;
    for (index, image) in images.iter().enumerate() {
        let Some(out) = &fetch.out else {
            if !output.is_json() {
                output.line(&image.url, &Value::Null);
            }
            continue;
        };
        let path = numbered(out, index, images.len());
        let bytes = read_image(image, fetch.store.as_deref()).await?;
        std::fs::write(&path, bytes).with_context(|| format!("{} cannot be written", path.display()))?;
        let shown = path.display().to_string();
        output.line(&shown, &json!({"path": shown, "sha256": image.sha256}));
    }
    Ok(())
}

async fn read_image(image: &StoredImage, from: Option<&str>) -> anyhow::Result<Vec<u8>> {
    let bytes = match (from, store::local_path(&image.url)) {
        (None, Some(path)) => std::fs::read(path).with_context(|| format!("{} cannot be read", image.url))?,
        (Some(url), _) => {
            let options = StoreOptions { store: url.to_owned(), url_expires: Duration::from_secs(3600) };
            store::open(&options)?.get(&image.key).await?.to_vec()
        }
        (None, None) => anyhow::bail!("the image is at {}; name its object store with --store to fetch it", image.url),
    };
    let found = darkroom::wire::request::hexadecimal(&<sha2::Sha256 as sha2::Digest>::digest(&bytes));
    anyhow::ensure!(found == image.sha256, "{} is not what was stored: its sha256 is {found}", image.url);
    Ok(bytes)
}

pub(crate) async fn status(options: &BusOptions, status: &StatusOptions, output: &Output) -> Result<Exit, Failed> {
    let bus = bus::connect(options, "darkroom-status").await?;
    let StatusOptions { job, tenant } = status;
    let record = match records::look_at(&bus, tenant, job).await? {
        Found::Record(owned) => owned.record,
        Found::Gone => {
            let (text, value) = describe_gone(&format!("{tenant}.{job}"));
            output.line(text, &value);
            return Ok(Exit::Gone);
        }
        Found::Absent { .. } => {
            let error = anyhow::anyhow!("there is no job {job} of tenant {tenant}, or no worker has seen it yet");
            return Err(Failed::new(Exit::NotFound, "unknown_job", error));
        }
    };
    let (text, mut value) = describe(&format!("{tenant}.{job}"), &record);
    let estimate = outlook::of_record(&bus, &record).await;
    if record.state.status == Status::Pending {
        add_estimate(&mut value, estimate.as_ref());
    }
    output.line(text, &value);
    if let Some(estimate) = estimate.filter(|_| !output.is_json()) {
        output.line(outlook_text(&estimate), &Value::Null);
    }
    if let Some(terminal) = record.terminal.as_ref().filter(|_| !output.is_json()) {
        for image in terminal["images"].as_array().into_iter().flatten() {
            output.line(image["url"].as_str().unwrap_or_default(), &Value::Null);
        }
        if let Some(message) = terminal["error"]["message"].as_str() {
            output.line(message, &Value::Null);
        }
    }
    Ok(Exit::Success)
}

pub(crate) async fn cancel(options: &BusOptions, cancel: &CancelOptions, output: &Output) -> Result<Exit, Failed> {
    let bus = bus::connect(options, "darkroom-cancel").await?;
    let CancelOptions { job, tenant, keep_partial } = cancel;
    let answer = client::cancel(&bus, &Clock::start(), tenant, job, *keep_partial).await?;
    let text = match (answer.outcome, answer.status.as_deref()) {
        (CancelOutcome::Cancelled, _) => format!("{job} is cancelled"),
        (CancelOutcome::Stopping, _) => {
            format!("{job} stops; `darkroom watch {job}` tells when what is there is stored")
        }
        (CancelOutcome::Ended, status) => format!("{job} had ended before: it is {}", status.unwrap_or("gone")),
        (CancelOutcome::Gone, _) => {
            let error = anyhow::anyhow!("the job {job} of tenant {tenant} ended, and its record was removed");
            return Err(Failed::new(Exit::Gone, "gone", error));
        }
        (CancelOutcome::Unknown, _) => {
            let error = anyhow::anyhow!("there is no job {job} of tenant {tenant}");
            return Err(Failed::new(Exit::NotFound, "unknown_job", error));
        }
    };
    output.line(text, &serde_json::to_value(&answer)?);
    Ok(if answer.outcome == CancelOutcome::Ended && answer.status.as_deref() != Some("cancelled") {
        Exit::Conflict
    } else {
        Exit::Success
    })
}

/// A job whose record was removed after its retention.
fn describe_gone(key: &str) -> (String, Value) {
    let word = mark(&format!("{:10}", "gone"), "33");
    let (tenant, job) = key.split_once('.').unwrap_or(("", key));
    let text = format!("{key:48} {word} it ended, and its record was removed after its retention");
    (text, json!({ "tenant": tenant, "job": job, "status": "gone" }))
}

fn describe(key: &str, record: &darkroom::wire::record::Record) -> (String, Value) {
    let status = record.state.status;
    let colour = match status {
        Status::Completed => "32",
        Status::Failed => "31",
        Status::Cancelled => "33",
        Status::Pending | Status::Processing => "36",
    };
    let word = mark(&format!("{:10}", status.as_str()), colour);
    let text = format!("{key:48} {word} {:16} attempts {}  {}", record.model, record.state.attempts, record.updated);
    let (tenant, job) = key.split_once('.').unwrap_or(("", key));
    let value = json!({
        "tenant": tenant, "job": job, "status": status.as_str(), "model": record.model,
        "attempts": record.state.attempts, "failures": record.state.failures,
        "worker": record.state.worker.as_ref().map(ToString::to_string),
        "created": record.created, "updated": record.updated, "data": record.terminal,
    });
    (text, value)
}

pub(crate) async fn list(options: &BusOptions, list: &ListOptions, output: &Output) -> Result<Exit, Failed> {
    let bus = bus::connect(options, "darkroom-list").await?;
    let jobs = client::list_jobs(&bus, list.tenant.as_ref(), list.gone, list.limit, |_| true).await?;
    if jobs.is_empty() {
        output.note("no jobs");
    }
    for client::Listed { key, record } in jobs {
        let (text, value) = record.map_or_else(|| describe_gone(&key), |record| describe(&key, &record));
        output.line(text, &value);
    }
    Ok(Exit::Success)
}

pub(crate) async fn models(options: &BusOptions, output: &Output) -> Result<Exit, Failed> {
    let bus = bus::connect(options, "darkroom-models").await?;
    let mut served = topology::served(&bus).await?;
    served.sort_by(|one, other| one.manifest.name.cmp(&other.manifest.name));
    if served.is_empty() {
        output.note("no model is served; run `darkroom setup --model DIR`");
    }
    for group in served.chunk_by(|one, other| one.manifest.name == other.manifest.name) {
        let manifest = &group[0].manifest;
        let sum = |count: fn(&topology::Served) -> u64| group.iter().map(count).sum::<u64>();
        let (pending, in_flight) = (sum(|served| served.pending), sum(|served| served.in_flight));
        let pulls = group.iter().map(|served| served.pulls).max().unwrap_or_default();
        let (limits, defaults) = (&manifest.limits, &manifest.defaults);
        output.line(
            format!(
                "{:20} {}  {}–{} px by {}, default {}×{}, {} steps of {}, guidance {}  pending {pending}, in flight {in_flight}, workers waiting {pulls}",
                manifest.name, manifest.family, limits.side_min, limits.side_max, limits.side_multiple,
                defaults.width, defaults.height, defaults.num_inference_steps, defaults.scheduler,
                defaults.guidance_scale,
            ),
            &json!({
                "name": manifest.name.as_str(), "family": manifest.family,
                "limits": {"side_min": limits.side_min, "side_max": limits.side_max, "side_multiple": limits.side_multiple,
                    "images_in_batch_max": limits.images_in_batch_max},
                "defaults": {"width": defaults.width, "height": defaults.height,
                    "num_inference_steps": defaults.num_inference_steps, "guidance_scale": defaults.guidance_scale,
                    "scheduler": defaults.scheduler.as_str()},
                "pending": pending, "in_flight": in_flight, "workers_waiting": pulls,
            }),
        );
    }
    Ok(Exit::Success)
}

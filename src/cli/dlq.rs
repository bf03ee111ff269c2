//! `dlq`: dead letters, for operators.

use darkroom::job::{JobId, ModelName, Tenant};
use darkroom::shell::bus::{self, Bus};
use darkroom::shell::clock::Clock;
use darkroom::shell::config::BusOptions;
use darkroom::shell::dead_letters::{self, Filter, Letter, body_for_people};
use darkroom::wire::time::rfc3339;
use serde_json::{Map, Value, json};

use super::output::{Output, mark};
use super::{Exit, Failed};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum DlqCommand {
    /// List dead letters, newest first
    List {
        #[command(flatten)]
        filter: FilterOptions,
        /// At most so many
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: usize,
    },
    /// Show one: why, where it came from, its headers and its body
    Show {
        /// Its number, or the job's id
        id: String,
        #[command(flatten)]
        filter: FilterOptions,
    },
    /// Publish requests again, each as a new job, and remove their dead letters when that is confirmed
    #[command(
        after_help = "A job has one end, so the new one has an id of its own: JOB-retry-1, then JOB-retry-2, or that of --job.\nRepeating the command after a failure makes no second job.\n\nExamples:\n  darkroom dlq retry 17\n  darkroom dlq retry --all --code store_failed"
    )]
    Retry {
        #[command(flatten)]
        which: WhichOptions,
        /// The new job's id
        #[arg(long, value_name = "ID", conflicts_with = "all")]
        job: Option<JobId>,
        /// Leave the dead letters where they are
        #[arg(long)]
        keep: bool,
    },
    /// Remove dead letters for good
    Drop {
        #[command(flatten)]
        which: WhichOptions,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct FilterOptions {
    /// Only this tenant's
    #[arg(long)]
    tenant: Option<Tenant>,
    /// Only this model's
    #[arg(long, value_name = "NAME")]
    model: Option<ModelName>,
    /// Only with this error code, as `store_failed`
    #[arg(long)]
    code: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct WhichOptions {
    /// Its number, or the job's id
    #[arg(required_unless_present = "all")]
    id: Option<String>,
    /// All that the filters let through
    #[arg(long, conflicts_with = "id")]
    all: bool,
    #[command(flatten)]
    filter: FilterOptions,
}

impl From<FilterOptions> for Filter {
    fn from(FilterOptions { tenant, model, code }: FilterOptions) -> Self {
        Self { tenant, model, code }
    }
}

pub(crate) async fn run(options: &BusOptions, command: DlqCommand, output: &Output) -> Result<Exit, Failed> {
    let bus = bus::connect(options, "darkroom-dlq").await?;
    match command {
        DlqCommand::List { filter, limit } => {
            let letters = dead_letters::list(&bus, &filter.into(), limit).await?;
            if letters.is_empty() {
                output.note("no dead letters");
            }
            for letter in letters {
                output.line(line(&letter), &value(&letter));
            }
            Ok(Exit::Success)
        }
        DlqCommand::Show { id, filter } => {
            let letter = dead_letters::find(&bus, &id, &filter.into()).await?;
            output.line(page(&letter), &whole_value(&letter));
            Ok(Exit::Success)
        }
        DlqCommand::Retry { which, job, keep } => {
            each(&bus, which, output, async |letter| {
                let (new, submitted) = dead_letters::retry(&bus, &Clock::start(), letter, job.clone()).await?;
                // Only now: the stream has confirmed the new request, or had it before.
                if !keep {
                    dead_letters::remove(&bus, letter).await?;
                }
                let value = json!({
                    "number": letter.sequence, "job": new.as_str(), "tenant": letter.tenant, "retry_of": letter.job.as_str(),
                    "stream_sequence": submitted.stream_sequence, "removed": !keep,
                });
                output.line(new.as_str(), &value);
                Ok(())
            })
            .await
        }
        DlqCommand::Drop { which } => {
            each(&bus, which, output, async |letter| {
                dead_letters::remove(&bus, letter).await?;
                let value = json!({"number": letter.sequence, "job": letter.job.as_str(), "dropped": true});
                output.line(format!("dropped {}", letter.sequence), &value);
                Ok(())
            })
            .await
        }
    }
}

/// Does something with the one that was named, or with all: then what fails holds up no other, and is told.
async fn each(
    bus: &Bus,
    which: WhichOptions,
    output: &Output,
    mut act: impl AsyncFnMut(&Letter) -> Result<(), Failed>,
) -> Result<Exit, Failed> {
    let filter = which.filter.into();
    if let Some(id) = which.id {
        act(&dead_letters::find(bus, &id, &filter).await?).await?;
        return Ok(Exit::Success);
    }
    let letters = dead_letters::list(bus, &filter, usize::MAX).await?;
    if letters.is_empty() {
        output.note("no dead letters");
    }
    Ok(super::each(&letters, output, |letter| format!("dead letter {}", letter.sequence), act).await)
}

fn line(letter: &Letter) -> String {
    let Letter { sequence, unix_ms, model, tenant, job, code, message, .. } = letter;
    let code = mark(&format!("{code:20}"), "31");
    let message: String = message.chars().take(80).collect();
    format!("{sequence:>6}  {}  {:40} {model:16} {code} {message}", rfc3339(*unix_ms), format!("{tenant}.{job}"))
}

fn page(letter: &Letter) -> String {
    let mut page = format!(
        "number    {}\njob       {}.{}\nmodel     {}\nwhen      {}\nerror     {}: {}\nattempts  {}\nworker    {}\nsubject   {}\nrequest   {}\n",
        letter.sequence,
        letter.tenant,
        letter.job,
        letter.model,
        rfc3339(letter.unix_ms),
        letter.code,
        letter.message,
        letter.attempts,
        letter.worker.as_deref().unwrap_or("–"),
        letter.subject,
        letter.request_sequence,
    );
    for (name, value) in &letter.headers {
        page.push_str(&format!("header    {name}: {value}\n"));
    }
    let body = body_for_people(&letter.body);
    let body = serde_json::to_string_pretty(&body).unwrap_or_default();
    page + "body      " + &body
}

fn value(letter: &Letter) -> Value {
    json!({
        "number": letter.sequence, "time": rfc3339(letter.unix_ms), "tenant": letter.tenant, "job": letter.job.as_str(),
        "model": letter.model, "code": letter.code, "message": letter.message, "attempts": letter.attempts,
        "worker": letter.worker, "subject": letter.subject, "request_sequence": letter.request_sequence,
    })
}

fn whole_value(letter: &Letter) -> Value {
    let mut value = value(letter);
    let headers: Map<String, Value> =
        letter.headers.iter().map(|(name, text)| (name.clone(), Value::String(text.clone()))).collect();
    value["headers"] = Value::Object(headers);
    value["body"] = body_for_people(&letter.body);
    value
}

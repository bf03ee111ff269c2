//! `webhooks`: those that were given up, endpoints that are told nothing, and secrets, for operators.

use std::time::Duration;

use darkroom::job::{Tenant, WebhookUrl};
use darkroom::shell::bus::{self, Bus};
use darkroom::shell::clock::Clock;
use darkroom::shell::config::{BusOptions, parse_duration};
use darkroom::shell::webhooks::again::{self, DeadWebhook, Filter};
use darkroom::shell::webhooks::keep;
use darkroom::wire::time::rfc3339;
use darkroom::wire::webhook::Progress;
use serde_json::{Value, json};

use super::output::{Output, mark};
use super::{Exit, Failed};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum WebhooksCommand {
    /// List webhooks that were given up, newest first
    List {
        #[command(flatten)]
        filter: FilterOptions,
        /// At most so many
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: usize,
    },
    /// List webhooks that failed and will be tried again, the next to come first
    Waiting {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<Tenant>,
    },
    /// Send those that were given up again, from the first attempt on, and enable their endpoints
    #[command(after_help = "Examples:\n  darkroom webhooks retry 17\n  darkroom webhooks retry --all --tenant acme")]
    Retry {
        #[command(flatten)]
        which: WhichOptions,
    },
    /// Remove those that were given up for good
    Drop {
        #[command(flatten)]
        which: WhichOptions,
    },
    /// Print the secret that a tenant's webhooks are signed with; made when there is none
    Secret {
        /// Whose
        tenant: Tenant,
        /// Make a new one
        #[arg(long)]
        rotate: bool,
        /// For how long the old one signs too
        #[arg(long, default_value = "24h", value_parser = parse_duration, value_name = "DURATION", requires = "rotate")]
        keep_old: Duration,
    },
    /// List the endpoints that are told nothing, because they answered 410
    Disabled {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<Tenant>,
    },
    /// Tell an endpoint of new events again
    Enable {
        /// Whose
        tenant: Tenant,
        /// Its URL, as the requests have it
        url: String,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct FilterOptions {
    /// Only this tenant's
    #[arg(long)]
    tenant: Option<Tenant>,
    /// Only with this code, as `attempts_exhausted`
    #[arg(long)]
    code: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct WhichOptions {
    /// Its number, the event's id, or the job's
    #[arg(required_unless_present = "all")]
    id: Option<String>,
    /// All that the filters let through
    #[arg(long, conflicts_with = "id")]
    all: bool,
    #[command(flatten)]
    filter: FilterOptions,
}

impl From<FilterOptions> for Filter {
    fn from(FilterOptions { tenant, code }: FilterOptions) -> Self {
        Self { tenant, code }
    }
}

pub(crate) async fn run(options: &BusOptions, command: WebhooksCommand, output: &Output) -> Result<Exit, Failed> {
    let bus = bus::connect(options, "darkroom-webhooks").await?;
    match command {
        WebhooksCommand::List { filter, limit } => {
            let found = again::list(&bus, &filter.into(), limit).await?;
            if found.is_empty() {
                output.note("no webhooks were given up");
            }
            for dead in found {
                output.line(line(&dead), &value(&dead));
            }
        }
        WebhooksCommand::Waiting { tenant } => {
            let mut found = keep::waiting(&bus).await?;
            if let Some(tenant) = tenant {
                found.retain(|progress| progress.id.split('/').next() == Some(tenant.as_str()));
            }
            if found.is_empty() {
                output.note("no webhook waits for another attempt");
            }
            for Progress { attempts, next_unix_ms, last, id, host } in found {
                let next = rfc3339(next_unix_ms);
                let text = format!("{next}  {id:40} {host:24} {attempts:>3} {last}");
                output.line(text, &json!({"next": next, "id": id, "host": host, "attempts": attempts, "last": last}));
            }
        }
        WebhooksCommand::Retry { which } => {
            return each(&bus, which, output, async |dead| {
                again::retry(&bus, dead).await?;
                // Only now: the stream has confirmed it.
                again::remove(&bus, dead).await?;
                output.line(format!("sent again {}", dead.id), &value(dead));
                Ok(())
            })
            .await;
        }
        WebhooksCommand::Drop { which } => {
            return each(&bus, which, output, async |dead| {
                again::remove(&bus, dead).await?;
                output.line(format!("dropped {}", dead.sequence), &value(dead));
                Ok(())
            })
            .await;
        }
        WebhooksCommand::Secret { tenant, rotate, keep_old } => {
            let secrets = match rotate {
                true => keep::rotate(&bus, &Clock::start(), &tenant, keep_old).await?,
                false => keep::secrets(&bus, &tenant).await?,
            };
            let previous: Vec<Value> = secrets
                .previous
                .iter()
                .map(|(secret, until)| json!({"secret": secret.reveal(), "until": rfc3339(*until)}))
                .collect();
            let current = secrets.current.reveal();
            output.line(&current, &json!({"tenant": tenant.as_str(), "secret": current, "previous": previous}));
        }
        WebhooksCommand::Disabled { tenant } => {
            let found = keep::disabled(&bus, tenant.as_ref()).await?;
            if found.is_empty() {
                output.note("every endpoint is told");
            }
            for (tenant, endpoint) in found {
                let since = rfc3339(endpoint.unix_ms);
                let text = format!("{since}  {tenant:16} {}", endpoint.url);
                output.line(text, &json!({"tenant": tenant, "url": endpoint.url, "since": since}));
            }
        }
        WebhooksCommand::Enable { tenant, url } => {
            let endpoint = url.parse::<WebhookUrl>();
            let endpoint = endpoint.map_err(|error| Failed::new(Exit::InvalidRequest, "invalid_request", error))?;
            keep::enable(&bus, &tenant, &endpoint).await?;
            output.line("enabled", &json!({"tenant": tenant.as_str(), "url": url, "enabled": true}));
        }
    }
    Ok(Exit::Success)
}

/// Does something with the one that was named, or with all, the oldest first; what fails holds up no other, and is told.
async fn each(
    bus: &Bus,
    which: WhichOptions,
    output: &Output,
    mut act: impl AsyncFnMut(&DeadWebhook) -> Result<(), Failed>,
) -> Result<Exit, Failed> {
    let filter = which.filter.into();
    if let Some(id) = which.id {
        act(&again::find(bus, &id, &filter).await?).await?;
        return Ok(Exit::Success);
    }
    let found = again::list(bus, &filter, usize::MAX).await?;
    if found.is_empty() {
        output.note("no webhooks were given up");
    }
    Ok(super::each(found.iter().rev(), output, |dead| format!("webhook {}", dead.sequence), act).await)
}

fn line(dead: &DeadWebhook) -> String {
    let DeadWebhook { sequence, unix_ms, id, host, code, message, attempts, .. } = dead;
    let code = mark(&format!("{code:18}"), "31");
    let message: String = message.chars().take(80).collect();
    format!("{sequence:>6}  {}  {id:40} {host:24} {attempts:>3} {code} {message}", rfc3339(*unix_ms))
}

fn value(dead: &DeadWebhook) -> Value {
    json!({
        "number": dead.sequence, "time": rfc3339(dead.unix_ms), "tenant": dead.tenant.as_str(), "job": dead.job.as_str(),
        "id": dead.id, "host": dead.host, "code": dead.code, "message": dead.message, "attempts": dead.attempts,
    })
}

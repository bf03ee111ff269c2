//! `keys`: API keys of the gateway.

use darkroom::job::Tenant;
use darkroom::shell::api_keys;
use darkroom::shell::bus;
use darkroom::shell::clock::Clock;
use darkroom::shell::config::BusOptions;
use serde_json::json;

use super::output::Output;
use super::{Exit, Failed};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a key of a tenant, and print it: it cannot be read again
    Add {
        /// Whose jobs are made and seen with it
        tenant: Tenant,
        /// What it is for
        #[arg(long, default_value = "", value_name = "TEXT")]
        label: String,
        /// Requests that it may make in a minute; as the gateway has it when absent
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        requests_per_minute: Option<u32>,
    },
    /// All keys, by what they are kept under
    List {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<Tenant>,
    },
    /// Remove a key: it is refused within a minute
    Remove {
        /// What it is kept under, as `list` shows it, or how that begins
        name: String,
    },
}

pub(crate) async fn keys(options: &BusOptions, command: KeysCommand, output: &Output) -> Result<Exit, Failed> {
    let bus = bus::connect(options, "darkroom-keys").await?;
    match command {
        KeysCommand::Add { tenant, label, requests_per_minute } => {
            let made = api_keys::make(&bus, &Clock::start(), &tenant, label, requests_per_minute).await?;
            output.line(&made.key, &json!({"key": made.key, "name": made.name, "tenant": tenant.as_str()}));
            Ok(Exit::Success)
        }
        KeysCommand::List { tenant } => {
            let keys = api_keys::list(&bus).await?;
            let wanted = |of: &str| tenant.as_ref().is_none_or(|tenant| tenant.as_str() == of);
            for (name, key) in keys.into_iter().filter(|(_, key)| wanted(&key.tenant)) {
                let rate = key.requests_per_minute.map_or_else(String::new, |rate| format!("  {rate} a minute"));
                let text = format!("{}  {:24} {}{rate}  {}", &name[..16], key.tenant, key.created, key.label);
                output.line(
                    text,
                    &json!({
                        "name": name, "tenant": key.tenant, "label": key.label, "created": key.created,
                        "requests_per_minute": key.requests_per_minute,
                    }),
                );
            }
            Ok(Exit::Success)
        }
        KeysCommand::Remove { name } => match api_keys::remove(&bus, &name).await? {
            Some(name) => {
                output.line(format!("{name} is removed"), &json!({"name": name, "removed": true}));
                Ok(Exit::Success)
            }
            None => {
                let error = anyhow::anyhow!("no key is kept under a name that begins with {name}, or several are");
                Err(Failed::new(Exit::NotFound, "unknown_key", error))
            }
        },
    }
}

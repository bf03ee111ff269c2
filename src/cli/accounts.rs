//! `accounts` and `tenant add`: files and text for a nats-server with accounts. They talk to no server.

use std::path::PathBuf;

use anyhow::Context;
use darkroom::job::{ModelName, Pool, Priority, Tenant};
use darkroom::shell::accounts;
use serde_json::json;

use super::output::Output;
use super::{Exit, Failed};

#[derive(Debug, clap::Args)]
pub(crate) struct AccountsOptions {
    /// Where to; what is there already is left as it is, and is an error
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum TenantCommand {
    /// Print the block of a new tenant's account, for the server's tenants.conf
    ///
    /// The server takes it up when it is told to reload, twice: `nats-server --signal reload=PID`.
    #[command(
        after_help = "Example:\n  darkroom tenant add acme --model shapes --seed acme.nk >> /etc/darkroom/nats/tenants.conf"
    )]
    Add(TenantOptions),
}

#[derive(Debug, clap::Args)]
pub(crate) struct TenantOptions {
    /// The tenant's name, which is also that of its account
    name: Tenant,
    /// A model that it may use; may be repeated
    #[arg(long, value_name = "NAME", required = true)]
    model: Vec<ModelName>,
    /// Priorities that it may use
    #[arg(long, value_delimiter = ',', default_value = "high,normal,low", value_name = "NAMES")]
    priority: Vec<Priority>,
    /// Pools that it may use
    #[arg(long, value_delimiter = ',', default_value = "any", value_name = "NAMES")]
    pool: Vec<Pool>,
    /// Where to write the seed of the key that the tenant is to have
    #[arg(long, value_name = "FILE", required_unless_present = "public_key")]
    seed: Option<PathBuf>,
    /// The public half of a key that the tenant made itself, instead
    #[arg(long, value_name = "KEY", conflicts_with = "seed")]
    public_key: Option<String>,
}

pub(crate) fn make(options: &AccountsOptions, output: &Output) -> Result<Exit, Failed> {
    for path in accounts::make_directory(&options.dir)? {
        let path = path.display().to_string();
        output.line(&path, &json!({ "path": path }));
    }
    Ok(Exit::Success)
}

pub(crate) fn add_tenant(options: TenantOptions, output: &Output) -> Result<Exit, Failed> {
    let TenantOptions { name, model, priority, pool, seed, public_key } = options;
    let block = |key: &str| accounts::tenant_block(&name, key, &model, &priority, &pool);
    let block = match (public_key, seed) {
        (Some(key), _) => block(&key)?,
        (None, seed) => {
            let (key, seed) = (accounts::NewKey::new(), seed.context("--seed or --public-key is needed")?);
            let block = block(&key.public())?;
            key.write_seed(&seed)?;
            block
        }
    };
    output.line(block.trim_end(), &json!({ "tenant": name.as_str(), "block": block }));
    Ok(Exit::Success)
}

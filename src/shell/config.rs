//! Options that several programs share, from flags and environment; every default is in `--help`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::job::{Capacity, Status};
use crate::wire::price::{PriceError, Prices};

use super::guard::AddressGuard;
use super::spot::SpotNotices;

/// Where NATS is, and who asks.
#[derive(Clone, Debug, clap::Args)]
pub struct BusOptions {
    /// URL of the NATS server, or several separated by commas: nats://, tls://, ws:// or wss://, with user and password or
    /// token where needed
    #[arg(
        long,
        env = "NATS_URL",
        hide_env_values = true,
        default_value = "nats://127.0.0.1:4222",
        value_name = "URL",
        global = true
    )]
    pub nats: String,
    /// Credentials file for NATS
    #[arg(long, env = "NATS_CREDS", value_name = "FILE", global = true)]
    pub nats_creds: Option<PathBuf>,
    /// File with the seed of the nkey that says who this is
    #[arg(long, env = "NATS_NKEY", value_name = "FILE", conflicts_with = "nats_creds", global = true)]
    pub nats_nkey: Option<PathBuf>,
    /// File with the certificates of the only authorities that the server's may be from, PEM; TLS is then demanded
    #[arg(long, env = "NATS_CA", value_name = "FILE", global = true)]
    pub nats_ca: Option<PathBuf>,
    /// File with this client's own certificate, PEM, for servers that want one
    #[arg(long, env = "NATS_CERT", value_name = "FILE", global = true)]
    pub nats_cert: Option<PathBuf>,
    /// File with the key of --nats-cert, PEM
    #[arg(long, env = "NATS_KEY", value_name = "FILE", global = true)]
    pub nats_key: Option<PathBuf>,
    /// Beginning of the subjects that answers come to, where permissions name one
    #[arg(long, env = "NATS_INBOX_PREFIX", default_value = "_INBOX", value_name = "SUBJECT", global = true)]
    pub nats_inbox_prefix: String,
}

impl BusOptions {
    /// A server that asks nobody who they are.
    pub fn open(url: impl Into<String>) -> Self {
        Self {
            nats: url.into(),
            nats_creds: None,
            nats_nkey: None,
            nats_ca: None,
            nats_cert: None,
            nats_key: None,
            nats_inbox_prefix: "_INBOX".to_owned(),
        }
    }
}

/// Where images go.
#[derive(Clone, Debug, clap::Args)]
pub struct StoreOptions {
    /// URL of the object store: file:///path, s3://bucket/prefix, gs://bucket, az://container, memory:///; credentials
    /// and endpoints from the usual variables (AWS_*, GOOGLE_*, AZURE_*)
    #[arg(long, env = "DARKROOM_STORE", value_name = "URL")]
    pub store: String,
    /// How long presigned URLs are good
    #[arg(long, env = "DARKROOM_URL_EXPIRES", default_value = "24h", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub url_expires: Duration,
}

/// Which model is served, and where models of the object store are kept on this machine.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelOptions {
    /// The model: a diffusers directory, or the URL of one in an object store, as s3://bucket/models/sd15
    #[arg(long, env = "DARKROOM_MODEL", value_name = "DIR|URL")]
    pub model: ModelSource,
    /// Where models of the object store are kept for all workers of this machine; in the user's cache when absent
    #[arg(long, env = "DARKROOM_MODEL_CACHE", value_name = "DIR")]
    pub model_cache: Option<PathBuf>,
    /// What they may have together, as `200GiB`; those that were not used for longest make room; no limit when absent
    #[arg(long, env = "DARKROOM_MODEL_CACHE_MAX", value_parser = parse_bytes, value_name = "BYTES")]
    pub model_cache_max: Option<u64>,
}

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// On this machine.
    Directory(PathBuf),
    /// In an object store.
    Url(String),
}

impl FromStr for ModelSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((scheme, _)) = text.split_once("://") else {
            return if text.is_empty() {
                Err("must be a directory or a URL such as s3://bucket/models/sd15".to_owned())
            } else {
                Ok(Self::Directory(text.into()))
            };
        };
        match scheme {
            "memory" | "http" | "https" => {
                Err(format!("must be a directory or a URL such as s3://bucket/models/sd15, not {scheme}:"))
            }
            _ => Ok(Self::Url(text.to_owned())),
        }
    }
}

/// Where this user's programs keep what can be had again: `$XDG_CACHE_HOME/darkroom`.
pub fn user_cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("darkroom"))
}

/// How long jobs can be looked up after their end, by their record and their events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Retention {
    /// How long the record and the events of a completed job are kept
    #[arg(
        id = "retain_completed",
        long = "retain-completed",
        env = "DARKROOM_RETAIN_COMPLETED",
        default_value = "24h",
        value_parser = parse_retention,
        value_name = "DURATION"
    )]
    pub completed: Duration,
    /// How long those of a failed or cancelled job are
    #[arg(
        id = "retain_failed",
        long = "retain-failed",
        env = "DARKROOM_RETAIN_FAILED",
        default_value = "1h",
        value_parser = parse_retention,
        value_name = "DURATION"
    )]
    pub failed: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { completed: Duration::from_secs(24 * 3600), failed: Duration::from_secs(3600) }
    }
}

impl Retention {
    /// How long a job is kept that ended so; `None` for one that has not ended.
    pub fn of(&self, status: Status) -> Option<Duration> {
        match status {
            Status::Completed => Some(self.completed),
            Status::Failed | Status::Cancelled => Some(self.failed),
            Status::Pending | Status::Processing => None,
        }
    }

    /// How long a job is kept at the longest, however it ends.
    pub fn longest(&self) -> Duration {
        self.completed.max(self.failed)
    }
}

/// Events must outlive their jobs' records, and their stream keeps nothing for longer than 31 days.
pub(super) const RETENTION_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Reads a duration that a server can count: whole seconds, one at least.
fn parse_retention(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_secs(1)..=RETENTION_MAX).contains(&duration) {
        Ok(duration)
    } else {
        Err("must be 1s to 30d".to_owned())
    }
}

/// What becomes of running jobs when their worker ends, dies or hangs.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Interruptions {
    /// Save the rows of a running job after so long, so that another worker can go on from there
    #[arg(
        long,
        env = "DARKROOM_CHECKPOINT_EVERY",
        default_value = "10s",
        value_parser = parse_duration,
        value_name = "DURATION"
    )]
    pub checkpoint_every: Duration,
    /// And after so many of its steps, if that is sooner
    #[arg(long, env = "DARKROOM_CHECKPOINT_STEPS", value_name = "STEPS")]
    pub checkpoint_steps: Option<u32>,
    /// Give all jobs back and exit when the engine does not answer for so long, and for 20 times longer than it usually
    /// takes
    #[arg(
        long,
        env = "DARKROOM_ENGINE_STALL_MAX",
        default_value = "60s",
        value_parser = parse_duration,
        value_name = "DURATION"
    )]
    pub engine_stall_max: Duration,
    /// Time between SIGTERM and the end: what can be finished is, the rest is saved and given back
    #[arg(
        long,
        env = "DARKROOM_GRACE",
        default_value = "30s",
        value_parser = parse_duration,
        value_name = "DURATION"
    )]
    pub grace: Duration,
}

/// What a worker runs on, and what that costs.
#[derive(Clone, Debug, clap::Args)]
pub struct Machine {
    /// How the machine is bought: spot, which takes only requests that may be interrupted, or on-demand
    #[arg(long, env = "DARKROOM_CAPACITY", default_value = "on-demand", value_name = "NAME")]
    pub capacity: Capacity,
    /// The machine's type as its cloud calls it, such as g5.xlarge
    #[arg(long, env = "DARKROOM_INSTANCE_TYPE", value_name = "NAME")]
    pub instance_type: Option<String>,
    /// What the machine costs in US dollars an hour; of the list of prices, by its type, when absent
    #[arg(long, env = "DARKROOM_PRICE_PER_HOUR", value_name = "USD")]
    pub price_per_hour: Option<f64>,
    /// A list of prices instead of the one that is built in
    #[arg(long, env = "DARKROOM_PRICES", value_name = "FILE")]
    pub prices: Option<PathBuf>,
    /// Whose metadata service says that the machine will be taken away: ec2, gcp or off; work is then saved and handed over
    #[arg(long, env = "DARKROOM_SPOT_NOTICES", default_value = "off", value_name = "NAME")]
    pub spot_notices: SpotNotices,
}

/// Why nobody knows what the machine costs.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The file of prices cannot be read.
    #[error("--prices: {path} cannot be read")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is none.
    #[error("--prices is no list of prices")]
    Prices(#[from] PriceError),
    /// A price that nothing has.
    #[error("--price-per-hour is {0}, must be a number from 0 up")]
    Price(f64),
}

impl Machine {
    /// US dollars an hour; `None` where nobody says what machine it is, or the list does not have it: work goes on without.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn price(&self) -> Result<Option<f64>, MachineError> {
        if let Some(price) = self.price_per_hour {
            return if price.is_finite() && price >= 0.0 { Ok(Some(price)) } else { Err(MachineError::Price(price)) };
        }
        let Some(instance_type) = &self.instance_type else { return Ok(None) };
        let prices = match &self.prices {
            Some(path) => {
                let unreadable = |source| MachineError::Unreadable { path: path.clone(), source };
                Prices::parse(&std::fs::read_to_string(path).map_err(unreadable)?)?
            }
            None => Prices::come_along()?,
        };
        let price = prices.per_worker_hour(instance_type, self.capacity);
        Ok(price.inspect_err(|error| tracing::warn!(%error, "machine.price")).ok())
    }
}

/// What may be fetched for a request.
#[derive(Clone, Debug, clap::Args)]
pub struct FetchOptions {
    /// Hosts, addresses and networks that pictures may be fetched from although they are not on the public internet,
    /// with http too; separated by commas, as `localhost,10.1.0.0/16`
    #[arg(long, env = "DARKROOM_FETCH_ALLOW", default_value = "", value_name = "HOSTS")]
    pub fetch_allow: AddressGuard,
}

/// Reads a duration as people write it: `30s`, `5m`.
///
/// # Errors
/// humantime's, when it is none.
pub fn parse_duration(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}

/// Reads a number of bytes as people write it: `8GiB`, `512MB`, `4096`.
///
/// # Errors
/// What it must be, when it is none.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let bytes: Result<bytesize::ByteSize, _> = text.parse();
    bytes.map(|size| size.as_u64()).map_err(|_| "must be a number of bytes, or with a unit, such as 8GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_a_directory_or_in_a_store() {
        let url = |text: &str| ModelSource::Url(text.to_owned());
        assert_eq!("models/sd15".parse(), Ok(ModelSource::Directory("models/sd15".into())));
        assert_eq!("s3://bucket/models/sd15".parse(), Ok(url("s3://bucket/models/sd15")));
        assert_eq!("file:///models/sd15".parse(), Ok(url("file:///models/sd15")));
        for text in ["", "memory:///sd15", "https://example.org/sd15"] {
            assert!(text.parse::<ModelSource>().unwrap_err().contains("s3://bucket"), "{text}");
        }
    }

    #[test]
    fn events_outlive_the_records_of_their_jobs() {
        for text in ["1s", "24h", "30d"] {
            assert!(parse_retention(text).is_ok(), "{text}");
        }
        for text in ["0s", "999ms", "31d"] {
            assert_eq!(parse_retention(text), Err("must be 1s to 30d".to_owned()), "{text}");
        }
        let stream = include_str!("../../nats/streams/DARKROOM_EV.json");
        let stream: serde_json::Value = serde_json::from_str(stream).unwrap();
        let kept = Duration::from_nanos(stream["max_age"].as_u64().unwrap());
        assert!(RETENTION_MAX + crate::shell::events::LONGER_THAN_RECORD <= kept);
    }

    #[test]
    fn bytes_come_with_and_without_units() {
        let accepted = [("4096", 4096), ("8GiB", 8 << 30), ("1.5 GiB", 3 << 29), ("20 mb", 20_000_000), ("0", 0)];
        for (text, bytes) in accepted {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "-1", "8 apples", "1e9x"] {
            assert!(parse_bytes(text).unwrap_err().contains("8GiB"), "{text}");
        }
    }
}

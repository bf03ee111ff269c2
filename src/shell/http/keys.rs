//! Whose a key is that a client shows, and how often it may be used.
//!
//! What is known of a key is remembered for a minute, so a removed key works for that long. Each copy of the gateway counts
//! for itself.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::kv::{self, Operation};
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::OnceCell;

use crate::job::{Fault, FaultCode, Tenant};
use crate::sched::Mono;
use crate::shell::api_keys;
use crate::shell::bus::{Bus, look};
use crate::wire::api_key;

/// How long what is known of a key is taken for true.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Keys that are remembered at a time.
const REMEMBERED_MAX: usize = 10_000;

/// Whose a key is.
#[derive(Clone, Debug)]
pub(super) enum Checked {
    /// This tenant's.
    Of(Tenant),
    /// It was used too often; once more after so long.
    TooOften(Duration),
    /// Nobody's.
    Unknown,
}

/// What the gateway knows of keys.
#[derive(Debug)]
pub(super) struct Keys {
    bus: Bus,
    /// Opened by the first who shows a key: before, there may be none yet, or nobody who answers.
    bucket: OnceCell<kv::Store>,
    requests_per_minute: NonZeroU32,
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Clone, Debug)]
struct Known {
    tenant: Tenant,
    limiter: Arc<DefaultDirectRateLimiter>,
    looked: Mono,
}

impl Keys {
    /// Those of the bucket on `bus`, which may be used so often unless it says otherwise.
    pub(super) fn new(bus: Bus, requests_per_minute: NonZeroU32) -> Self {
        Self { bus, bucket: OnceCell::new(), requests_per_minute, known: Mutex::default() }
    }

    /// Whose it is.
    ///
    /// # Errors
    /// A `Retry` fault when the bucket does not answer, or does not exist.
    pub(super) async fn check(&self, key: &str, now: Mono) -> Result<Checked, Fault> {
        let name = api_key::name(key);
        let remembered = self.lock().get(&name).cloned();
        let known = match remembered {
            Some(known) if now.since(known.looked) < REMEMBERED => known,
            earlier => {
                let Some(known) = self.look(&name, earlier, now).await? else {
                    self.lock().remove(&name);
                    return Ok(Checked::Unknown);
                };
                let mut all = self.lock();
                if all.len() >= REMEMBERED_MAX {
                    all.clear();
                }
                all.insert(name, known.clone());
                known
            }
        };
        match known.limiter.check() {
            Ok(()) => Ok(Checked::Of(known.tenant)),
            Err(until) => Ok(Checked::TooOften(until.wait_time_from(DefaultClock::default().now()))),
        }
    }

    async fn look(&self, name: &str, earlier: Option<Known>, now: Mono) -> Result<Option<Known>, Fault> {
        let bucket = self.bucket.get_or_try_init(|| api_keys::bucket(&self.bus)).await?;
        let entry = look(|| bucket.entry(name)).await;
        let entry =
            entry.map_err(|error| Fault::retry(FaultCode::BusFailed, format!("the bucket of keys: {error}")))?;
        let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else { return Ok(None) };
        let Ok(document) = api_key::decode(&entry.value) else { return Ok(None) };
        let Ok(tenant) = document.tenant.parse() else { return Ok(None) };
        let per_minute = document.requests_per_minute.and_then(NonZeroU32::new).unwrap_or(self.requests_per_minute);
        let limiter = match earlier {
            // What it has used up stays used up.
            Some(earlier) => earlier.limiter,
            None => Arc::new(RateLimiter::direct(Quota::per_minute(per_minute))),
        };
        Ok(Some(Known { tenant, limiter, looked: now }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

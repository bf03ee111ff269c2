//! API keys in their bucket: making, listing and removing them.
//!
//! The bucket holds hashes only: a key can be read when it is made and never again. Who shows one is the gateway's to find out.

use async_nats::jetstream::kv;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::TryStreamExt;
use uuid::Uuid;

use crate::job::{Fault, FaultCode, Tenant};
use crate::wire::api_key::{self, KeyDocument, PREFIX};
use crate::wire::subject;
use crate::wire::time::rfc3339;

use super::bus::{Bus, chain};
use super::clock::Clock;

/// A key that was just made: the only time that it can be read.
#[derive(Clone, Debug)]
pub struct Made {
    /// What clients show.
    pub key: String,
    /// What it is kept under.
    pub name: String,
}

/// Makes a key of a tenant.
///
/// # Errors
/// A `Retry` fault when the bucket does not answer.
pub async fn make(
    bus: &Bus,
    clock: &Clock,
    tenant: &Tenant,
    label: String,
    requests_per_minute: Option<u32>,
) -> Result<Made, Fault> {
    // Two times 122 bits of the system's randomness.
    let random = [Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes()].concat();
    let key = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
    let name = api_key::name(&key);
    let document =
        KeyDocument { tenant: tenant.to_string(), label, created: rfc3339(clock.unix_ms()), requests_per_minute };
    let bucket = bucket(bus).await?;
    bucket.create(&name, api_key::encode(&document).into()).await.map_err(|error| lost(&error))?;
    Ok(Made { key, name })
}

/// Every key: what it is kept under, and what is known of it.
///
/// # Errors
/// A `Retry` fault when the bucket does not answer.
pub async fn list(bus: &Bus) -> Result<Vec<(String, KeyDocument)>, Fault> {
    let bucket = bucket(bus).await?;
    let names: Vec<String> =
        bucket.keys().await.map_err(|error| lost(&error))?.try_collect().await.map_err(|error| lost(&error))?;
    let mut keys = Vec::new();
    for name in names {
        let found = bucket.get(&name).await.map_err(|error| lost(&error))?;
        keys.extend(found.and_then(|bytes| api_key::decode(&bytes).ok()).map(|document| (name, document)));
    }
    keys.sort_by(|(_, one), (_, other)| (&one.tenant, &one.created).cmp(&(&other.tenant, &other.created)));
    Ok(keys)
}

/// Removes the key whose name begins so; its name, or `None` when there is no such key, or more than one.
///
/// # Errors
/// A `Retry` fault when the bucket does not answer.
pub async fn remove(bus: &Bus, name: &str) -> Result<Option<String>, Fault> {
    let found: Vec<String> =
        list(bus).await?.into_iter().map(|(full, _)| full).filter(|full| full.starts_with(name)).collect();
    let [only] = &found[..] else { return Ok(None) };
    bucket(bus).await?.purge(only).await.map_err(|error| lost(&error))?;
    Ok(Some(only.clone()))
}

fn lost(error: &(dyn std::error::Error + 'static)) -> Fault {
    Fault::retry(FaultCode::BusFailed, format!("the bucket of keys: {}", chain(error)))
}

/// Opens the bucket.
///
/// # Errors
/// A `Retry` fault when it does not exist or nobody answers.
pub async fn bucket(bus: &Bus) -> Result<kv::Store, Fault> {
    bus.context.get_key_value(subject::BUCKET_KEYS).await.map_err(|error| lost(&error))
}

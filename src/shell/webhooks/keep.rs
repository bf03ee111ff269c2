//! What is remembered of webhooks in two buckets: attempts, endpoints that are told nothing, and tenants' secrets.
//!
//! Buckets are read and written by subject, as tenants' records are: so permissions can name single keys.

use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;

use crate::job::{Fault, FaultCode, Tenant, WebhookUrl};
use crate::wire::signature::{SECRET_BYTES, Secret, Secrets};
use crate::wire::webhook::{DisabledEndpoint, Progress, endpoint_key};
use crate::wire::{header, subject};

use super::super::bus::{Bus, PublishError, chain};
use super::super::clock::Clock;
use super::super::stored;

/// How much longer progress is kept than until the next attempt is due.
const LONGER_THAN_WAIT: Duration = Duration::from_secs(24 * 3600);
/// How long the mark of a removed key is kept.
const REMOVED_FOR: Duration = Duration::from_secs(60);
/// How often it is tried again when somebody else changes secrets at the same time.
const RACES_MAX: usize = 8;

/// What stands under a key, and the revision that a change must name.
struct Found {
    value: Option<Bytes>,
    revision: u64,
}

async fn look(bus: &Bus, bucket: &str, key: String) -> Result<Found, Fault> {
    let lost = |why: String| Fault::retry(FaultCode::BusFailed, format!("the bucket {bucket}: {why}"));
    let stream = bus.context.get_stream_no_info(subject::stream_of_bucket(bucket)).await;
    let stream = stream.map_err(|error| lost(chain(&error)))?;
    let last = stored::last_on(&stream, &key).await.map_err(|error| lost(chain(&error)))?;
    Ok(last.map_or(Found { value: None, revision: 0 }, |message| {
        let is_removed = message.headers.get(header::KEY_OPERATION).is_some();
        let value = (!is_removed && !message.payload.is_empty()).then_some(message.payload);
        Found { value, revision: message.sequence }
    }))
}

/// How far a delivery has come, by its sequence.
///
/// # Errors
/// A `Retry` fault when nobody answers.
pub(super) async fn progress(bus: &Bus, sequence: u64) -> Result<Progress, Fault> {
    let found = look(bus, subject::BUCKET_WEBHOOKS, subject::webhook_progress(sequence)).await?;
    Ok(found.value.map_or_else(Progress::default, |value| Progress::decode(&value)))
}

/// Remembers it, for as long as there may be another attempt.
///
/// # Errors
/// A `Retry` fault when nobody answers.
pub(super) async fn set_progress(bus: &Bus, sequence: u64, progress: &Progress, wait: Duration) -> Result<(), Fault> {
    let mut headers = HeaderMap::new();
    let kept = wait.saturating_mul(2).saturating_add(LONGER_THAN_WAIT);
    headers.insert(header::TIME_TO_LIVE, header::time_to_live(kept));
    bus.publish(&subject::webhook_progress(sequence), headers, progress.encode().into()).await?;
    Ok(())
}

/// Forgets it: the delivery is over. What is not forgotten goes by itself.
///
/// # Errors
/// A `Retry` fault when nobody answers.
pub(super) async fn forget_progress(bus: &Bus, sequence: u64) -> Result<(), Fault> {
    bus.publish(&subject::webhook_progress(sequence), removal(), Bytes::new()).await?;
    Ok(())
}

/// The deliveries that wait for another attempt, the next to come first, at most 1024.
///
/// # Errors
/// A `Retry` fault when nobody answers.
pub async fn waiting(bus: &Bus) -> Result<Vec<Progress>, Fault> {
    let stream = subject::stream_of_bucket(subject::BUCKET_WEBHOOKS);
    let found = stored::last_of(bus, &stream, &[subject::webhooks_progress()]).await?;
    let mut waiting: Vec<Progress> = found.iter().map(|stored| Progress::decode(&stored.body)).collect();
    waiting.retain(|progress| progress.attempts > 0);
    waiting.sort_by_key(|progress| progress.next_unix_ms);
    Ok(waiting)
}

fn removal() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::KEY_OPERATION, header::KEY_DELETED);
    headers.insert(header::TIME_TO_LIVE, header::time_to_live(REMOVED_FOR));
    headers
}

/// Whether an endpoint is told nothing.
///
/// # Errors
/// A `Retry` fault when nobody answers.
pub async fn is_disabled(bus: &Bus, tenant: &Tenant, url: &WebhookUrl) -> Result<bool, Fault> {
    let key = subject::webhook_endpoint(tenant, &endpoint_key(url));
    Ok(look(bus, subject::BUCKET_WEBHOOKS, key).await?.value.is_some())
}

/// Tells an endpoint nothing any more.
///
/// # Errors
/// A `Retry` fault when nobody answers.
pub(super) async fn disable(bus: &Bus, clock: &Clock, tenant: &Tenant, url: &WebhookUrl) -> Result<(), Fault> {
    let key = subject::webhook_endpoint(tenant, &endpoint_key(url));
    let endpoint = DisabledEndpoint { url: url.as_str().to_owned(), unix_ms: clock.unix_ms() };
    bus.publish(&key, HeaderMap::new(), endpoint.encode().into()).await?;
    Ok(())
}

/// Tells an endpoint something again; one that was told all the time stays as it is.
///
/// # Errors
/// A `Retry` fault when nobody answers.
pub async fn enable(bus: &Bus, tenant: &Tenant, url: &WebhookUrl) -> Result<(), Fault> {
    bus.publish(&subject::webhook_endpoint(tenant, &endpoint_key(url)), removal(), Bytes::new()).await?;
    Ok(())
}

/// The endpoints that are told nothing, at most 1024.
///
/// # Errors
/// A `Retry` fault when nobody answers.
pub async fn disabled(bus: &Bus, tenant: Option<&Tenant>) -> Result<Vec<(String, DisabledEndpoint)>, Fault> {
    let stream = subject::stream_of_bucket(subject::BUCKET_WEBHOOKS);
    let found = stored::last_of(bus, &stream, &[subject::webhook_endpoints(tenant)]).await?;
    let endpoint = |stored: stored::Stored| {
        let tenant = subject::tenant_of_endpoint(&stored.subject)?.to_owned();
        Some((tenant, DisabledEndpoint::decode(&stored.body)?))
    };
    Ok(found.into_iter().filter_map(endpoint).collect())
}

/// A tenant's secrets; made when it has none.
///
/// # Errors
/// A `Retry` fault when nobody answers, `Reject` when they cannot be read.
pub async fn secrets(bus: &Bus, tenant: &Tenant) -> Result<Secrets, Fault> {
    change_secrets(bus, tenant, |found| match found {
        Some(_) => Ok(None),
        None => Ok(Some(Secrets::first(new_secret()?))),
    })
    .await
}

/// Makes a new secret for a tenant; those that are good now sign too for as long as `keep_old`.
///
/// # Errors
/// As [`secrets`].
pub async fn rotate(bus: &Bus, clock: &Clock, tenant: &Tenant, keep_old: Duration) -> Result<Secrets, Fault> {
    let now = clock.unix_ms();
    let until = now.saturating_add(i64::try_from(keep_old.as_millis()).unwrap_or(i64::MAX));
    change_secrets(bus, tenant, |found| {
        let new = new_secret()?;
        Ok(Some(found.map_or_else(|| Secrets::first(new.clone()), |old| old.rotated(new.clone(), now, until))))
    })
    .await
}

/// Changes a tenant's secrets by compare-and-set: two at once are both done, one after the other. `change` answers with
/// nothing where they are to stay.
async fn change_secrets(
    bus: &Bus,
    tenant: &Tenant,
    change: impl Fn(Option<&Secrets>) -> Result<Option<Secrets>, Fault>,
) -> Result<Secrets, Fault> {
    let key = subject::webhook_secrets(tenant);
    for _ in 0..RACES_MAX {
        let found = look(bus, subject::BUCKET_WEBHOOK_SECRETS, key.clone()).await?;
        let known = found.value.as_deref().map(Secrets::decode).transpose();
        let known = known.map_err(|error| Fault::reject(FaultCode::BusFailed, error.to_string()))?;
        let Some(secrets) = change(known.as_ref())? else {
            if let Some(known) = known {
                return Ok(known);
            }
            break;
        };
        let mut headers = HeaderMap::new();
        let expected: HeaderValue = found.revision.into();
        headers.insert(header::EXPECTED_LAST_SUBJECT_SEQUENCE, expected);
        match bus.publish(&key, headers, secrets.encode().into()).await {
            Ok(_) => return Ok(secrets),
            Err(PublishError::WrongLastSequence { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Fault::retry(FaultCode::BusFailed, "the tenant's secrets change faster than they can be written"))
}

fn new_secret() -> Result<Secret, Fault> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| Fault::fatal(FaultCode::BusFailed, error.to_string()))?;
    Ok(Secret::from_random(bytes))
}

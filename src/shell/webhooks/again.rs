//! Webhooks that were given up, as an operator works with them: list, find, send again, drop.

use std::ops::ControlFlow;

use crate::job::{JobId, Tenant};
use crate::wire::{header, subject};

use super::super::bus::Bus;
use super::super::dead_letters::{DeadLetterError, remove_from, scan};
use super::super::stored::Stored;
use super::attempt::host_of;
use super::{Delivery, keep};

/// A webhook that was given up.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadWebhook {
    /// Its sequence in the stream of those.
    pub sequence: u64,
    /// When it was given up, in milliseconds since the Unix epoch.
    pub unix_ms: i64,
    /// Whose job.
    pub tenant: Tenant,
    /// Which.
    pub job: JobId,
    /// The id of the event.
    pub id: String,
    /// The receiver's host and port.
    pub host: String,
    /// Why, as an [`crate::job::Undelivered`].
    pub code: String,
    /// What came of the last attempt.
    pub message: String,
    /// Attempts that were made.
    pub attempts: u32,
    /// What can be sent again; nothing where a header or the body is damaged.
    pub delivery: Option<Delivery>,
}

/// Which of them.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only of this tenant.
    pub tenant: Option<Tenant>,
    /// Only with this code.
    pub code: Option<String>,
}

impl Filter {
    fn matches(&self, dead: &DeadWebhook) -> bool {
        self.code.as_ref().is_none_or(|code| *code == dead.code)
    }
}

fn read(stored: Stored) -> Option<DeadWebhook> {
    let (tenant, job) = subject::webhook_owner(&stored.subject)?;
    let text = |name: &str| stored.header(name).unwrap_or_default().to_owned();
    let delivery = Delivery::read(&stored.subject, Some(&stored.headers), &stored.body);
    Some(DeadWebhook {
        sequence: stored.sequence,
        unix_ms: stored.unix_ms,
        tenant,
        job,
        id: text(header::WEBHOOK_EVENT),
        host: delivery.as_ref().map(|delivery| host_of(&delivery.url)).unwrap_or_default(),
        code: text(header::DEAD_LETTER_CODE),
        message: text(header::DEAD_LETTER_MESSAGE),
        attempts: text(header::DEAD_LETTER_ATTEMPTS).parse().unwrap_or_default(),
        delivery,
    })
}

/// Webhooks that were given up, newest first, at most `limit`.
///
/// # Errors
/// [`DeadLetterError`].
pub async fn list(bus: &Bus, filter: &Filter, limit: usize) -> Result<Vec<DeadWebhook>, DeadLetterError> {
    let mut found = Vec::new();
    if limit == 0 {
        return Ok(found);
    }
    scan(bus, subject::STREAM_DEAD_WEBHOOKS, &subject::dead_webhooks(filter.tenant.as_ref()), |stored| {
        found.extend(read(stored).filter(|dead| filter.matches(dead)));
        if found.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .await?;
    Ok(found)
}

/// The one that people mean by `id`: its number, the event's id, or the job's.
///
/// # Errors
/// [`DeadLetterError`].
pub async fn find(bus: &Bus, id: &str, filter: &Filter) -> Result<DeadWebhook, DeadLetterError> {
    let all = list(bus, filter, usize::MAX).await?;
    let number: Option<u64> = id.parse().ok();
    if let Some(dead) = all.iter().find(|dead| Some(dead.sequence) == number) {
        return Ok(dead.clone());
    }
    let mut named: Vec<DeadWebhook> = all.into_iter().filter(|dead| dead.id == id || dead.job.as_str() == id).collect();
    match (named.pop(), named.is_empty()) {
        (Some(dead), true) => Ok(dead),
        (Some(dead), false) => {
            let mut sequences: Vec<u64> = named.iter().map(|dead| dead.sequence).collect();
            sequences.push(dead.sequence);
            Err(DeadLetterError::Ambiguous { id: id.to_owned(), sequences })
        }
        (None, _) => Err(DeadLetterError::Unknown { id: id.to_owned() }),
    }
}

/// Sends one again, from the first attempt on, and enables its endpoint. It is not removed: whoever is killed before that can
/// repeat it.
///
/// # Errors
/// [`DeadLetterError`].
pub async fn retry(bus: &Bus, dead: &DeadWebhook) -> Result<(), DeadLetterError> {
    let unreadable = || DeadLetterError::UnreadableWebhook { sequence: dead.sequence };
    let delivery = dead.delivery.as_ref().ok_or_else(unreadable)?;
    if keep::is_disabled(bus, &delivery.tenant, &delivery.url).await? {
        keep::enable(bus, &delivery.tenant, &delivery.url).await?;
    }
    let message_id = header::webhook_again_id(&delivery.id, dead.sequence);
    delivery.send(bus, &message_id).await.map_err(crate::job::Fault::from)?;
    Ok(())
}

/// Removes one; it is no error if it is gone already.
///
/// # Errors
/// [`DeadLetterError`].
pub async fn remove(bus: &Bus, dead: &DeadWebhook) -> Result<(), DeadLetterError> {
    remove_from(bus, subject::STREAM_DEAD_WEBHOOKS, dead.sequence).await
}

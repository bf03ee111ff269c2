//! Jobs whose webhooks are told, without workers.

use darkroom::job::{JobId, Tenant, Webhook, WebhookEvent, WebhookFormat};
use darkroom::shell::bus::Bus;
use darkroom::shell::clock::Clock;
use darkroom::shell::events::Events;
use darkroom::shell::records::{Changed, Records};
use darkroom::wire::event::EventKind;
use darkroom::wire::record::Record;
use serde_json::json;

use crate::stack::Stack;

/// Jobs as workers leave them: records with webhooks, and events.
pub(crate) struct Jobs {
    records: Records,
    events: Events,
}

impl Jobs {
    pub(crate) async fn of(stack: &Stack) -> Self {
        Self::over(stack.bus.clone()).await
    }

    /// Those of somebody who has this connection.
    pub(crate) async fn over(bus: Bus) -> Self {
        Self { records: Records::open(&bus).await.unwrap(), events: Events::start(bus, Clock::start()) }
    }

    /// A job that wants `url` to be told of `events`.
    pub(crate) async fn begin(&self, tenant: &str, job: &str, url: &str, events: &[WebhookEvent]) {
        let (tenant, job): (Tenant, JobId) = (tenant.parse().unwrap(), job.parse().unwrap());
        let webhook = Webhook { url: url.parse().unwrap(), events: events.to_vec(), format: WebhookFormat::default() };
        let record = Record::accepted("digest".to_owned(), "shapes", Some(1), 0).telling(Some(webhook));
        assert!(matches!(self.records.create(&tenant, &job, record).await.unwrap(), Changed::Won(_)));
    }

    pub(crate) async fn tell(&self, tenant: &str, job: &str, kind: EventKind) {
        let data = json!({"attempts": 1, "images": []});
        self.events.publish(kind, tenant, &job.parse().unwrap(), 1, data).await.unwrap();
    }

    /// A job that has its images.
    pub(crate) async fn complete(&self, tenant: &str, job: &str, url: &str) {
        self.begin(tenant, job, url, WebhookEvent::TERMINAL).await;
        self.tell(tenant, job, EventKind::Completed).await;
    }
}

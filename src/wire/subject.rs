//! Every subject, stream, bucket and consumer name.

use crate::job::{Capacity, JobId, ModelName, Pool, Priority, Tenant, WorkerId};

/// The stream of requests: a work queue.
pub const STREAM_REQUESTS: &str = "DARKROOM_REQ";
/// The stream of durable events.
pub const STREAM_EVENTS: &str = "DARKROOM_EV";
/// The stream that keeps the last progress of each job.
pub const STREAM_PROGRESS: &str = "DARKROOM_PROG";
/// The stream of dead letters.
pub const STREAM_DEAD_LETTERS: &str = "DARKROOM_DLQ";
/// The stream of the two consumer advisories that speak of lost messages.
pub const STREAM_ADVISORIES: &str = "DARKROOM_ADV";
/// The stream of webhooks that are on their way: a work queue.
pub const STREAM_WEBHOOKS: &str = "DARKROOM_HOOK";
/// The stream of webhooks that were given up.
pub const STREAM_DEAD_WEBHOOKS: &str = "DARKROOM_HOOK_DLQ";
/// The group that pulls of requests name, as the consumers do.
pub const PULL_GROUP: &str = "workers";
/// The bucket with one record per job.
pub const BUCKET_JOBS: &str = "darkroom_jobs";
/// The stream that [`BUCKET_JOBS`] is kept in.
pub const STREAM_JOBS: &str = "KV_darkroom_jobs";
/// The bucket with one report per running worker.
pub const BUCKET_WORKERS: &str = "darkroom_workers";
/// The bucket with what is remembered of each model.
pub const BUCKET_MODELS: &str = "darkroom_models";
/// The bucket with what workers did in each hour.
pub const BUCKET_USAGE: &str = "darkroom_usage";
/// The bucket with how models are to be scaled: plans by hour of week.
pub const BUCKET_SCALE: &str = "darkroom_scale";
/// The bucket of API keys.
pub const BUCKET_KEYS: &str = "darkroom_keys";
/// The bucket with what is remembered of webhooks: attempts, and endpoints that are told nothing.
pub const BUCKET_WEBHOOKS: &str = "darkroom_webhooks";
/// The bucket with the secrets that webhooks are signed with, by tenant.
pub const BUCKET_WEBHOOK_SECRETS: &str = "darkroom_webhook_secrets";
/// The consumers of [`STREAM_EVENTS`] and of [`STREAM_WEBHOOKS`] that the webhook function pulls.
pub const CONSUMER_WEBHOOK: &str = "webhook";
/// The consumer of [`STREAM_ADVISORIES`] that the dead-letter function pulls.
pub const CONSUMER_ADVISORIES: &str = "deadletter";
/// Streams that promises rest on, each with a subject of its own that no request, event or record can have: what is
/// published there shows that the stream takes messages.
pub const PROBES: [(&str, &str); 3] = [
    (STREAM_REQUESTS, "darkroom.req._probe"),
    (STREAM_EVENTS, "darkroom.ev._probe"),
    (STREAM_JOBS, "$KV.darkroom_jobs._probe"),
];
/// All requests.
pub const ALL_REQUESTS: &str = "darkroom.req.>";

/// Where jobs are cancelled by request–reply; the last token is the tenant.
pub const API_CANCEL: &str = "darkroom.api.cancel.*";

/// What workers hear when somebody cancels a job.
pub const ALL_CANCEL_HINTS: &str = "darkroom.ctl.cancel.*";
/// What the scaler hears when somebody will soon ask for a model; the last token is its name.
pub const ALL_WAKE_HINTS: &str = "darkroom.ctl.wake.*";
const WAKE_HINT_PREFIX: &str = "darkroom.ctl.wake.";
const CANCEL_HINT_PREFIX: &str = "darkroom.ctl.cancel.";

/// Where the JetStream API is asked.
pub const API_PREFIX: &str = "$JS.API.";
/// What a request's subject looks like, for people.
pub const REQUEST_FORM: &str = "darkroom.req.<model>.<high|normal|low>.<any|ondemand>.<tenant>";

const REQUEST_PREFIX: &str = "darkroom.req.";
const EVENT_PREFIX: &str = "darkroom.ev.";
const WEBHOOK_PREFIX: &str = "darkroom.hook.due.";
const DEAD_WEBHOOK_PREFIX: &str = "darkroom.hook.dead.";

/// Where a request goes: `darkroom.req.<model>.<priority>.<pool>.<tenant>`.
pub fn request(model: &ModelName, priority: Priority, pool: Pool, tenant: &Tenant) -> String {
    format!("{REQUEST_PREFIX}{model}.{priority}.{pool}.{tenant}")
}

/// What the durable consumer of (model, priority, pool) filters: the requests of every tenant.
pub fn request_filter(model: &ModelName, priority: Priority, pool: Pool) -> String {
    format!("{REQUEST_PREFIX}{model}.{priority}.{pool}.*")
}

/// The name of the durable consumer of (model, priority, pool).
pub fn consumer(model: &ModelName, priority: Priority, pool: Pool) -> String {
    format!("{model}-{priority}-{pool}")
}

/// A durable or progress event of a job, by kind.
pub fn event(tenant: &str, job: &JobId, kind: &str) -> String {
    format!("{EVENT_PREFIX}{tenant}.{job}.{kind}")
}

/// All durable events of a job.
pub fn events_of_job(tenant: &Tenant, job: &JobId) -> String {
    format!("darkroom.ev.{tenant}.{job}.>")
}

/// Step progress of a job.
pub fn progress(tenant: &Tenant, job: &JobId) -> String {
    format!("darkroom.prog.{tenant}.{job}")
}

/// Step progress of every job.
pub const ALL_PROGRESS: &str = "darkroom.prog.*.*";

/// Whose progress is on a subject.
pub fn progress_owner(subject: &str) -> Option<(Tenant, JobId)> {
    let (tenant, job) = subject.strip_prefix("darkroom.prog.")?.split_once('.')?;
    Some((tenant.parse().ok()?, job.parse().ok()?))
}

/// Where a tenant cancels its jobs by request–reply.
pub fn api_cancel(tenant: &Tenant) -> String {
    format!("darkroom.api.cancel.{tenant}")
}

/// The tenant token of a request to the service.
pub fn tenant_of_api(subject: &str) -> Option<&str> {
    subject.strip_prefix("darkroom.api.")?.split('.').nth(1)
}

/// Where workers are told that a job is cancelled. Its record decides.
pub fn cancel_hint(job: &JobId) -> String {
    format!("{CANCEL_HINT_PREFIX}{job}")
}

/// The job that a [`cancel_hint`] is of.
pub fn cancelled_job(subject: &str) -> Option<&str> {
    subject.strip_prefix(CANCEL_HINT_PREFIX)
}

/// Dead letters of a model and tenant; both are tokens of the request's subject, valid as they are.
pub fn dead_letter(model: &str, tenant: &str) -> String {
    format!("darkroom.dlq.{model}.{tenant}")
}

/// Every dead letter; `None` stands for any model or tenant.
pub fn dead_letters(model: Option<&ModelName>, tenant: Option<&Tenant>) -> String {
    let model = model.map_or("*", ModelName::as_str);
    format!("darkroom.dlq.{model}.{}", tenant.map_or("*", Tenant::as_str))
}

/// A webhook of a job that is on its way. Those of a job are told in the order of their sequences.
pub fn webhook(tenant: &Tenant, job: &JobId) -> String {
    format!("{WEBHOOK_PREFIX}{tenant}.{job}")
}

/// A webhook of a job that was given up.
pub fn dead_webhook(tenant: &Tenant, job: &JobId) -> String {
    format!("{DEAD_WEBHOOK_PREFIX}{tenant}.{job}")
}

/// Every webhook that was given up; `None` stands for any tenant.
pub fn dead_webhooks(tenant: Option<&Tenant>) -> String {
    format!("{DEAD_WEBHOOK_PREFIX}{}.*", tenant.map_or("*", Tenant::as_str))
}

/// Whose webhook is on a subject, whether it is on its way or was given up.
pub fn webhook_owner(subject: &str) -> Option<(Tenant, JobId)> {
    let rest = subject.strip_prefix(WEBHOOK_PREFIX).or_else(|| subject.strip_prefix(DEAD_WEBHOOK_PREFIX))?;
    let (tenant, job) = rest.split_once('.')?;
    Some((tenant.parse().ok()?, job.parse().ok()?))
}

/// Whose event is on a subject, and of which kind.
pub fn event_owner(subject: &str) -> Option<(Tenant, JobId, &str)> {
    let mut tokens = subject.strip_prefix(EVENT_PREFIX)?.split('.');
    let found = (tokens.next()?.parse().ok()?, tokens.next()?.parse().ok()?, tokens.next()?);
    tokens.next().is_none().then_some(found)
}

/// Where it is put how far the webhook with this sequence in [`STREAM_WEBHOOKS`] has come.
pub fn webhook_progress(sequence: u64) -> String {
    format!("$KV.{BUCKET_WEBHOOKS}.attempts.{sequence}")
}

/// How far all have come that failed.
pub fn webhooks_progress() -> String {
    format!("$KV.{BUCKET_WEBHOOKS}.attempts.*")
}

/// Where it is put that an endpoint of a tenant is told nothing.
pub fn webhook_endpoint(tenant: &Tenant, endpoint: &str) -> String {
    format!("$KV.{BUCKET_WEBHOOKS}.endpoint.{tenant}.{endpoint}")
}

/// All endpoints that were told of; `None` stands for any tenant.
pub fn webhook_endpoints(tenant: Option<&Tenant>) -> String {
    format!("$KV.{BUCKET_WEBHOOKS}.endpoint.{}.*", tenant.map_or("*", Tenant::as_str))
}

/// The tenant of a [`webhook_endpoint`].
pub fn tenant_of_endpoint(subject: &str) -> Option<&str> {
    subject.strip_prefix("$KV.")?.strip_prefix(BUCKET_WEBHOOKS)?.strip_prefix(".endpoint.")?.split('.').next()
}

/// Where a tenant's secrets are put.
pub fn webhook_secrets(tenant: &Tenant) -> String {
    format!("$KV.{BUCKET_WEBHOOK_SECRETS}.{tenant}")
}

/// The requests of one tenant, for whatever model, priority and pool.
pub fn requests_of(tenant: &Tenant) -> String {
    format!("{REQUEST_PREFIX}*.*.*.{tenant}")
}

/// The key of a job's record in [`BUCKET_JOBS`].
pub fn record_key(tenant: &Tenant, job: &JobId) -> String {
    format!("{tenant}.{job}")
}

/// Where a worker's report is put: the key `<model>.<worker>` in [`BUCKET_WORKERS`].
pub fn worker_report(model: &ModelName, worker: &WorkerId) -> String {
    format!("$KV.{BUCKET_WORKERS}.{model}.{worker}")
}

/// The reports of all workers of a model.
pub fn worker_reports(model: &ModelName) -> String {
    format!("$KV.{BUCKET_WORKERS}.{model}.*")
}

/// Where it is put how a model was: the key `<model>` in [`BUCKET_MODELS`].
pub fn model_report(model: &ModelName) -> String {
    format!("$KV.{BUCKET_MODELS}.{model}")
}

/// Where it is put what a worker did in an hour: the key `<model>.<capacity>.<worker>.<start>.<hour>` in [`BUCKET_USAGE`],
/// both in seconds since the Unix epoch. Names of workers come again, their starts hardly.
pub fn usage(model: &ModelName, capacity: Capacity, worker: &WorkerId, start_unix_s: i64, hour_unix_s: i64) -> String {
    format!("$KV.{BUCKET_USAGE}.{model}.{capacity}.{worker}.{start_unix_s}.{hour_unix_s}")
}

/// What all workers did, of one model or of all.
pub fn all_usage(model: Option<&ModelName>) -> String {
    let model = model.map_or("*", ModelName::as_str);
    format!("$KV.{BUCKET_USAGE}.{model}.*.*.*.*")
}

/// Where a model's plan is put: the key `plan.<model>` in [`BUCKET_SCALE`].
pub fn scale_plan(model: &ModelName) -> String {
    format!("$KV.{BUCKET_SCALE}.plan.{model}")
}

/// Where the scaler is told that somebody will soon ask for a model.
pub fn wake_hint(model: &ModelName) -> String {
    format!("{WAKE_HINT_PREFIX}{model}")
}

/// The model of a [`wake_hint`].
pub fn awaited_model(subject: &str) -> Option<ModelName> {
    subject.strip_prefix(WAKE_HINT_PREFIX)?.parse().ok()
}

/// The requests of a model and a pool, of all priorities and tenants.
pub fn requests_of_pool(model: &ModelName, pool: Pool) -> String {
    format!("{REQUEST_PREFIX}{model}.*.{pool}.*")
}

/// The stream that a bucket is kept in.
pub fn stream_of_bucket(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// Where a job's record is stored: the subject of [`record_key`] in [`BUCKET_JOBS`].
pub fn record(tenant: &Tenant, job: &JobId) -> String {
    format!("$KV.{BUCKET_JOBS}.{}", record_key(tenant, job))
}

/// Where the records of all jobs are stored.
pub fn all_records() -> String {
    format!("$KV.{BUCKET_JOBS}.>")
}

/// The job whose record is stored under a subject; `None` when it is no such subject.
pub fn record_owner(subject: &str) -> Option<(Tenant, JobId)> {
    let key = subject.strip_prefix("$KV.")?.strip_prefix(BUCKET_JOBS)?.strip_prefix('.')?;
    let (tenant, job) = key.split_once('.')?;
    Some((tenant.parse().ok()?, job.parse().ok()?))
}

/// A request's subject, as far as it could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestSubject {
    /// The model token.
    pub model: ModelName,
    /// The priority token.
    pub priority: Priority,
    /// The pool token.
    pub pool: Pool,
    /// The tenant token.
    pub tenant: Tenant,
}

impl RequestSubject {
    /// Reads a request subject; `None` when a token is missing, left over or not one we know.
    pub fn parse(subject: &str) -> Option<Self> {
        let mut tokens = subject.strip_prefix(REQUEST_PREFIX)?.split('.');
        let parsed = Self {
            model: tokens.next()?.parse().ok()?,
            priority: tokens.next()?.parse().ok()?,
            pool: tokens.next()?.parse().ok()?,
            tenant: tokens.next()?.parse().ok()?,
        };
        tokens.next().is_none().then_some(parsed)
    }
}

/// The model and tenant tokens of any request subject, for answers to what cannot be parsed; `unknown` where missing.
pub fn model_and_tenant_tokens(subject: &str) -> (&str, &str) {
    let mut tokens = subject.strip_prefix(REQUEST_PREFIX).unwrap_or("").split('.');
    let model = tokens.next().filter(|token| !token.is_empty()).unwrap_or("unknown");
    (model, tokens.nth(2).unwrap_or("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_subjects_read_back() {
        for priority in Priority::ALL {
            for pool in Pool::ALL {
                let subject = RequestSubject {
                    model: "shapes".parse().unwrap(),
                    priority: *priority,
                    pool: *pool,
                    tenant: "t-1".parse().unwrap(),
                };
                let text = request(&subject.model, *priority, *pool, &subject.tenant);
                assert_eq!(RequestSubject::parse(&text), Some(subject));
            }
        }
    }

    #[test]
    fn records_tell_whose_they_are() {
        let (tenant, job): (Tenant, JobId) = ("t-1".parse().unwrap(), "j_2".parse().unwrap());
        assert_eq!(record_owner(&record(&tenant, &job)), Some((tenant, job)));
        for other in ["$KV.darkroom_jobs.t", "$KV.darkroom_jobs.t.j.more", "$KV.darkroom_workers.t.j", "t.j"] {
            assert_eq!(record_owner(other), None, "{other}");
        }
        assert_eq!(STREAM_JOBS, format!("KV_{BUCKET_JOBS}"));
    }

    #[test]
    fn events_and_webhooks_tell_whose_they_are() {
        let (tenant, job): (Tenant, JobId) = ("t-1".parse().unwrap(), "j_2".parse().unwrap());
        let owner = Some((tenant.clone(), job.clone()));
        assert_eq!(webhook_owner(&webhook(&tenant, &job)), owner);
        assert_eq!(webhook_owner(&dead_webhook(&tenant, &job)), owner);
        assert_eq!(tenant_of_endpoint(&webhook_endpoint(&tenant, "aa")), Some("t-1"));
        let subject = event(tenant.as_str(), &job, "failed");
        assert_eq!(event_owner(&subject), Some((tenant, job, "failed")));
        for other in ["darkroom.ev._probe", "darkroom.ev.t.j", "darkroom.ev.t.j.failed.more", "darkroom.prog.t.j", ""] {
            assert_eq!(event_owner(other), None, "{other}");
            assert_eq!(webhook_owner(other), None, "{other}");
        }
    }

    #[test]
    fn other_subjects_are_refused_but_still_tell_model_and_tenant() {
        for (subject, tokens) in [
            ("darkroom.req.shapes.urgent.any.t", ("shapes", "t")),
            ("darkroom.req.shapes.high.any", ("shapes", "unknown")),
            ("darkroom.req.shapes.high.any.t.more", ("shapes", "t")),
            ("darkroom.req.shapes.high.any.t!", ("shapes", "t!")),
            ("darkroom.req.", ("unknown", "unknown")),
            ("other", ("unknown", "unknown")),
        ] {
            assert_eq!(RequestSubject::parse(subject), None, "{subject}");
            assert_eq!(model_and_tenant_tokens(subject), tokens, "{subject}");
        }
    }
}

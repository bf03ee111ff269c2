//! Jobs: submitting, looking, cancelling.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::problem::Problem;
use super::{Caller, Gateway};
use crate::job::{JobId, Pool, Priority, Status, Tenant, Violation};
use crate::sched::estimate::Estimate;
use crate::shell::cancel::{Keep, Outcome};
use crate::shell::client::{self, Submission, Submitted, Watch};
use crate::shell::outlook;
use crate::shell::records::{self, Found};
use crate::wire::event::{self, Progress};
use crate::wire::http::{JobDocument, JobList, Links};
use crate::wire::record::Record;
use crate::wire::request::{Context, RequestDocument, canonical_digest, parse};
use crate::wire::subject;

/// The longest time that a client may be kept waiting for the end of its job.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Jobs in one list.
pub(super) const LISTED_MAX: usize = 100;
/// What makes a submission that is sent again the same job.
pub(super) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// When a job that was to be cancelled ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// It has just ended.
    Now,
    /// When its worker has stored what is there.
    Soon,
    /// It had ended before.
    Before(Status),
}

/// `POST /v1/jobs`
pub(super) async fn submit(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let fields = fields(&headers, body)?;
    let tenant = caller.tenant;
    let submission = gateway.submission(&tenant, fields, idempotent_id(&tenant, &headers)?).await?;
    let job = submission.job.clone();
    let wait = preferred_wait(&headers);
    let Submitted { stream_sequence, estimate, .. } = gateway.submit(&submission, wait).await?;
    let document = if wait.is_some() || stream_sequence.is_none() {
        gateway.job(&tenant, &job).await?
    } else {
        let now = crate::wire::time::rfc3339(gateway.clock.unix_ms());
        let fresh = JobDocument {
            id: job.to_string(),
            status: Status::Pending.as_str().to_owned(),
            model: submission.model.to_string(),
            created: now.clone(),
            updated: now,
            links: Links::of(job.as_str(), 0),
            ..JobDocument::default()
        };
        with_estimate(fresh, estimate.as_ref())
    };
    let status = if document.has_ended() { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = (status, Json(&document)).into_response();
    if let Ok(location) = HeaderValue::from_str(&document.links.job) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// `GET /v1/jobs/{job}`
pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path(job): Path<String>,
) -> Result<Json<JobDocument>, Problem> {
    let job = job_id(&job)?;
    gateway.job(&caller.tenant, &job).await.map(Json)
}

/// The query of a list.
#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    limit: Option<usize>,
    status: Option<String>,
}

/// `GET /v1/jobs`
pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<JobList>, Problem> {
    let query = read_query(query)?;
    let mut violations = Vec::new();
    if let Some(status) = query.status.as_ref().filter(|status| status.parse::<Status>().is_err()) {
        let statuses: Vec<&str> = Status::ALL.iter().map(|status| status.as_str()).collect();
        violations.push(Violation::new("status", status, statuses.join(", ")));
    }
    let limit = query.limit.unwrap_or(20);
    if !(1..=LISTED_MAX).contains(&limit) {
        violations.push(Violation::new("limit", limit, format!("1 to {LISTED_MAX}")));
    }
    if !violations.is_empty() {
        return Err(Problem::invalid(&violations));
    }
    let wanted = |record: &Record| query.status.as_ref().is_none_or(|status| status == record.state.status.as_str());
    let listed = client::list_jobs(&gateway.bus, Some(&caller.tenant), false, limit, wanted).await?;
    let documents = listed.iter().filter_map(|listed| {
        let (_, id) = listed.key.split_once('.')?;
        Some(JobDocument::of_record(id, listed.record.as_ref()?))
    });
    Ok(Json(JobList { jobs: documents.collect() }))
}

/// The query of a cancellation.
#[derive(Debug, Deserialize)]
pub(super) struct CancelQuery {
    keep_partial: Option<bool>,
}

/// `DELETE /v1/jobs/{job}`
pub(super) async fn cancel(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path(job): Path<String>,
    query: Result<Query<CancelQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let job = job_id(&job)?;
    let keep = if read_query(query)?.keep_partial == Some(true) { Keep::Partial } else { Keep::Nothing };
    let status = match gateway.cancel(&caller.tenant, &job, keep).await? {
        Stopped::Now | Stopped::Before(Status::Cancelled) => StatusCode::OK,
        Stopped::Soon => StatusCode::ACCEPTED,
        Stopped::Before(status) => {
            let detail = format!("the job {job} has ended before: it is {}", status.as_str());
            return Err(Problem::new(StatusCode::CONFLICT, "job_ended", detail));
        }
    };
    Ok((status, Json(gateway.job(&caller.tenant, &job).await?)).into_response())
}

impl Gateway {
    /// A checked submission, from the fields of a body: those of a request, and where it goes.
    pub(super) async fn submission(
        &self,
        tenant: &Tenant,
        mut fields: Map<String, Value>,
        job: Option<JobId>,
    ) -> Result<Submission, Problem> {
        let mut violations = Vec::new();
        let mut text = |field: &str| match fields.remove(field) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text),
            Some(other) => {
                violations.push(Violation::new(field, other, "a text"));
                None
            }
        };
        let (model, pool) = (text("model"), text("pool"));
        let manifest = self.model(model.as_deref()).await?;
        let pool = pool
            .map_or(Ok(Pool::Any), |pool| pool.parse().map_err(|_| Violation::new("pool", &pool, "any or ondemand")));
        let pool = pool.unwrap_or_else(|violation| {
            violations.push(violation);
            Pool::Any
        });
        // An unknown one is a violation that the check of the request finds.
        let priority = fields.get("priority").and_then(Value::as_str).and_then(|text| text.parse().ok());
        let priority = priority.unwrap_or(Priority::Normal);
        let named = fields.get("id").and_then(Value::as_str).and_then(|id| id.parse().ok());
        let job: JobId = match (job, named) {
            (Some(job), Some(named)) if job != named => {
                violations.push(Violation::new(
                    "id",
                    named,
                    format!("{job}, as in the header {IDEMPOTENCY_KEY}, or none"),
                ));
                job
            }
            (Some(job), _) | (None, Some(job)) => job,
            (None, None) => new_id(),
        };
        let body = serde_json::to_vec(&fields).unwrap_or_default();
        let context =
            Context { manifest: &manifest, tenant, priority, message_id: Some(job.as_str()), stream_sequence: 0 };
        if let Err(refusal) = parse(&body, &context) {
            violations.extend(refusal.violations);
        }
        if !violations.is_empty() {
            return Err(Problem::invalid(&violations));
        }
        let request: RequestDocument = serde_json::from_value(Value::Object(fields))
            .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", error.to_string()))?;
        Ok(Submission { tenant: tenant.clone(), job, model: manifest.name, priority, pool, request })
    }

    async fn send(&self, submission: &Submission) -> Result<Submitted, Problem> {
        let manifest = self.model(Some(submission.model.as_str())).await?;
        Ok(client::submit_to(&self.bus, &self.clock, &self.records, &manifest, submission).await?)
    }

    /// Submits a job and follows it, so that nothing of it is missed.
    pub(super) async fn submit_and_follow(&self, submission: &Submission) -> Result<(Submitted, Watch), Problem> {
        let mut watch = Watch::start(&self.bus, &submission.tenant, &submission.job).await?;
        let submitted = self.send(submission).await?;
        if submitted.stream_sequence.is_none() {
            watch.read_earlier().await?;
        }
        Ok((submitted, watch))
    }

    /// Submits a job, and waits for its end or for so long, if that is wanted.
    pub(super) async fn submit(&self, submission: &Submission, wait: Option<Duration>) -> Result<Submitted, Problem> {
        let Some(wait) = wait else { return self.send(submission).await };
        let (submitted, mut watch) = self.submit_and_follow(submission).await?;
        let end = async {
            while !watch.next().await?.kind.is_terminal() {}
            Ok(())
        };
        tokio::time::timeout(wait, end).await.unwrap_or(Ok::<_, Problem>(()))?;
        Ok(submitted)
    }

    /// Cancels a job that there is.
    pub(super) async fn cancel(&self, tenant: &Tenant, job: &JobId, keep: Keep) -> Result<Stopped, Problem> {
        match self.canceller.cancel(tenant, job, keep).await? {
            Outcome::Cancelled => Ok(Stopped::Now),
            Outcome::Stopping => Ok(Stopped::Soon),
            Outcome::Ended(status) => Ok(Stopped::Before(status)),
            Outcome::Gone => Err(Problem::gone(job)),
            Outcome::Unknown => Err(Problem::unknown_job(job.as_str())),
        }
    }

    /// All that is known of a job.
    pub(super) async fn job(&self, tenant: &Tenant, job: &JobId) -> Result<JobDocument, Problem> {
        let record = self.record(tenant, job).await?;
        let document = JobDocument::of_record(job.as_str(), &record);
        Ok(match record.state.status {
            Status::Pending => with_estimate(document, outlook::of_record(&self.bus, &record).await.as_ref()),
            Status::Processing => {
                let progress = self.progress(tenant, job).await;
                let seconds =
                    progress.as_ref().map(|progress| Duration::from_millis(progress.remaining_ms).as_secs_f64());
                JobDocument { estimated_time: seconds, progress, ..document }
            }
            Status::Completed | Status::Failed | Status::Cancelled => document,
        })
    }

    /// The record of a job.
    pub(super) async fn record(&self, tenant: &Tenant, job: &JobId) -> Result<Record, Problem> {
        match records::look_at_leader(&self.bus, tenant, job).await? {
            Found::Record(owned) => Ok(owned.record),
            Found::Gone => Err(Problem::gone(job)),
            Found::Absent { .. } => Err(Problem::unknown_job(job.as_str())),
        }
    }

    /// The last that was heard of a job that runs.
    async fn progress(&self, tenant: &Tenant, job: &JobId) -> Option<Progress> {
        let stream = self.bus.context.get_stream_no_info(subject::STREAM_PROGRESS).await.ok()?;
        let last = stream.direct_get_last_for_subject(subject::progress(tenant, job)).await.ok()?;
        serde_json::from_value(event::decode(&last.payload).ok()?.data).ok()
    }
}

fn with_estimate(document: JobDocument, estimate: Option<&Estimate>) -> JobDocument {
    JobDocument {
        queue_position: estimate.map(|estimate| estimate.position),
        estimated_time: estimate.and_then(|estimate| Some(Duration::from_millis(estimate.end_ms?).as_secs_f64())),
        ..document
    }
}

/// An id that nobody has had.
pub(super) fn new_id() -> JobId {
    let id = Uuid::now_v7().to_string();
    id.parse().unwrap_or_else(|_| unreachable!("a UUID is an id"))
}

/// A job's id in a path; whatever is none is unknown.
pub(super) fn job_id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|_| Problem::unknown_job(text))
}

/// The id of the job that a client wants to submit once, however often it asks.
pub(super) fn idempotent_id(tenant: &Tenant, headers: &HeaderMap) -> Result<Option<JobId>, Problem> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    // What is no text is none of the texts that are allowed.
    id_of_key(tenant, key.to_str().unwrap_or_default(), IDEMPOTENCY_KEY).map(Some)
}

/// The id of the job that a client calls `key`: as it is where it is an id, else by its digest.
pub(super) fn id_of_key(tenant: &Tenant, key: &str, field: &str) -> Result<JobId, Problem> {
    let wrong = || Problem::invalid(&[Violation::new(field, key, "1 to 255 printable characters")]);
    let key = key.trim();
    if key.is_empty() || key.len() > 255 {
        return Err(wrong());
    }
    if let Ok(job) = key.parse() {
        return Ok(job);
    }
    let digest = canonical_digest(format!("{tenant}/{key}").as_bytes());
    format!("idem-{}", &digest[..40]).parse().map_err(|_| wrong())
}

/// A body that could be read.
pub(super) fn body_of(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
    body.map_err(|rejection| {
        let status = rejection.status();
        let code = if status == StatusCode::PAYLOAD_TOO_LARGE { "body_too_large" } else { "invalid_body" };
        Problem::new(status, code, rejection.body_text())
    })
}

/// The fields of a JSON body.
pub(super) fn fields(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Map<String, Value>, Problem> {
    let body = body_of(body)?;
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media_type != "application/json" && !media_type.ends_with("+json") {
        let detail = format!("Content-Type is {media_type:?}; application/json is understood");
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "wrong_media_type", detail));
    }
    match serde_json::from_slice(&body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_json", "the body is not an object")),
        Err(error) => Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body: {error}"))),
    }
}

/// `Prefer: wait=10`: how long the client would wait; `wait` alone for as long as it may.
pub(super) fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    let preferences = headers.get_all("prefer").into_iter().filter_map(|value| value.to_str().ok());
    let mut words = preferences.flat_map(|value| value.split([',', ';'])).map(str::trim);
    words.find_map(|word| match word.split_once('=') {
        None if word.eq_ignore_ascii_case("wait") => Some(WAIT_MAX),
        Some((name, seconds)) if name.trim().eq_ignore_ascii_case("wait") => {
            Some(Duration::from_secs(seconds.trim().trim_matches('"').parse().ok()?).min(WAIT_MAX))
        }
        _ => None,
    })
}

fn read_query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    let wrong =
        |error: QueryRejection| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", error.body_text());
    query.map(|Query(query)| query).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_what_is_preferred_and_at_most_a_minute() {
        for (value, seconds) in [
            ("wait", Some(60)),
            ("wait=5", Some(5)),
            ("respond-async, wait=7", Some(7)),
            ("Wait = 9", Some(9)),
            ("wait=900", Some(60)),
            ("wait=soon", None),
            ("respond-async", None),
        ] {
            let headers = HeaderMap::from_iter([(header::HeaderName::from_static("prefer"), value.parse().unwrap())]);
            assert_eq!(preferred_wait(&headers), seconds.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn an_idempotency_key_is_an_id_or_becomes_one() {
        let tenant = "acme".parse().unwrap();
        let id = |key: &str| {
            let name = header::HeaderName::from_static(IDEMPOTENCY_KEY);
            idempotent_id(&tenant, &HeaderMap::from_iter([(name, key.parse().unwrap())]))
        };
        assert_eq!(id("order-7").unwrap().unwrap().as_str(), "order-7");
        let other = id("order 7/a").unwrap().unwrap();
        assert!(other.as_str().starts_with("idem-") && other != id("order 7/b").unwrap().unwrap(), "{other}");
        assert_eq!(other, id("order 7/a").unwrap().unwrap());
        assert!(id("").is_err() && id(&"x".repeat(256)).is_err());
    }
}

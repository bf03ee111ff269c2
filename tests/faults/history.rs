//! What was seen of a run, by whom it can be seen: clients, the object store, the streams and who listens to settlements.
//!
//! It only records. Times are those of the machine's one wall clock: the server's on what streams hold, the store's before
//! its answer leaves, ours when a client knew. Streams are read when all is over, so that nothing is missed while servers
//! are killed; for that the laboratory lets the bucket of records keep every revision.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::jetstream::stream::RawMessageErrorKind;
use darkroom::shell::bus::Bus;
use darkroom::shell::topology;
use darkroom::wire::event::EventKind;
use darkroom::wire::record::{self, Record};
use darkroom::wire::request::hexadecimal;
use darkroom::wire::{header, subject};
use futures_util::StreamExt;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::stack::PATIENCE;
use crate::support::s3::S3Server;
use crate::support::{eventually, unix_ns};

/// One thing that was seen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Observation {
    pub(crate) at_ns: i128,
    /// `<tenant>/<job>`; empty where it is about no job.
    pub(crate) job: String,
    pub(crate) what: What,
}

/// What was seen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    /// A client began to publish. Its images are known beforehand, by their SHA-256; `None` where none are due.
    Submitted { images: Option<Vec<String>>, may_fail: bool },
    /// The stream confirmed it.
    Acknowledged { sequence: u64, duplicate: bool },
    /// The stream refused it for good.
    Refused { reason: String },
    /// Somebody began to ask that it be cancelled.
    CancelWanted,
    /// Somebody was told that the job is cancelled.
    Cancelled,
    /// Somebody was told that there is no such job.
    Denied,
    /// A revision of the job's record.
    Record { revision: u64, record: Box<Record> },
    /// An object was stored.
    Put { key: String, sha256: String },
    /// A durable event was stored.
    Event { sequence: u64, kind: EventKind, data: Value },
    /// A dead letter of the request with that sequence was stored.
    Letter { request: u64, code: String },
    /// The request with that sequence was acknowledged, terminated or given back, by these words.
    Settled { request: u64, words: String },
    /// At the end an object is there.
    Object { key: String, sha256: String },
    /// At the end so many requests are left.
    Left { requests: u64 },
}

impl fmt::Display for Observation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.at_ns / 1_000_000_000 % 100_000;
        write!(formatter, "{seconds:>5}.{:06} {} ", self.at_ns / 1_000 % 1_000_000, self.job)?;
        match &self.what {
            What::Record { revision, record } => {
                let state = &record.state;
                let worker = state.worker.as_ref().map_or("nobody", |worker| worker.as_str());
                write!(formatter, "record {revision}: {} by {worker}, ", state.status.as_str())?;
                write!(formatter, "{} attempts, {} failures, {} deaths", state.attempts, state.failures, state.deaths)
            }
            What::Event { sequence, kind, .. } => write!(formatter, "event {sequence}: {}", kind.as_str()),
            what @ (What::Submitted { .. }
            | What::Acknowledged { .. }
            | What::Refused { .. }
            | What::CancelWanted
            | What::Cancelled
            | What::Denied
            | What::Put { .. }
            | What::Letter { .. }
            | What::Settled { .. }
            | What::Object { .. }
            | What::Left { .. }) => write!(formatter, "{what:?}"),
        }
    }
}

/// All that was seen, in the order of its times.
#[derive(Clone, Debug, Default)]
pub(crate) struct History(pub(crate) Vec<Observation>);

impl History {
    /// What was seen of each job, in the order of its times.
    pub(crate) fn by_job(&self) -> BTreeMap<&str, Vec<&Observation>> {
        let mut jobs = BTreeMap::<&str, Vec<&Observation>>::new();
        for observation in self.0.iter().filter(|observation| !observation.job.is_empty()) {
            jobs.entry(&observation.job).or_default().push(observation);
        }
        jobs
    }

    /// The last record of every job that has one.
    pub(crate) fn last_records(&self) -> BTreeMap<&str, &Record> {
        // Later ones of the same job take the place of earlier ones.
        self.0.iter().filter_map(|seen| Some((seen.job.as_str(), seen.record()?.1))).collect()
    }

    /// Everything of one job as lines, for people.
    pub(crate) fn slice(&self, job: &str) -> String {
        self.0.iter().filter(|seen| seen.job == job).map(|seen| format!("    {seen}\n")).collect()
    }
}

impl Observation {
    /// The revision and the record, if that is what was seen.
    pub(crate) fn record(&self) -> Option<(u64, &Record)> {
        if let What::Record { revision, record } = &self.what { Some((*revision, record)) } else { None }
    }
}

/// Where clients and listeners write down what they see.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<Observation>>>);

impl Log {
    /// Writes down what was seen just now.
    pub(crate) fn saw(&self, job: &str, what: What) {
        let seen = Observation { at_ns: unix_ns(), job: job.to_owned(), what };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
    }

    /// Listens to what workers tell the server of their requests, until the bus is closed. What is said while this
    /// connection is broken is missing, so nothing follows from the absence of a word.
    ///
    /// # Panics
    /// If the server does not take the subscription.
    pub(crate) async fn listen(&self, bus: &Bus) {
        let subject = format!("$JS.ACK.{}.>", subject::STREAM_REQUESTS);
        let mut words = bus.client.subscribe(subject).await.expect("a subscription");
        bus.client.flush().await.expect("a server");
        let log = self.clone();
        tokio::spawn(async move {
            while let Some(message) = words.next().await {
                let words = String::from_utf8_lossy(&message.payload).into_owned();
                // $JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>.…
                let request = message.subject.split('.').nth(5).and_then(|token| token.parse().ok());
                if let Some(request) = request.filter(|_| words != "+WPI") {
                    log.saw("", What::Settled { request, words });
                }
            }
        });
    }

    /// Everything: what was written down here, and what streams and the store hold now.
    ///
    /// # Panics
    /// If the server does not answer, or holds what is not Darkroom's.
    pub(crate) async fn history(&self, bus: &Bus, s3: &S3Server) -> History {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let records = format!("KV_{}", subject::BUCKET_JOBS);
        for (sequence, message) in stored(bus, &records).await {
            let key = message.subject.as_str().rsplit('.').take(2).collect::<Vec<_>>();
            let job = format!("{}/{}", key[1], key[0]);
            // What marks a record that was removed has no body.
            if let Ok(record) = record::decode(&message.payload) {
                all.push(message.seen(job, What::Record { revision: sequence, record: Box::new(record) }));
            }
        }
        for (sequence, message) in stored(bus, subject::STREAM_EVENTS).await {
            let event: Value = serde_json::from_slice(&message.payload).expect("an event");
            let kind = event["type"].as_str().and_then(EventKind::from_type).expect("a kind");
            let job = event["subject"].as_str().expect("a job").to_owned();
            all.push(message.seen(job, What::Event { sequence, kind, data: event["data"].clone() }));
        }
        for (_, message) in stored(bus, subject::STREAM_DEAD_LETTERS).await {
            let text = |name: &str| message.headers.get(name).map_or("", |value| value.as_str()).to_owned();
            let request = text(header::DEAD_LETTER_SEQUENCE).parse().expect("a sequence");
            all.push(message.seen(String::new(), What::Letter { request, code: text(header::DEAD_LETTER_CODE) }));
        }
        for request in s3.requests() {
            if let ("PUT", true, Some(sha256)) = (request.method.as_str(), request.status.is_success(), request.sha256)
            {
                let key = request.path.trim_start_matches('/').split_once('/').expect("bucket and key").1.to_owned();
                all.push(Observation { at_ns: request.at_ns, job: job_of(&key), what: What::Put { key, sha256 } });
            }
        }
        let at_ns = unix_ns();
        for (key, bytes) in s3.objects().into_iter().filter(|(key, _)| key.matches('/').count() == 2) {
            let sha256 = hexadecimal(&Sha256::digest(&bytes));
            all.push(Observation { at_ns, job: job_of(&key), what: What::Object { key, sha256 } });
        }
        let requests = eventually("the requests", PATIENCE, async || topology::requests_stored(bus).await.ok()).await;
        all.push(Observation { at_ns, job: String::new(), what: What::Left { requests } });
        all.sort_by_key(|seen| seen.at_ns);
        History(all)
    }
}

/// `<tenant>/<job>` of an object's key.
fn job_of(key: &str) -> String {
    key.rsplit_once('/').map_or(key, |(job, _)| job).to_owned()
}

struct Stored {
    at_ns: i128,
    subject: String,
    headers: async_nats::HeaderMap,
    payload: bytes::Bytes,
}

impl Stored {
    fn seen(&self, job: String, what: What) -> Observation {
        Observation { at_ns: self.at_ns, job, what }
    }
}

/// Every message of a stream, by its leader's word.
async fn stored(bus: &Bus, name: &str) -> Vec<(u64, Stored)> {
    let stream =
        eventually(&format!("the stream {name}"), PATIENCE, async || bus.context.get_stream(name).await.ok()).await;
    let state = stream.cached_info().state.clone();
    let mut found = Vec::new();
    for sequence in state.first_sequence.max(1)..=state.last_sequence {
        // What was just mended may have no leader for a moment.
        let what = format!("message {sequence} of {name}");
        let looked = eventually(&what, PATIENCE, async || match stream.get_raw_message(sequence).await {
            Ok(message) => Some(Some(message)),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Some(None),
            Err(_) => None,
        });
        if let Some(message) = looked.await {
            let stored = Stored {
                at_ns: message.time.unix_timestamp_nanos(),
                subject: message.subject.to_string(),
                headers: message.headers.clone(),
                payload: message.payload.clone(),
            };
            found.push((sequence, stored));
        }
    }
    found
}

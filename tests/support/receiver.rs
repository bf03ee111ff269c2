//! A receiver of webhooks: keeps what comes, answers as it is told, and checks signatures by itself.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::http::{AsyncHandler, HttpServer};
use super::{eventually, unix_ns};

/// What a receiver that floods sends, in pieces of 64 KiB.
const FLOOD_PIECES: u64 = 16_384;
const PIECE_BYTES: usize = 64 * 1024;

/// What the receiver does with one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Answers this.
    Status(u16),
    /// Answers this with a header.
    With(u16, &'static str, String),
    /// Never answers.
    Hang,
    /// Answers this, with a gigabyte.
    Flood(u16),
}

/// One attempt as it came.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) path: String,
    /// Names in small letters.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Bytes,
    /// Of this id, counted from 1.
    pub(crate) nth: usize,
    pub(crate) reply: Reply,
    pub(crate) at_ns: i128,
}

impl Attempt {
    pub(crate) fn id(&self) -> &str {
        &self.headers["webhook-id"]
    }

    pub(crate) fn event(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub(crate) fn signatures(&self) -> Vec<&str> {
        self.headers["webhook-signature"].split(' ').collect()
    }

    pub(crate) fn timestamp(&self) -> i64 {
        self.headers["webhook-timestamp"].parse().expect("whole seconds")
    }

    pub(crate) fn has_arrived(&self) -> bool {
        matches!(self.reply, Reply::Status(200..=299) | Reply::Flood(200..=299))
    }

    /// The signature that `secret` makes of it, worked out here.
    pub(crate) fn signature_by(&self, secret: &str) -> String {
        let key = STANDARD.decode(secret.strip_prefix("whsec_").expect("the prefix")).expect("Base64");
        assert!((24..=64).contains(&key.len()), "{} bytes", key.len());
        let head = format!("{}.{}.", self.id(), self.headers["webhook-timestamp"]);
        format!("v1,{}", STANDARD.encode(hmac_sha256(&key, &[head.as_bytes(), &self.body].concat())))
    }
}

/// RFC 2104, for keys of up to a block.
fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    let padded = |pad: u8| {
        let mut block = [pad; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::digest([&padded(0x36)[..], message].concat());
    Sha256::digest([&padded(0x5c)[..], &inner[..]].concat()).to_vec()
}

type Answerer = dyn Fn(&str, usize) -> Reply + Send + Sync;

/// A running receiver. Gone when dropped.
pub(crate) struct Receiver {
    http: HttpServer,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    attempts: Mutex<Vec<Attempt>>,
    open: AtomicUsize,
    open_max: AtomicUsize,
    flooded: AtomicU64,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.attempts())
    }
}

impl Receiver {
    /// Starts one. `answer` says what to do with the n-th attempt, counted from 1, of an id.
    pub(crate) async fn start(answer: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Self {
        let seen = Arc::<Seen>::default();
        let handler = Handler { seen: Arc::clone(&seen), answer: Arc::new(answer) };
        Self { http: HttpServer::start(handler).await, seen }
    }

    /// `http://127.0.0.1:<port>/hook`.
    pub(crate) fn url(&self) -> String {
        format!("{}/hook", self.http.url())
    }

    pub(crate) fn port(&self) -> u16 {
        self.http.port()
    }

    /// Every attempt so far.
    pub(crate) fn attempts(&self) -> Vec<Attempt> {
        self.seen.attempts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Those of one event.
    pub(crate) fn attempts_of(&self, id: &str) -> Vec<Attempt> {
        self.attempts().into_iter().filter(|attempt| attempt.id() == id).collect()
    }

    /// How many attempts it held open at once, at the most.
    pub(crate) fn open_max(&self) -> usize {
        self.seen.open_max.load(Ordering::SeqCst)
    }

    /// Bytes of floods that were taken from it.
    pub(crate) fn flooded_bytes(&self) -> u64 {
        self.seen.flooded.load(Ordering::SeqCst) * PIECE_BYTES as u64
    }

    /// Waits until `is_enough` holds of what came.
    ///
    /// # Panics
    /// If it does not within `deadline`.
    pub(crate) async fn wait_for(
        &self,
        what: &str,
        deadline: Duration,
        is_enough: impl Fn(&[Attempt]) -> bool,
    ) -> Vec<Attempt> {
        eventually(what, deadline, async || Some(self.attempts()).filter(|attempts| is_enough(attempts))).await
    }
}

#[derive(Clone)]
struct Handler {
    seen: Arc<Seen>,
    answer: Arc<Answerer>,
}

/// Counts an attempt as open until it is dropped.
struct Open(Arc<Seen>);

impl Open {
    fn new(seen: &Arc<Seen>) -> Self {
        let open = seen.open.fetch_add(1, Ordering::SeqCst) + 1;
        seen.open_max.fetch_max(open, Ordering::SeqCst);
        Self(Arc::clone(seen))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl AsyncHandler<BoxBody<Bytes, Infallible>> for Handler {
    async fn answer(&self, request: Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
        let _open = Open::new(&self.seen);
        let path = request.uri().path().to_owned();
        let is_post = request.method() == Method::POST;
        let text = |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers: BTreeMap<String, String> =
            request.headers().iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
        let Ok(body) = request.into_body().collect().await else { return response(400) };
        let Some(id) = headers.get("webhook-id").filter(|_| is_post).cloned() else { return response(400) };
        let reply = {
            let mut attempts = self.seen.attempts.lock().unwrap_or_else(PoisonError::into_inner);
            let nth = attempts.iter().filter(|attempt| attempt.id() == id).count() + 1;
            let reply = (self.answer)(&id, nth);
            let body = body.to_bytes();
            attempts.push(Attempt { path, headers, body, nth, reply: reply.clone(), at_ns: unix_ns() });
            reply
        };
        match reply {
            Reply::Status(status) => response(status),
            Reply::With(status, name, value) => {
                let mut response = response(status);
                response.headers_mut().insert(name, value.parse().expect("a header"));
                response
            }
            Reply::Hang => std::future::pending().await,
            Reply::Flood(status) => {
                let (seen, piece) = (Arc::clone(&self.seen), Bytes::from(vec![b'x'; PIECE_BYTES]));
                let pieces = (0..FLOOD_PIECES).map(move |_| {
                    seen.flooded.fetch_add(1, Ordering::SeqCst);
                    Ok(Frame::data(piece.clone()))
                });
                let mut response = Response::new(BoxBody::new(StreamBody::new(stream::iter(pieces))));
                *response.status_mut() = StatusCode::from_u16(status).expect("a status");
                response
            }
        }
    }
}

fn response(status: u16) -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::new(BoxBody::new(Full::default()));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}

//! An S3 server of the test's own: the protocol over HTTP with signatures checked, files of a temporary directory behind.
//!
//! It has conditional PUT (`If-None-Match: *`), ranged and presigned GET. It can be told to fail, and says what it was asked
//! and which bytes it has sent.

use std::collections::BTreeMap;
use std::fmt;
use std::io::SeekFrom;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::watch;

use super::http::{AsyncHandler, HttpServer};
use super::unix_ns;

const BUCKET: &str = "darkroom-images";
const REGION: &str = "us-east-1";
const ACCESS_KEY: &str = "test-access-key";
/// What is read at once where that is said.
const BLOCK_BYTES: usize = 256 << 10;
const SECRET_KEY: &str = "test-secret-key";

/// One request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct S3Request {
    pub(crate) method: Method,
    /// `/<bucket>/<key>`.
    pub(crate) path: String,
    pub(crate) status: StatusCode,
    /// Of the body, as the client signed it.
    pub(crate) sha256: Option<String>,
    /// When it was done, before the answer left; see [`unix_ns`].
    pub(crate) at_ns: i128,
}

/// What a store does to its clients instead of serving them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Answers this and does nothing.
    Fails(StatusCode),
    /// Takes the request and never answers.
    Hangs,
    /// Does it, and answers so much later.
    Late(Duration),
}

/// A part of an object that was sent, or began to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// `/<bucket>/<key>`.
    pub(crate) path: String,
    /// As far as it was sent.
    pub(crate) range: Range<u64>,
}

type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A running S3 server with one empty bucket. Gone when dropped, objects included.
pub(crate) struct S3Server {
    directory: TempDir,
    http: HttpServer,
    control: Arc<Control>,
}

#[derive(Default)]
struct Control {
    trouble: Mutex<Option<Trouble>>,
    /// Requests that came, answered or not.
    asked: AtomicU64,
    requests: Mutex<Vec<S3Request>>,
    sent: Mutex<Vec<Sent>>,
    bytes_sent: AtomicU64,
    /// Parts of objects are held when so many bytes of them were sent.
    hold_after: watch::Sender<Option<u64>>,
    /// Whether bodies are not read by s3s-fs.
    reads_blocks: bool,
}

impl Control {
    fn sent(&self) -> std::sync::MutexGuard<'_, Vec<Sent>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::SeqCst)
    }
}

impl S3Server {
    /// Starts one.
    pub(crate) async fn start() -> Self {
        Self::start_in(&std::env::temp_dir()).await
    }

    /// Starts one that keeps its objects in a directory of its own below this one.
    pub(crate) async fn start_in(parent: &Path) -> Self {
        Self::start_with(parent, Arc::default()).await
    }

    /// The same, which reads objects in large blocks: s3s-fs takes 4 KiB at a time. Objects must not be replaced.
    pub(crate) async fn start_fast_in(parent: &Path) -> Self {
        Self::start_with(parent, Arc::new(Control { reads_blocks: true, ..Control::default() })).await
    }

    async fn start_with(parent: &Path, control: Arc<Control>) -> Self {
        let directory = tempfile::tempdir_in(parent).expect("a temporary directory");
        std::fs::create_dir(directory.path().join(BUCKET)).expect("a bucket");
        let files = FileSystem::new(directory.path()).expect("a directory that is there");
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let root = directory.path().to_owned();
        let handler = Handler { service: builder.build(), control: Arc::clone(&control), puts: Arc::default(), root };
        let http = HttpServer::start(handler).await;
        Self { directory, http, control }
    }

    /// Its URL.
    pub(crate) fn endpoint(&self) -> String {
        self.http.url()
    }

    /// What is stored now, by key.
    ///
    /// # Panics
    /// If its directory cannot be read.
    pub(crate) fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let root = self.directory.path().join(BUCKET);
        let (mut found, mut open) = (BTreeMap::new(), vec![root.clone()]);
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(directory).expect("a directory") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    let key = path.strip_prefix(&root).expect("below it").display().to_string();
                    found.insert(key, std::fs::read(path).expect("an object"));
                }
            }
        }
        found
    }

    /// The bucket that is there.
    pub(crate) fn bucket(&self) -> &'static str {
        BUCKET
    }

    /// What `--store` takes.
    pub(crate) fn store_url(&self) -> String {
        format!("s3://{BUCKET}")
    }

    /// The variables that object_store's `AmazonS3Builder::from_env` reads, for `Command::envs`; the names are also those
    /// of its options, for `AmazonS3ConfigKey::from_str` in lower case.
    pub(crate) fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ENDPOINT", self.endpoint()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    /// From now on every request is answered by this status and does nothing; `None` ends that.
    pub(crate) fn set_failing(&self, status: Option<StatusCode>) {
        self.set_trouble(status.map(Trouble::Fails));
    }

    /// What every request meets that comes from now on; `None` ends that.
    pub(crate) fn set_trouble(&self, trouble: Option<Trouble>) {
        *self.control.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// How many requests came, answered or not.
    pub(crate) fn asked(&self) -> u64 {
        self.control.asked.load(Ordering::SeqCst)
    }

    /// The port of [`Self::endpoint`].
    pub(crate) fn port(&self) -> u16 {
        self.http.port()
    }

    /// Holds all parts of objects when so many bytes of parts were sent, until it is told otherwise.
    pub(crate) fn hold_after(&self, bytes: Option<u64>) {
        self.control.hold_after.send_replace(bytes);
    }

    /// The parts of objects that were sent so far; whole objects are not among them.
    pub(crate) fn sent(&self) -> Vec<Sent> {
        self.control.sent().clone()
    }

    /// How many bytes these have.
    pub(crate) fn bytes_sent(&self) -> u64 {
        self.control.bytes_sent()
    }

    /// What was asked so far, in the order of the answers.
    pub(crate) fn requests(&self) -> Vec<S3Request> {
        self.control.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The file of an object, whether there is one or not.
    pub(crate) fn file(&self, key: &str) -> PathBuf {
        self.directory.path().join(BUCKET).join(key)
    }
}

impl fmt::Debug for S3Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("S3Server").field("endpoint", &self.endpoint()).finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Handler {
    service: S3Service,
    control: Arc<Control>,
    /// s3s-fs looks for the object and then writes it; one at a time, the condition of a PUT holds as on S3.
    puts: Arc<tokio::sync::Mutex<()>>,
    root: PathBuf,
}

/// So much of an object, from a byte on, in blocks.
async fn blocks(path: &Path, start: u64, length: u64) -> std::io::Result<s3s::Body> {
    let mut file = tokio::fs::File::open(path).await?;
    file.set_max_buf_size(BLOCK_BYTES);
    file.seek(SeekFrom::Start(start)).await?;
    let read = futures_util::stream::try_unfold(file.take(length), |mut file| async move {
        let mut block = BytesMut::with_capacity(BLOCK_BYTES);
        let is_more = file.read_buf(&mut block).await? > 0;
        Ok::<_, std::io::Error>(is_more.then(|| (Frame::data(block.freeze()), file)))
    });
    Ok(s3s::Body::http_body_unsync(StreamBody::new(read)))
}

/// The first byte of the part that is asked for.
fn part_start(request: &Request<Incoming>) -> Option<u64> {
    let range = request.headers().get(header::RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes=")?.split('-').next()?.parse().ok()
}

/// The body of a part, which is counted, and held when it is to be.
fn counted(body: s3s::Body, path: String, start: u64, control: Arc<Control>) -> Body {
    let index = {
        let mut sent = control.sent();
        sent.push(Sent { path, range: start..start });
        sent.len() - 1
    };
    let frames = futures_util::stream::unfold((body, control), move |(mut body, control)| async move {
        if control.hold_after.borrow().is_some() {
            let may_go = |limit: &Option<u64>| limit.is_none_or(|limit| control.bytes_sent() < limit);
            let _ = control.hold_after.subscribe().wait_for(may_go).await;
        }
        let frame = body.frame().await?;
        if let Some(data) = frame.as_ref().ok().and_then(|frame| frame.data_ref()) {
            control.sent()[index].range.end += data.len() as u64;
            control.bytes_sent.fetch_add(data.len() as u64, Ordering::SeqCst);
        }
        Some((frame, (body, control)))
    });
    StreamBody::new(frames).boxed_unsync()
}

impl Handler {
    /// Serves a request unless everything fails now, and notes what came of it.
    async fn serve(self, request: Request<Incoming>, failing: Option<StatusCode>) -> Response<s3s::Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let sha256 =
            request.headers().get("x-amz-content-sha256").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut response = Response::new(s3s::Body::empty());
        if let Some(status) = failing {
            *response.status_mut() = status;
        } else {
            let _one_at_a_time = if method == Method::PUT { Some(self.puts.lock().await) } else { None };
            match self.service.call(request.map(s3s::Body::from)).await {
                Ok(answer) => response = answer,
                Err(_) => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
            }
        }
        let request = S3Request { method, path, status: response.status(), sha256, at_ns: unix_ns() };
        self.control.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        response
    }
}

impl AsyncHandler<Body> for Handler {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let part = part_start(&request).filter(|_| request.method() == Method::GET);
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let trouble = *self.control.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        self.control.asked.fetch_add(1, Ordering::SeqCst);
        let failing = match trouble {
            Some(Trouble::Hangs) => std::future::pending().await,
            Some(Trouble::Fails(status)) => Some(status),
            Some(Trouble::Late(_)) | None => None,
        };
        // The death of a client ends this future, not the task: what was stored for it is noted all the same.
        let mut response = match tokio::spawn(self.clone().serve(request, failing)).await {
            Ok(response) => response,
            Err(_) => {
                let mut response = Response::new(s3s::Body::empty());
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                response
            }
        };
        let status = response.status();
        if let Some(Trouble::Late(delay)) = trouble {
            tokio::time::sleep(delay).await;
        }
        if self.control.reads_blocks && method == Method::GET && status.is_success() {
            let length = response.headers().get(header::CONTENT_LENGTH);
            let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
            let file = self.root.join(path.trim_start_matches('/'));
            if let Some(length) = length.filter(|_| file.is_file()) {
                match blocks(&file, part.unwrap_or(0), length).await {
                    Ok(body) => *response.body_mut() = body,
                    Err(_) => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
                }
            }
        }
        match part.filter(|_| status.is_success()) {
            Some(start) => response.map(|body| counted(body, path, start, Arc::clone(&self.control))),
            None => response.map(BodyExt::boxed_unsync),
        }
    }
}

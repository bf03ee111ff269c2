//! An S3 server of the test's own: the protocol over HTTP with signatures checked, files of a temporary directory behind.
//!
//! It has conditional PUT (`If-None-Match: *`) and presigned GET. It can be told to fail, and says what it was asked.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;

use super::http::{AsyncHandler, HttpServer};

const BUCKET: &str = "darkroom-images";
const REGION: &str = "us-east-1";
const ACCESS_KEY: &str = "test-access-key";
const SECRET_KEY: &str = "test-secret-key";

/// One request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct S3Request {
    pub(crate) method: Method,
    /// `/<bucket>/<key>`.
    pub(crate) path: String,
    pub(crate) status: StatusCode,
}

/// A running S3 server with one empty bucket. Gone when dropped, objects included.
pub(crate) struct S3Server {
    directory: TempDir,
    http: HttpServer,
    control: Arc<Control>,
}

#[derive(Default)]
struct Control {
    failing: Mutex<Option<StatusCode>>,
    requests: Mutex<Vec<S3Request>>,
}

impl S3Server {
    /// Starts one.
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(directory.path().join(BUCKET)).expect("a bucket");
        let files = FileSystem::new(directory.path()).expect("a directory that is there");
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let control = Arc::<Control>::default();
        let handler = Handler { service: builder.build(), control: Arc::clone(&control), puts: Arc::default() };
        let http = HttpServer::start(handler).await;
        Self { directory, http, control }
    }

    /// Its URL.
    pub(crate) fn endpoint(&self) -> String {
        self.http.url()
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
        *self.control.failing.lock().unwrap_or_else(PoisonError::into_inner) = status;
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
}

impl AsyncHandler<s3s::Body> for Handler {
    async fn answer(&self, request: Request<Incoming>) -> Response<s3s::Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let failing = *self.control.failing.lock().unwrap_or_else(PoisonError::into_inner);
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
        let status = response.status();
        let mut requests = self.control.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.push(S3Request { method, path, status });
        response
    }
}

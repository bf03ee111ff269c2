//! The bytes of starting pictures: from the object store, from a `data:` URL, or from an https URL under an
//! [`AddressGuard`].
//!
//! It limits sizes, times and redirects, and does not look into what it brings: decoding is the engine's.

use std::time::Duration;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, LOCATION};
use url::Url;

use crate::engine::PictureFiles;
use crate::job::limits::PICTURE_BYTES_MAX;
use crate::job::{Fault, FaultCode, JobSpec, PictureSource, Tenant};

use super::bus::chain;
use super::guard::{AddressGuard, Refused, refusal};
use super::store::{Found, Store};

/// From the first look-up to the last byte, redirects included.
const TIME_MAX: Duration = Duration::from_secs(30);
const REDIRECTS_MAX: usize = 3;

/// Base64 with or without its padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Brings pictures that requests point to.
#[derive(Clone, Debug)]
pub struct Fetcher {
    store: Store,
    guard: AddressGuard,
    client: reqwest::Client,
    bytes_max: usize,
    time_max: Duration,
}

/// Why a picture did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Text that is neither a key nor a URL that can be followed.
    #[error("{reason}, allowed: an object key below `{tenant}/`, a data: URL with base64, an https URL")]
    Source {
        /// What is wrong with it.
        reason: String,
        /// Whose keys are allowed.
        tenant: Tenant,
    },
    /// A URL that is not followed for strangers.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The object does not exist.
    #[error("there is no object `{key}`")]
    NoObject {
        /// Its key.
        key: String,
    },
    /// More than a picture may have.
    #[error("the picture has more than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// A chain of redirects without an end.
    #[error("the host {host} redirects once more, allowed: {REDIRECTS_MAX} redirects")]
    Redirects {
        /// Of the last redirect.
        host: String,
    },
    /// A redirect to nowhere.
    #[error("the host {host} redirects without a URL to go to")]
    Location {
        /// Where it came from.
        host: String,
    },
    /// An answer other than the picture.
    #[error("the host {host} answers {status}")]
    Status {
        /// Who.
        host: String,
        /// What.
        status: StatusCode,
    },
    /// The host cannot be reached, or the connection broke.
    #[error("the host {host} does not deliver: {reason}")]
    Network {
        /// Who.
        host: String,
        /// The causes, without the URL.
        reason: String,
    },
    /// Too slow.
    #[error("the host {host} takes longer than {} seconds", time_max.as_secs_f64())]
    TimedOut {
        /// The host of the URL in the request.
        host: String,
        /// The limit.
        time_max: Duration,
    },
    /// The object store failed.
    #[error("{}", _0.message)]
    Store(Fault),
}

impl FetchError {
    /// The fault of a job whose field `field` pointed to the picture.
    pub fn fault(&self, field: &str) -> Fault {
        let message = format!("{field}: {self}");
        match self {
            Self::Status { status, .. } if is_passing(*status) => Fault::retry(FaultCode::FetchFailed, message),
            Self::Network { .. } | Self::TimedOut { .. } => Fault::retry(FaultCode::FetchFailed, message),
            Self::Store(fault) => Fault { message, ..fault.clone() },
            Self::Source { .. }
            | Self::Refused(_)
            | Self::NoObject { .. }
            | Self::TooLarge { .. }
            | Self::Redirects { .. }
            | Self::Location { .. }
            | Self::Status { .. } => Fault::reject(FaultCode::InvalidRequest, message),
        }
    }
}

/// Whether the same question may get another answer later.
fn is_passing(status: StatusCode) -> bool {
    const PASSING: [StatusCode; 3] =
        [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
    status.is_server_error() || PASSING.contains(&status)
}

impl Fetcher {
    /// A fetcher over `store`, and over the network as `guard` allows it.
    ///
    /// # Errors
    /// reqwest's, when TLS cannot be set up.
    pub fn new(store: Store, guard: AddressGuard) -> Result<Self, reqwest::Error> {
        let client = guard.client()?;
        Ok(Self { store, guard, client, bytes_max: PICTURE_BYTES_MAX, time_max: TIME_MAX })
    }

    /// What the images of a job start from.
    ///
    /// # Errors
    /// The fault of the job, which names the field.
    pub async fn picture_files(&self, tenant: &Tenant, spec: &JobSpec) -> Result<PictureFiles, Fault> {
        let get = async |field: &str, source: &Option<PictureSource>| match source {
            Some(source) => self.fetch(tenant, source.as_str()).await.map(Some).map_err(|error| error.fault(field)),
            None => Ok(None),
        };
        Ok(PictureFiles {
            init_image: get("init_image", &spec.init_image).await?,
            mask_image: get("mask_image", &spec.mask_image).await?,
        })
    }

    /// The bytes that `source` stands for in a request of `tenant`: `data:…;base64,…`, `https://…`, or the key of an
    /// object below the tenant's own prefix.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn fetch(&self, tenant: &Tenant, source: &str) -> Result<Bytes, FetchError> {
        let wrong = |reason: String| FetchError::Source { reason, tenant: tenant.clone() };
        let scheme = source.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            Some("data") => data_url(source, self.bytes_max)
                .map_err(wrong)?
                .ok_or(FetchError::TooLarge { bytes_max: self.bytes_max }),
            Some(_) if source.contains("://") => {
                let url = Url::parse(source).map_err(|error| wrong(format!("the URL cannot be read: {error}")))?;
                self.download(url).await
            }
            Some(_) | None => {
                check_key(tenant, source).map_err(wrong)?;
                match self.store.find(source, self.bytes_max).await.map_err(FetchError::Store)? {
                    Found::Object(bytes) => Ok(bytes),
                    Found::TooLarge { .. } => Err(FetchError::TooLarge { bytes_max: self.bytes_max }),
                    Found::Nothing => Err(FetchError::NoObject { key: source.to_owned() }),
                }
            }
        }
    }

    async fn download(&self, url: Url) -> Result<Bytes, FetchError> {
        let host = host_of(&url);
        let late = |_| FetchError::TimedOut { host, time_max: self.time_max };
        tokio::time::timeout(self.time_max, self.follow(url)).await.map_err(late)?
    }

    async fn follow(&self, mut url: Url) -> Result<Bytes, FetchError> {
        for _ in 0..=REDIRECTS_MAX {
            self.guard.check(&url)?;
            let request = self.client.get(url.clone()).header(ACCEPT, "image/png, image/jpeg, image/webp");
            let response = request.send().await.map_err(|error| broken(&url, error))?;
            match response.status() {
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => {
                    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
                    let next = location.and_then(|location| url.join(location).ok());
                    url = next.ok_or_else(|| FetchError::Location { host: host_of(&url) })?;
                }
                StatusCode::OK => return self.read(&url, response).await,
                status => return Err(FetchError::Status { host: host_of(&url), status }),
            }
        }
        Err(FetchError::Redirects { host: host_of(&url) })
    }

    async fn read(&self, url: &Url, mut response: reqwest::Response) -> Result<Bytes, FetchError> {
        let too_large = || FetchError::TooLarge { bytes_max: self.bytes_max };
        if response.content_length().is_some_and(|length| length > self.bytes_max as u64) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| broken(url, error))? {
            if bytes.len() + chunk.len() > self.bytes_max {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }
}

/// The content of a `data:` URL; nothing when it has more than `bytes_max`.
///
/// # Errors
/// What is wrong with it, for people.
pub fn data_url(url: &str, bytes_max: usize) -> Result<Option<Bytes>, String> {
    let (head, content) = url.split_once(',').ok_or("the data: URL has no comma")?;
    if !head.to_ascii_lowercase().ends_with(";base64") {
        return Err("the data: URL is not in base64".into());
    }
    // Before anything is made room for.
    if content.len() > bytes_max.div_ceil(3) * 4 {
        return Ok(None);
    }
    let bytes = BASE64.decode(content).map_err(|error| format!("the data: URL is not in base64: {error}"))?;
    Ok((bytes.len() <= bytes_max).then(|| bytes.into()))
}

/// The part of a URL that is no secret.
fn host_of(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

fn broken(url: &Url, error: reqwest::Error) -> FetchError {
    match refusal(&error) {
        Some(refused) => FetchError::Refused(refused.clone()),
        None => FetchError::Network { host: host_of(url), reason: chain(&error.without_url()) },
    }
}

/// Keys have the form that this program writes them in, and begin with the tenant's name.
fn check_key(tenant: &Tenant, key: &str) -> Result<(), String> {
    let wrong = |segment: &str| {
        matches!(segment, "" | "." | "..")
            || segment.chars().any(|character| character.is_control() || character == '\\')
    };
    if key.split('/').any(wrong) {
        return Err("the object key has an empty, a relative or an unprintable part".into());
    }
    match key.split_once('/') {
        Some((first, _)) if first == tenant.as_str() => Ok(()),
        Some(_) | None => Err("the object key belongs to somebody else".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{SocketAddr, TcpListener};

    use crate::job::FaultClass;
    use crate::shell::config::StoreOptions;
    use crate::shell::store;

    use super::*;

    /// Answers each connection with what `answer` says to the path that it asks for.
    fn server(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let mut lines = BufReader::new(connection.try_clone().unwrap()).lines();
                let Some(Ok(request)) = lines.next() else { continue };
                let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
                assert!(!headers.iter().any(|line| line.to_ascii_lowercase().starts_with("cookie")), "{headers:?}");
                // The other side may have heard enough before the end.
                let _ = connection.write_all(&answer(request.split(' ').nth(1).unwrap()));
            }
        });
        address
    }

    fn response(head: &str, body: &[u8]) -> Vec<u8> {
        let head = format!("HTTP/1.1 {head}\r\nset-cookie: a=b\r\nconnection: close\r\n\r\n");
        [head.as_bytes(), body].concat()
    }

    fn tenant() -> Tenant {
        "acme".parse().unwrap()
    }

    fn fetcher(allowed: &str, change: impl FnOnce(&mut Fetcher)) -> Fetcher {
        let options = StoreOptions { store: "memory:///".into(), url_expires: Duration::from_secs(60) };
        let mut fetcher = Fetcher::new(store::open(&options).unwrap(), allowed.parse().unwrap()).unwrap();
        change(&mut fetcher);
        fetcher
    }

    async fn fault(fetcher: &Fetcher, source: &str) -> (FaultClass, FaultCode, String) {
        let fault = fetcher.fetch(&tenant(), source).await.unwrap_err().fault("init_image");
        (fault.class, fault.code, fault.message)
    }

    async fn assert_rejected(fetcher: &Fetcher, source: &str, says: &str) {
        let (class, code, message) = fault(fetcher, source).await;
        assert_eq!((class, code), (FaultClass::Reject, FaultCode::InvalidRequest), "{source}: {message}");
        assert!(message.starts_with("init_image: ") && message.contains(says), "{source}: {message}");
    }

    #[tokio::test]
    async fn listed_hosts_deliver_over_http() {
        let port = server(|path| response("200 OK", path.as_bytes())).port();
        for (allowed, host) in [("localhost", "localhost"), ("127.0.0.0/8", "127.0.0.1")] {
            let found = fetcher(allowed, |_| {}).fetch(&tenant(), &format!("http://{host}:{port}/a.png?x=1")).await;
            assert_eq!(found.unwrap(), "/a.png?x=1");
        }
    }

    #[tokio::test]
    async fn names_and_addresses_of_this_machine_are_refused() {
        // Nothing may connect.
        let port = server(|path| panic!("asked for {path}")).port();
        let fetcher = fetcher("", |_| {});
        let source = format!("https://localhost:{port}/");
        assert_rejected(&fetcher, &source, "the host localhost has a loopback address").await;
        let source = format!("https://127.0.0.1:{port}/");
        assert_rejected(&fetcher, &source, "the host 127.0.0.1 has a loopback address").await;
        assert_rejected(&fetcher, &format!("http://127.0.0.1:{port}/"), "loopback").await;
        assert_rejected(&fetcher, "https://169.254.169.254/latest/", "a cloud's metadata address").await;
        assert_rejected(&fetcher, "http://example.com/a.png", "scheme http, allowed: https").await;
        assert_rejected(&fetcher, "file:///etc/passwd", "scheme file").await;
        assert_rejected(&fetcher, "https://user:secret@example.com/a.png", "user name").await;
    }

    #[tokio::test]
    async fn every_hop_of_a_redirect_is_checked_again() {
        let port = server(|path| match path {
            "/one" => response("302 Found\r\nlocation: /two", b""),
            "/two" => response("307 Temporary Redirect\r\nlocation: /three", b""),
            "/three" => response("301 Moved Permanently\r\nlocation: there", b""),
            "/there" => response("200 OK", b"here"),
            "/for-ever" => response("302 Found\r\nlocation: /for-ever", b""),
            "/nowhere" => response("302 Found", b""),
            "/file" => response("302 Found\r\nlocation: file:///etc/passwd", b""),
            "/metadata" => response("302 Found\r\nlocation: http://169.254.169.254/latest/", b""),
            "/inside" => response("302 Found\r\nlocation: //127.0.0.1/secret", b""),
            "/with-password" => response("302 Found\r\nlocation: http://a:b@localhost/", b""),
            path => panic!("asked for {path}"),
        })
        .port();
        let fetcher = fetcher("localhost", |_| {});
        let url = |path: &str| format!("http://localhost:{port}{path}");
        assert_eq!(fetcher.fetch(&tenant(), &url("/one")).await.unwrap(), "here");
        for (path, says) in [
            ("/for-ever", "redirects once more, allowed: 3 redirects"),
            ("/nowhere", "redirects without a URL"),
            ("/file", "scheme file"),
            ("/metadata", "the host 169.254.169.254 has a cloud's metadata address"),
            ("/inside", "the host 127.0.0.1 has a loopback address"),
            ("/with-password", "user name"),
        ] {
            assert_rejected(&fetcher, &url(path), says).await;
        }
    }

    #[tokio::test]
    async fn sizes_are_limited_while_they_arrive() {
        let port = server(|path| match path {
            "/announced" => response("200 OK\r\ncontent-length: 2000000", b""),
            "/unannounced" => response("200 OK", &vec![7; 2_000_000]),
            _ => response("200 OK", &vec![7; 1000]),
        })
        .port();
        let fetcher = fetcher("localhost", |fetcher| fetcher.bytes_max = 1000);
        let url = |path: &str| format!("http://localhost:{port}{path}");
        assert_eq!(fetcher.fetch(&tenant(), &url("/just-right")).await.unwrap(), vec![7; 1000]);
        for path in ["/announced", "/unannounced"] {
            assert_rejected(&fetcher, &url(path), "more than 1000 bytes").await;
        }
    }

    #[tokio::test]
    async fn what_may_pass_is_tried_again_and_the_rest_is_not() {
        let port = server(|path| match path {
            "/short" => response("200 OK\r\ncontent-length: 10", b"abc"),
            path => response(&path[1..], b"no"),
        })
        .port();
        let fetcher = fetcher("localhost", |_| {});
        let url = |path: &str| format!("http://localhost:{port}/{path}?signature=secret");
        for status in ["500", "503", "429", "408"] {
            let (class, code, message) = fault(&fetcher, &format!("http://localhost:{port}/{status}")).await;
            assert_eq!((class, code), (FaultClass::Retry, FaultCode::FetchFailed), "{message}");
            assert!(message.contains(&format!("the host localhost answers {status}")), "{message}");
        }
        for status in ["404", "403", "204", "206"] {
            assert_rejected(&fetcher, &format!("http://localhost:{port}/{status}"), &format!("answers {status}")).await;
        }
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let nowhere = format!("http://localhost:{nobody}/a?signature=secret");
        let no_tls = format!("https://localhost:{port}/a?signature=secret");
        for source in [format!("http://localhost:{port}/short"), nowhere, no_tls] {
            let (class, code, message) = fault(&fetcher, &source).await;
            assert_eq!((class, code), (FaultClass::Retry, FaultCode::FetchFailed), "{message}");
            assert!(!message.contains("secret") && message.contains("localhost"), "{message}");
        }
        assert!(!fault(&fetcher, &url("500")).await.2.contains("secret"));
    }

    #[tokio::test]
    async fn a_host_that_never_answers_costs_a_limited_time() {
        // Connections wait in the queue of a listener that nobody serves.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let fetcher = fetcher("localhost", |fetcher| fetcher.time_max = Duration::from_millis(50));
        let (class, code, message) = fault(&fetcher, &format!("http://localhost:{port}/")).await;
        assert_eq!((class, code), (FaultClass::Retry, FaultCode::FetchFailed));
        assert_eq!(message, "init_image: the host localhost takes longer than 0.05 seconds");
    }

    #[tokio::test]
    async fn data_urls_are_decoded() {
        let fetcher = fetcher("", |fetcher| fetcher.bytes_max = 9);
        for (source, expected) in [
            ("data:image/png;base64,AAEC/w==", &[0_u8, 1, 2, 255][..]),
            ("data:image/png;base64,AAEC/w", &[0, 1, 2, 255]),
            ("DATA:;BASE64,AAEC", &[0, 1, 2]),
            ("data:image/png;charset=x;base64,AAECAAECAAEC", &[0, 1, 2, 0, 1, 2, 0, 1, 2]),
            ("data:;base64,", &[]),
        ] {
            assert_eq!(fetcher.fetch(&tenant(), source).await.unwrap(), expected, "{source}");
        }
        for (source, says) in [
            ("data:image/png;base64", "has no comma"),
            ("data:image/png,AAEC", "is not in base64"),
            ("data:image/png;base64,AAE!", "is not in base64"),
            ("data:image/png;base64,AAECA", "is not in base64"),
            ("data:image/png;base64,AAEC AAEC", "is not in base64"),
            ("data:image/png;base64,AAECAAECAAECAA==", "more than 9 bytes"),
        ] {
            assert_rejected(&fetcher, source, says).await;
        }
    }

    #[tokio::test]
    async fn objects_are_read_below_the_tenants_own_prefix() {
        let fetcher = fetcher("", |fetcher| fetcher.bytes_max = 4);
        for (key, bytes) in [("acme/uploads/a b.png", "mine"), ("acme/large", "12345"), ("other/a.png", "x")] {
            fetcher.store.put(key, bytes.into(), "image/png").await.unwrap();
        }
        assert_eq!(fetcher.fetch(&tenant(), "acme/uploads/a b.png").await.unwrap(), "mine");
        for (key, says) in [
            ("acme/large", "more than 4 bytes"),
            ("acme/nothing", "no object `acme/nothing`"),
            ("other/a.png", "somebody else, allowed: an object key below `acme/`"),
            ("acme2/a.png", "somebody else"),
            ("acme", "somebody else"),
            ("", "empty"),
            ("acme/", "empty"),
            ("/acme/a.png", "empty"),
            ("acme//a.png", "empty"),
            ("acme/../other/a.png", "relative"),
            ("acme/./a.png", "relative"),
            ("acme/..\\other\\a.png", "unprintable"),
            ("acme/a\n.png", "unprintable"),
            ("s3:acme/a.png", "somebody else"),
        ] {
            assert_rejected(&fetcher, key, says).await;
        }
    }
}

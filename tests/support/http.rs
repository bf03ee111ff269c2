//! The little HTTP that the servers of the tests share: a listener that ends with its value, and GET.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1::handshake;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// No answer of a server of ours takes this long.
const GET_LIMIT: Duration = Duration::from_secs(30);

/// A server on a free port of loopback. Gone when dropped, connections included.
#[derive(Debug)]
pub(crate) struct HttpServer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl HttpServer {
    /// Answers every request by `handle`.
    pub(crate) async fn start<B>(handle: impl AsyncHandler<B>) -> Self
    where
        B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let handle = handle.clone();
                // A client that hangs up in between is none of our business.
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let handle = handle.clone();
                        async move { Ok::<_, std::convert::Infallible>(handle.answer(request).await) }
                    });
                    let _ = Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, task }
    }

    /// `http://127.0.0.1:<port>`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What answers requests.
pub(crate) trait AsyncHandler<B>: Clone + Send + 'static {
    /// Answers one.
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Response<B>> + Send;
}

/// What a GET brought.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// GETs an `http:` URL as anybody would, with no credentials but those in it.
///
/// # Panics
/// If there is no answer.
pub(crate) async fn get(url: &str) -> Answer {
    let uri: Uri = url.parse().expect("a URL");
    assert_eq!(uri.scheme_str(), Some("http"), "{url}");
    let authority = uri.authority().expect("a host").clone();
    let target = uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let exchange = async move {
        let stream =
            TcpStream::connect((authority.host(), authority.port_u16().unwrap_or(80))).await.expect("a server");
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.expect("a connection");
        let connection = tokio::spawn(connection);
        let request = Request::get(target)
            .header(header::HOST, authority.as_str())
            .body(Empty::<Bytes>::new())
            .expect("a request");
        let (parts, body) = sender.send_request(request).await.expect("an answer").into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        connection.abort();
        Answer { status: parts.status, headers: parts.headers, body }
    };
    tokio::time::timeout(GET_LIMIT, exchange).await.expect("an answer in time")
}

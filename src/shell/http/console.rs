//! The console: a page for people, with the files that it needs. What it does is in `local/console`; to the gateway it is a
//! client like any other.

use std::sync::{Arc, LazyLock};

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Gateway;
use super::problem::Problem;
use crate::wire::request::hexadecimal;

/// The page may load what is here, and connect to any gateway, NATS server and object store.
const POLICY: &str = "default-src 'self'; img-src 'self' data: blob: http: https:; connect-src 'self' ws: wss: http: https:; \
                      style-src 'self'; script-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

/// One file of it.
struct File {
    name: &'static str,
    media_type: &'static str,
    bytes: &'static [u8],
    /// Changes when the bytes do.
    tag: LazyLock<String>,
}

macro_rules! file {
    ($name:literal, $media_type:literal) => {{
        const BYTES: &[u8] = include_bytes!(concat!("../../../local/console/dist/", $name));
        File {
            name: $name,
            media_type: $media_type,
            bytes: BYTES,
            tag: LazyLock::new(|| format!("\"{}\"", &hexadecimal(&Sha256::digest(BYTES))[..16])),
        }
    }};
}

static PAGE: File = file!("index.html", "text/html; charset=utf-8");
static FILES: [File; 3] = [
    file!("console.js", "text/javascript; charset=utf-8"),
    file!("console.css", "text/css; charset=utf-8"),
    file!("icon.svg", "image/svg+xml"),
];

/// `GET /`
pub(super) async fn page(headers: HeaderMap) -> Response {
    PAGE.answer(&headers)
}

/// `GET /console/{file}`
pub(super) async fn file(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, Problem> {
    let file = FILES.iter().find(|file| file.name == name);
    let unknown = || Problem::new(StatusCode::NOT_FOUND, "no_such_path", "nothing is there");
    file.map(|file| file.answer(&headers)).ok_or_else(unknown)
}

/// `GET /console/config.json`: where the page may speak NATS itself, and as which tenant.
pub(super) async fn config(State(gateway): State<Arc<Gateway>>) -> Json<Value> {
    let nats = gateway.console_nats.as_ref().zip(gateway.open_tenant.as_ref());
    Json(json!({ "nats": nats.map(|(url, tenant)| json!({ "url": url, "tenant": tenant.as_str() })) }))
}

impl File {
    fn answer(&self, headers: &HeaderMap) -> Response {
        let known = headers.get(header::IF_NONE_MATCH).is_some_and(|tag| tag.as_bytes() == self.tag.as_bytes());
        let (status, body) = if known { (StatusCode::NOT_MODIFIED, &[][..]) } else { (StatusCode::OK, self.bytes) };
        let headers: [(HeaderName, &str); 5] = [
            (header::CONTENT_TYPE, self.media_type),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::CACHE_CONTROL, "no-cache"),
            (header::ETAG, &self.tag),
        ];
        (status, headers, body).into_response()
    }
}

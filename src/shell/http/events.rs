//! Following a job: server-sent events, and the same over a WebSocket.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use tokio_util::sync::CancellationToken;

use super::jobs::job_id;
use super::problem::Problem;
use super::{Caller, Gateway};
use crate::shell::client::{Seen, Watch};
use crate::wire::event::EventKind;

/// A connection that says nothing is closed by proxies on the way; many wait for 60 seconds.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// After so long a client that was cut off comes back.
const RECONNECT: Duration = Duration::from_secs(2);
const LAST_EVENT_ID: &str = "last-event-id";
/// RFC 6455: the server goes away.
const GOING_AWAY: u16 = 1001;
/// RFC 6455: all is said.
const NORMAL: u16 = 1000;

/// `GET /v1/jobs/{job}/events`
pub(super) async fn stream(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path(job): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut watch = follow(&gateway, &caller, &job).await?;
    if let Some(seen) = headers.get(LAST_EVENT_ID).and_then(|value| value.to_str().ok()) {
        if EventKind::from_id(seen).is_some_and(EventKind::is_terminal) {
            // Browsers come back whenever a stream ends, until they are told this.
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        watch.skip_until(seen);
    }
    let events = Sse::new(events(watch, gateway.stop.clone())).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    let mut response = events.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx collects answers otherwise.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}

/// Follows a job that there is, from its beginning.
pub(super) async fn follow(gateway: &Gateway, caller: &Caller, job: &str) -> Result<Watch, Problem> {
    let job = job_id(job)?;
    let mut watch = Watch::start(&gateway.bus, &caller.tenant, &job).await?;
    gateway.record(&caller.tenant, &job).await?;
    watch.read_earlier().await?;
    Ok(watch)
}

/// What is seen until the terminal event, or until the gateway ends: then a client comes back, to another copy.
fn events(watch: Watch, stop: CancellationToken) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Some(watch), move |watch| {
        let stop = stop.clone();
        async move {
            let mut watch = watch?;
            let seen = tokio::select! {
                () = stop.cancelled() => return None,
                seen = watch.next() => seen.inspect_err(|error| tracing::debug!(%error, "gateway.events")).ok()?,
            };
            let event = Event::default().id(&seen.event.id).event(seen.kind.as_str()).retry(RECONNECT);
            let event = event.json_data(&seen.event).ok()?;
            Some((Ok(event), (!seen.kind.is_terminal()).then_some(watch)))
        }
    })
}

/// `GET /v1/ws/jobs/{job}`
pub(super) async fn socket(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path(job): Path<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let watch = follow(&gateway, &caller, &job).await?;
    let upgrade = upgrade.map_err(|rejection| {
        Problem::new(StatusCode::UPGRADE_REQUIRED, "no_websocket", format!("a WebSocket is spoken here: {rejection}"))
    })?;
    let stop = gateway.stop.clone();
    Ok(upgrade.on_upgrade(async move |socket| send(socket, watch, stop).await))
}

async fn send(mut socket: WebSocket, mut watch: Watch, stop: CancellationToken) {
    let code = loop {
        let seen = tokio::select! {
            () = stop.cancelled() => break GOING_AWAY,
            // What a client says means nothing but that it is there, or that it leaves.
            said = socket.recv() => match said {
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return,
            },
            seen = watch.next() => seen,
        };
        let Ok(Seen { kind, event }) = seen else { break GOING_AWAY };
        let Ok(text) = serde_json::to_string(&event) else { break GOING_AWAY };
        if socket.send(Message::Text(text.into())).await.is_err() {
            return;
        }
        if kind.is_terminal() {
            break NORMAL;
        }
    };
    let _ = socket.send(Message::Close(Some(CloseFrame { code, reason: "".into() }))).await;
}

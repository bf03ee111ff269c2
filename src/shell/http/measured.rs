//! How long each request took, by route. A path that no route has is counted without its name, so that nobody makes series.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;

use super::Gateway;

/// What methods are called that no route has.
const OTHER: &str = "_OTHER";

/// Answers, and tells metrics of it.
pub(super) async fn measured(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let began = gateway.clock.now();
    let route =
        request.extensions().get::<MatchedPath>().map_or_else(|| OTHER.to_owned(), |path| path.as_str().to_owned());
    let known = [Method::GET, Method::POST, Method::DELETE, Method::OPTIONS, Method::HEAD];
    let method = known.into_iter().find(|known| known == request.method());
    let answer = next.run(request).await;
    let took = gateway.clock.now().since(began);
    let method = method.as_ref().map_or(OTHER, Method::as_str);
    gateway.metrics.answered(method, &route, answer.status().as_u16(), took);
    answer
}

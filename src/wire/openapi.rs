//! The description of the gateway's own HTTP interface, OpenAPI 3.1, from the types that it reads and writes.
//!
//! Which paths there are is said here and, to the router, in `shell::http`; a test holds the one to the other.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::http::{
    FleetDocument, HealthDocument, JobDocument, JobList, ModelList, ProblemDocument, SubmissionDocument,
};
use crate::job::Status;

/// What every operation may answer with, besides what it is for: status, and when.
const PROBLEMS: [(&str, &str); 4] = [
    ("401", "No key, or nobody's"),
    ("422", "A rule is broken; every one is named"),
    ("429", "Too many requests, or too many jobs in the queue"),
    ("503", "NATS or the store does not answer, or the queue is full"),
];

/// The whole document.
pub fn document() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let job = reference::<JobDocument>(&mut generator);
    let problem = reference::<ProblemDocument>(&mut generator);
    let health = reference::<HealthDocument>(&mut generator);
    let answers = |own: &[(&str, &str, Option<&Value>)], more: &[(&str, &str)]| {
        let mut answers = Map::new();
        for (status, when, schema) in own {
            let content = schema.map(|schema| json!({ "application/json": { "schema": schema } }));
            answers.insert((*status).to_owned(), without_null(json!({ "description": when, "content": content })));
        }
        for (status, when) in PROBLEMS.iter().chain(more) {
            let content = json!({ "application/problem+json": { "schema": problem } });
            answers.insert((*status).to_owned(), json!({ "description": when, "content": content }));
        }
        Value::Object(answers)
    };
    let no_job = ("404", "No such job of this tenant");
    let gone = ("410", "It ended, and its record was removed after its retention");
    let id = json!({ "name": "job", "in": "path", "required": true, "description": "The job's id",
        "schema": { "type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$" } });
    let header = |name: &str, about: &str, schema: Value| json!({ "name": name, "in": "header", "description": about, "schema": schema });
    let query = |name: &str, about: &str, schema: Value| json!({ "name": name, "in": "query", "description": about, "schema": schema });
    let submission = reference::<SubmissionDocument>(&mut generator);
    let jobs = reference::<JobList>(&mut generator);
    let models = reference::<ModelList>(&mut generator);
    let fleet = reference::<FleetDocument>(&mut generator);
    let statuses =
        json!({ "type": "string", "enum": Status::ALL.iter().map(|status| status.as_str()).collect::<Vec<_>>() });
    let paths = json!({
        "/v1/jobs": {
            "post": {
                "operationId": "submit", "summary": "Submit a job",
                "parameters": [
                    header("Idempotency-Key", "Sent again, it is the same job", json!({ "type": "string", "minLength": 1, "maxLength": 255 })),
                    header("Prefer", "`wait=n`: answer when it has ended, or after n seconds, 60 at most", json!({ "type": "string" })),
                ],
                "requestBody": { "required": true, "content": { "application/json": { "schema": submission } } },
                "responses": answers(
                    &[("200", "It has ended", Some(&job)), ("202", "It is accepted", Some(&job))],
                    &[
                        ("400", "Not JSON"), ("404", "No such model"), ("409", "The id belongs to another request"), gone,
                        ("413", "Too large"), ("415", "Not application/json"),
                    ],
                ),
            },
            "get": {
                "operationId": "list", "summary": "The newest jobs, newest first",
                "parameters": [
                    query("limit", "At most so many", json!({ "type": "integer", "minimum": 1, "maximum": 100, "default": 20 })),
                    query("status", "Only those", statuses),
                ],
                "responses": answers(&[("200", "The jobs", Some(&jobs))], &[]),
            },
        },
        "/v1/jobs/{job}": {
            "parameters": [id],
            "get": {
                "operationId": "show", "summary": "A job",
                "responses": answers(&[("200", "The job", Some(&job))], &[no_job, gone]),
            },
            "delete": {
                "operationId": "cancel", "summary": "Cancel a job",
                "parameters": [query("keep_partial", "Store what is there of the images of a running job", json!({ "type": "boolean" }))],
                "responses": answers(
                    &[("200", "It is cancelled", Some(&job)), ("202", "Its worker stores what is there", Some(&job))],
                    &[no_job, gone, ("409", "It had ended before")],
                ),
            },
        },
        "/v1/jobs/{job}/events": {
            "parameters": [id],
            "get": {
                "operationId": "events", "summary": "Follow a job: server-sent events, each with a CloudEvent for data, to the terminal one",
                "parameters": [header("Last-Event-ID", "The last that was seen", json!({ "type": "string" }))],
                "responses": with_media_type(
                    answers(&[("200", "The events", None), ("204", "The terminal one was seen", None)], &[no_job, gone]), "text/event-stream", &json!({ "type": "string" })),
            },
        },
        "/v1/ws/jobs/{job}": {
            "parameters": [id],
            "get": {
                "operationId": "socket", "summary": "The same over a WebSocket, an event in each text message",
                "responses": answers(&[("101", "A WebSocket", None)], &[no_job, gone, ("426", "Not a WebSocket")]),
            },
        },
        "/v1/jobs/{job}/images/{index}": {
            "parameters": [id, { "name": "index", "in": "path", "required": true, "schema": { "type": "integer", "minimum": 0 } }],
            "get": {
                "operationId": "image", "summary": "An image of a job",
                "responses": with_media_type(
                    answers(
                        &[("200", "Its bytes", None), ("302", "Where its bytes are", None)],
                        &[("404", "No such job or image"), gone, ("501", "The gateway does not know the store")],
                    ),
                    "image/*", &json!({ "type": "string", "format": "binary" })),
            },
        },
        "/v1/models": {
            "get": {
                "operationId": "models", "summary": "The models that are served",
                "responses": answers(&[("200", "The models", Some(&models))], &[]),
            },
        },
        "/v1/models/{model}/wake": {
            "parameters": [{ "name": "model", "in": "path", "required": true, "schema": { "type": "string" } }],
            "post": {
                "operationId": "wake", "summary": "Say that somebody will soon ask for the model, so that a worker is started",
                "responses": answers(&[("202", "It is passed on", None)], &[("404", "No such model")]),
            },
        },
        "/v1/fleet": {
            "get": {
                "operationId": "fleet", "summary": "The workers of each model, and how many requests wait",
                "responses": answers(&[("200", "The fleet", Some(&fleet))], &[]),
            },
        },
        "/health/live": {
            "get": {
                "operationId": "live", "summary": "Whether the gateway answers", "security": [],
                "responses": { "200": { "description": "It does", "content": { "application/json": { "schema": health } } } },
            },
        },
        "/health/ready": {
            "get": {
                "operationId": "ready", "summary": "Whether NATS and the store answer it", "security": [],
                "responses": {
                    "200": { "description": "They do", "content": { "application/json": { "schema": health } } },
                    "503": { "description": "One does not", "content": { "application/json": { "schema": health } } },
                },
            },
        },
        "/openapi.json": {
            "get": {
                "operationId": "openapi", "summary": "This document", "security": [],
                "responses": { "200": { "description": "OpenAPI 3.1", "content": { "application/json": { "schema": { "type": "object" } } } } },
            },
        },
    });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Darkroom", "version": env!("CARGO_PKG_VERSION"),
            "description": "Text-to-image jobs. The same jobs are seen, followed and cancelled over NATS.",
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "security": [{ "key": [] }],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer", "description": "A key of `darkroom keys add`" } },
        },
    })
}

/// Where the document has the schema of a type.
fn reference<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

/// A successful answer's media type, where it is not JSON.
fn with_media_type(mut answers: Value, media_type: &str, schema: &Value) -> Value {
    answers["200"]["content"] = json!({ media_type: { "schema": schema } });
    answers
}

fn without_null(mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value {
        fields.retain(|_, value| !value.is_null());
    }
    value
}

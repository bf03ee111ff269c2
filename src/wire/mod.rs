//! The bus protocol: subjects, headers, requests, events, records and object keys.
//!
//! The only place that knows how anything of ours looks outside the process: every (de)serialisation of a message and
//! every subject literal is here. It does no I/O; times come in as milliseconds since the Unix epoch.

pub mod a1111;
pub mod api_key;
pub mod cancel;
pub mod cost;
pub mod event;
pub mod header;
pub mod http;
pub mod key;
pub mod kserve;
pub mod manifest;
pub mod model_files;
pub mod openai;
pub mod openapi;
pub mod price;
pub mod record;
pub mod replicate;
pub mod request;
pub mod scale;
pub mod schema;
pub mod signature;
pub mod subject;
pub mod time;
pub mod usage;
pub mod webhook;
pub mod worker;

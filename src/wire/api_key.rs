//! API keys of the gateway: what a client shows, and what is kept of it.
//!
//! A key is 244 random bits, so that its plain SHA-256 can be kept: nobody finds a key by trying. Who makes keys and looks
//! them up is elsewhere.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::request::hexadecimal;

/// What every key begins with, so that scanners of leaked secrets can find it.
pub const PREFIX: &str = "dk_";

/// What the bucket of keys holds under the key's [`name`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyDocument {
    /// Whose jobs are seen and made with it.
    pub tenant: String,
    /// What it is for, in its owner's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Requests that it may make in a minute; the gateway's own limit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
}

/// What a key is kept under: its SHA-256, in hexadecimal digits.
pub fn name(key: &str) -> String {
    hexadecimal(&Sha256::digest(key.as_bytes()))
}

/// The document as bytes.
pub fn encode(document: &KeyDocument) -> Vec<u8> {
    serde_json::to_vec(document).unwrap_or_default()
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// serde's, when the bytes are none.
pub fn decode(bytes: &[u8]) -> Result<KeyDocument, serde_json::Error> {
    serde_json::from_slice(bytes)
}

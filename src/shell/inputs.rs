//! Starting pictures on their way to workers: into the object store, or into the request itself.
//!
//! What a picture shows, and whether it can be decoded, is the worker's to find out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::job::{Fault, Tenant};
use crate::wire::key;
use crate::wire::request::hexadecimal;

use super::store::Store;

/// The media type of a PNG, JPEG or WebP, by how it begins; `None` for anything else.
pub fn media_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

/// Puts a picture into the store, under a key that its bytes decide, and returns that.
///
/// # Errors
/// A `Retry` fault with code `store_failed`.
pub async fn put(store: &Store, tenant: &Tenant, bytes: Bytes, media_type: &'static str) -> Result<String, Fault> {
    let key = key::input(tenant, &hexadecimal(&Sha256::digest(&bytes)));
    store.put(&key, bytes, media_type).await?;
    Ok(key)
}

/// A picture as a part of its request.
pub fn data_url(bytes: &[u8], media_type: &str) -> String {
    format!("data:{media_type};base64,{}", STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_known_by_how_they_begin() {
        for (bytes, found) in [
            (&b"\x89PNG\r\n\x1a\n..."[..], Some("image/png")),
            (b"\xff\xd8\xff\xe0", Some("image/jpeg")),
            (b"RIFF\0\0\0\0WEBPVP8 ", Some("image/webp")),
            (b"RIFF\0\0\0\0WAVE", None),
            (b"\x89PNG", None),
            (b"GIF89a", None),
            (b"", None),
        ] {
            assert_eq!(media_type(bytes), found, "{bytes:?}");
        }
    }
}

//! `--init-image` and `--mask-image`: a file of this machine becomes something that a worker can reach.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use bytes::Bytes;
use darkroom::job::Tenant;
use darkroom::job::limits::REQUEST_BYTES_MAX;
use darkroom::shell::config::StoreOptions;
use darkroom::shell::store;
use darkroom::wire::key;
use darkroom::wire::request::hexadecimal;
use sha2::{Digest, Sha256};

/// What the request names for `given`, which is a file of this machine, a URL or an object key.
///
/// A file goes to the object store where one is named, else into the request if it is small enough.
pub(crate) async fn named(given: &str, tenant: &Tenant, to: Option<&str>) -> anyhow::Result<String> {
    let path = Path::new(given);
    if !path.is_file() {
        return Ok(given.to_owned());
    }
    let bytes = std::fs::read(path).with_context(|| format!("{given} cannot be read"))?;
    let media = match bytes.as_slice() {
        [0x89, b'P', b'N', b'G', ..] => "image/png",
        [0xff, 0xd8, ..] => "image/jpeg",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
        _ => anyhow::bail!("{given} is neither PNG nor JPEG nor WebP"),
    };
    if let Some(url) = to {
        let key = key::input(tenant, &hexadecimal(&Sha256::digest(&bytes)));
        let options = StoreOptions { store: url.to_owned(), url_expires: Duration::from_secs(3600) };
        store::open(&options)?.put(&key, Bytes::from(bytes), media).await?;
        return Ok(key);
    }
    // Base64 makes four characters of three bytes; the rest of the request needs room too.
    let most = REQUEST_BYTES_MAX / 4;
    anyhow::ensure!(
        bytes.len() <= most,
        "{given} has {} bytes, too many for a request ({most}); name the object store with --store to put it there",
        bytes.len(),
    );
    Ok(format!("data:{media};base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes)))
}

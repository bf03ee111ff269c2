//! `--init-image` and `--mask-image`: a file of this machine becomes something that a worker can reach.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use darkroom::job::Tenant;
use darkroom::job::limits::REQUEST_BYTES_MAX;
use darkroom::shell::config::StoreOptions;
use darkroom::shell::{inputs, store};

/// What the request names for `given`, which is a file of this machine, a URL or an object key.
///
/// A file goes to the object store where one is named, else into the request if it is small enough.
pub(crate) async fn named(given: &str, tenant: &Tenant, to: Option<&str>) -> anyhow::Result<String> {
    let path = Path::new(given);
    if !path.is_file() {
        return Ok(given.to_owned());
    }
    let bytes = std::fs::read(path).with_context(|| format!("{given} cannot be read"))?;
    let media = inputs::media_type(&bytes).with_context(|| format!("{given} is neither PNG nor JPEG nor WebP"))?;
    if let Some(url) = to {
        let options = StoreOptions { store: url.to_owned(), url_expires: Duration::from_secs(3600) };
        return Ok(inputs::put(&store::open(&options)?, tenant, bytes.into(), media).await?);
    }
    // Base64 makes four characters of three bytes; the rest of the request needs room too.
    let most = REQUEST_BYTES_MAX / 4;
    anyhow::ensure!(
        bytes.len() <= most,
        "{given} has {} bytes, too many for a request ({most}); name the object store with --store to put it there",
        bytes.len(),
    );
    Ok(inputs::data_url(&bytes, media))
}

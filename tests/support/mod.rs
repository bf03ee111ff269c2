//! What integration tests put around Darkroom: real servers, processes, and waiting without sleeping.
//!
//! Nothing here knows Darkroom's wire or its library: a test sees what a user would see. What is not on the machine is
//! installed into Darkroom's cache, pinned. Whatever is started ends with the value that stands for it, and with the
//! test process, however that ends.

#![allow(dead_code, reason = "each test uses the part it needs")]

pub(crate) mod certificates;
pub(crate) mod http;
pub(crate) mod nats;
pub(crate) mod node;
pub(crate) mod otlp;
pub(crate) mod process;
pub(crate) mod python;
pub(crate) mod receiver;
pub(crate) mod s3;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How often something is looked at that cannot be waited for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Waits until `probe` has an answer.
///
/// # Panics
/// If it has none within `deadline`.
pub(crate) async fn eventually<T>(what: &str, deadline: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let answer = async {
        loop {
            if let Some(answer) = probe().await {
                return answer;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    match tokio::time::timeout(deadline, answer).await {
        Ok(answer) => answer,
        Err(_) => panic!("not within {deadline:?}: {what}"),
    }
}

/// The wall clock, which the servers on this machine share, in nanoseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "what happened first is told by when it happened")]
pub(crate) fn unix_ns() -> i128 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i128::try_from(since.as_nanos()).expect("before the end of time")
}

/// The root of the checkout, from whichever package's tests.
pub(crate) fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .find(|directory| directory.join("local/nats-server").exists())
        .expect("tests run in a checkout")
        .to_owned()
}

/// Darkroom's cache directory, as `local/nats-server` has it.
fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("HOME or XDG_CACHE_HOME is set")).join(".cache"),
        PathBuf::from,
    );
    base.join("darkroom")
}

/// A directory of Darkroom's cache, made by the first who needs it: `fill` gets a directory of its own, and says which one
/// in it to keep.
fn cached(name: &str, fill: impl FnOnce(&Path) -> PathBuf) -> PathBuf {
    // One after the other: two tests may want the same.
    static FILLING: Mutex<()> = Mutex::new(());
    let _alone = FILLING.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = cache().join(name);
    if directory.is_dir() {
        return directory;
    }
    let parent = directory.parent().expect("a directory in a cache");
    std::fs::create_dir_all(parent).expect("the cache can be written");
    let staging = tempfile::tempdir_in(parent).expect("the cache can be written");
    let filled = fill(staging.path());
    // Another test process may have come first: its directory is as good.
    if let Err(error) = std::fs::rename(&filled, &directory) {
        assert!(directory.is_dir(), "{}: {error}", directory.display());
    }
    directory
}

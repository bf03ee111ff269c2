//! LoRAs of the object store become files of this machine, where the engine looks for them.
//!
//! What is there already is not asked for again: a LoRA that changes gets another name. Nothing is read here but bytes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use uuid::Uuid;

use crate::job::{Fault, FaultCode, LoraChoice, LoraName};
use crate::wire::key;

use super::store::{Found, Store};

/// The largest LoRAs that people share are below it.
const BYTES_MAX: usize = 2 << 30;
/// Longer than it takes to write one.
const DRAFT_AGE_MAX: Duration = Duration::from_secs(3600);

/// The folder that the engine reads, filled from the store.
#[derive(Clone, Debug)]
pub struct LoraFolder {
    folder: PathBuf,
    store: Store,
    /// Whoever brings one: the jobs of a batch often want the same.
    bringing: Arc<Mutex<()>>,
}

impl LoraFolder {
    /// `folder` need not exist yet.
    pub fn new(folder: PathBuf, store: Store) -> Self {
        Self { folder, store, bringing: Arc::default() }
    }

    /// Brings those of `loras` that are not in the folder. One that the store has not either is left to the engine, which
    /// knows what there is instead.
    ///
    /// # Errors
    /// `Retry` when the store does not answer or the folder cannot be written, `Reject` for a file that is too large.
    pub async fn bring(&self, loras: &[LoraChoice]) -> Result<(), Fault> {
        for LoraChoice { name, .. } in loras {
            let path = self.folder.join(format!("{name}.safetensors"));
            if path.is_file() {
                continue;
            }
            let _alone = self.bringing.lock().await;
            if path.is_file() {
                continue;
            }
            match self.store.find(&key::lora(name), BYTES_MAX).await? {
                Found::Nothing => {}
                Found::TooLarge { bytes } => {
                    let message = format!("loras: {name} has {bytes} bytes, more than {BYTES_MAX}");
                    return Err(Fault::reject(FaultCode::InvalidRequest, message));
                }
                Found::Object(bytes) => {
                    let (folder, name) = (self.folder.clone(), name.clone());
                    let written = tokio::task::spawn_blocking(move || write(&folder, &name, &bytes)).await;
                    let failed = |reason: String| Fault::retry(FaultCode::FetchFailed, format!("loras: {reason}"));
                    written.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
                }
            }
        }
        Ok(())
    }
}

/// Under another name first: a file that is half written must not be read by anybody. Nobody else has that name, not even
/// another container with the same folder, where processes have the same ids.
fn write(folder: &Path, name: &LoraName, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    remove_old_drafts(folder)?;
    let draft = folder.join(format!(".{name}.{}", Uuid::new_v4().simple()));
    let written = std::fs::write(&draft, bytes)
        .and_then(|()| std::fs::rename(&draft, folder.join(format!("{name}.safetensors"))));
    if written.is_err() {
        // It may be as large as what was to be written; that it cannot be removed is no news.
        let _ = std::fs::remove_file(&draft);
    }
    written
}

/// Of writers that were killed; who still writes has begun lately.
fn remove_old_drafts(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let is_old = |age: Duration| age > DRAFT_AGE_MAX;
        let is_draft = entry.file_name().to_string_lossy().starts_with('.');
        let written = entry.metadata().and_then(|file| file.modified());
        if is_draft && written.is_ok_and(|written| written.elapsed().is_ok_and(is_old)) {
            // Another worker may do it at the same time.
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::shell::config::StoreOptions;
    use crate::shell::store;

    #[tokio::test]
    async fn what_the_store_has_is_in_the_folder_once_whoever_brings_it() {
        let directory = tempfile::tempdir().unwrap();
        let url = url::Url::from_file_path(directory.path().join("store")).unwrap();
        let options = StoreOptions { store: url.into(), url_expires: Duration::from_secs(1) };
        let store = store::open(&options).unwrap();
        store.put("loras/mine.safetensors", Bytes::from_static(b"weights"), "application/octet-stream").await.unwrap();
        let folder = directory.path().join("loras");
        let choice = |name: &str| LoraChoice { name: name.parse().unwrap(), weight: 1.0 };
        std::fs::create_dir(&folder).unwrap();
        let draft = std::fs::File::create(folder.join(".mine.of-one-who-was-killed")).unwrap();
        draft.set_modified(std::time::UNIX_EPOCH).unwrap();
        let loras = LoraFolder::new(folder.clone(), store);
        let choices = [choice("mine"), choice("other")];
        let all = futures_util::future::join_all((0..8).map(|_| loras.bring(&choices))).await;
        all.into_iter().collect::<Result<(), _>>().unwrap();
        assert_eq!(std::fs::read(folder.join("mine.safetensors")).unwrap(), b"weights");
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1);
    }
}

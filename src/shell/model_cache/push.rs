//! Puts a model into the object store, with the manifest that says what it is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::{ObjectStoreExt as _, PutPayload, WriteMultipart};

use crate::wire::model_files::{self, ModelFile, ModelFiles, is_path_below};

use super::super::store;
use super::ModelCacheError;
use super::fetching::blocking;
use super::hashing::digests_of;
use super::policy::is_wanted;
use super::source::Source;

/// One upload of several.
const PART_BYTES: usize = 16 << 20;
/// Uploads under way.
const PARTS_AT_ONCE: usize = 4;

/// What was put there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// All files of the model, as the manifest has them.
    pub files: Vec<ModelFile>,
    /// Bytes that were sent; what the manifest that was there has already was not.
    pub sent: u64,
}

/// What of a model is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToSend {
    /// What the manifest that is there does not list, or is not there in its size.
    Changed,
    /// Everything: objects may be damaged.
    All,
}

/// Puts the files that make the diffusers directory `directory` below `url`, and the manifest last.
///
/// # Errors
/// [`ModelCacheError`].
pub async fn push(directory: &Path, url: &str, what: ToSend) -> Result<Pushed, ModelCacheError> {
    let found = {
        let directory = directory.to_owned();
        blocking(move || files_below(&directory)).await.map_err(|error| ModelCacheError::file(Path::new(url), error))?
    };
    if !found.iter().any(|path| path == "model_index.json") {
        return Err(ModelCacheError::NoModel { url: directory.display().to_string() });
    }
    if let Some(path) = store::local_path(url) {
        std::fs::create_dir_all(&path).map_err(|error| ModelCacheError::file(&path, error))?;
    }
    let source = Source::open(url)?;
    let before = source.manifest().await?.map(|manifest| manifest.files).unwrap_or_default();
    let (mut files, mut sent) = (Vec::new(), 0);
    for path in found {
        let local = directory.join(&path);
        let failed = |error| ModelCacheError::file(&local, error);
        let (to_read, to_hash) = (local.clone(), local.clone());
        let file = blocking(move || File::open(to_read)).await.map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let sha256 = blocking(move || digests_of(&to_hash)).await.map_err(failed)?.sha256;
        let file_of_model = ModelFile { path, size, sha256 };
        let is_there =
            what == ToSend::Changed && before.contains(&file_of_model) && is_there(&source, &file_of_model).await?;
        if !is_there {
            tracing::info!(path = file_of_model.path, size, "model.push");
            send(&source, &file_of_model, file, &local).await?;
            sent += size;
        }
        files.push(file_of_model);
    }
    let manifest = ModelFiles::of(files);
    let bytes = model_files::encode(&manifest).map_err(model_files::ModelFilesError::from)?;
    let stored = |source| ModelCacheError::Store { url: url.to_owned(), source };
    let objects = source.store().objects();
    objects.put(&source.key(model_files::NAME), PutPayload::from(bytes)).await.map_err(stored)?;
    Ok(Pushed { files: manifest.files, sent })
}

/// Whether there is an object of the file's size.
async fn is_there(source: &Source, file: &ModelFile) -> Result<bool, ModelCacheError> {
    match source.store().objects().head(&source.key(&file.path)).await {
        Ok(found) => Ok(found.size == file.size),
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(source) => Err(ModelCacheError::Send { path: file.path.clone(), source }),
    }
}

async fn send(source: &Source, file: &ModelFile, content: File, local: &Path) -> Result<(), ModelCacheError> {
    let key = source.key(&file.path);
    let failed = |source| ModelCacheError::Send { path: file.path.clone(), source };
    let objects = source.store().objects();
    let content = Arc::new(content);
    let read = async |start: u64| {
        let content = Arc::clone(&content);
        let length = PART_BYTES.min(usize::try_from(file.size - start).unwrap_or(PART_BYTES));
        let read = blocking(move || {
            let mut part = vec![0; length];
            content.read_exact_at(&mut part, start)?;
            Ok(Bytes::from(part))
        });
        read.await.map_err(|error| ModelCacheError::file(local, error))
    };
    if file.size <= PART_BYTES as u64 {
        objects.put(&key, PutPayload::from_bytes(read(0).await?)).await.map_err(failed)?;
        return Ok(());
    }
    let upload = objects.put_multipart(&key).await.map_err(failed)?;
    let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
    for start in (0..file.size).step_by(PART_BYTES) {
        upload.wait_for_capacity(PARTS_AT_ONCE).await.map_err(failed)?;
        let part = read(start).await?;
        upload.put(part);
    }
    upload.finish().await.map_err(failed)?;
    Ok(())
}

/// The files that make a model, by their paths below its directory.
fn files_below(directory: &Path) -> io::Result<Vec<String>> {
    let (mut found, mut open) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(below) = open.pop() {
        for entry in std::fs::read_dir(directory.join(&below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            // Links count as what they lead to: so are models kept that were fetched from hubs.
            if directory.join(&path).is_dir() {
                open.push(path);
                continue;
            }
            let Some(text) = path.to_str() else { continue };
            if is_path_below(text) && is_wanted(text) && text != model_files::NAME {
                found.push(text.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

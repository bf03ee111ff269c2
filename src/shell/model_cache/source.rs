//! A model as the object store has it: its files, what identifies their bytes, and requests for parts of them.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{GetOptions, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt as _};
use sha2::{Digest as _, Sha256};

use crate::wire::model_files::{self, ModelFiles, is_path_below};
use crate::wire::request::hexadecimal;

use super::super::config::StoreOptions;
use super::super::store::{self, Store};
use super::ModelCacheError;
use super::policy::is_wanted;

/// Questions of which file is what that are asked at the same time.
const ASKED_AT_ONCE: usize = 16;

/// What a model in the store is now.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    /// Its directory's name, which may be the model's.
    pub(super) name: String,
    pub(super) url: String,
    /// In the order of their paths.
    pub(super) files: Vec<RemoteFile>,
    /// The same for the same files, another one for any others.
    pub(super) version: String,
}

/// One file of it.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) e_tag: Option<String>,
    /// As the manifest says, if there is one.
    pub(super) sha256: Option<String>,
}

/// The place of a model in a store.
#[derive(Clone, Debug)]
pub(super) struct Source {
    store: Store,
    url: String,
    name: String,
}

impl Source {
    pub(super) fn open(url: &str) -> Result<Self, ModelCacheError> {
        // Nothing is signed for anybody.
        let options = StoreOptions { store: url.to_owned(), url_expires: Duration::ZERO };
        let path = store::local_path(url);
        if path.is_some_and(|path| !path.is_dir()) {
            // Opening would make it.
            return Err(ModelCacheError::NoModel { url: url.to_owned() });
        }
        let store = store::open(&options)?;
        let trimmed = url.trim_end_matches('/');
        let name = trimmed.rsplit('/').next().unwrap_or(trimmed);
        // As a directory's name on this machine.
        let name = if is_path_below(name) { name.to_owned() } else { "model".to_owned() };
        Ok(Self { url: trimmed.to_owned(), store, name })
    }

    fn objects(&self) -> &Arc<dyn ObjectStore> {
        self.store.objects()
    }

    pub(super) fn key(&self, path: &str) -> Path {
        self.store.path(path)
    }

    /// The manifest, if there is one.
    pub(super) async fn manifest(&self) -> Result<Option<ModelFiles>, ModelCacheError> {
        let listed = |source| ModelCacheError::Store { url: self.url.clone(), source };
        match self.objects().get(&self.key(model_files::NAME)).await {
            Ok(found) => {
                let bytes = found.bytes().await.map_err(listed)?;
                Ok(Some(model_files::decode(&bytes)?))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(listed(error)),
        }
    }

    /// All objects that can be files of the model, by their path below it.
    async fn listed(&self) -> Result<Vec<(String, ObjectMeta)>, ModelCacheError> {
        let prefix = self.key("");
        let failed = |source| ModelCacheError::Store { url: self.url.clone(), source };
        let found: Vec<ObjectMeta> = self.objects().list(Some(&prefix)).try_collect().await.map_err(failed)?;
        let below = |meta: ObjectMeta| {
            let path = meta.location.prefix_match(&prefix)?.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>();
            let path = path.join("/");
            is_path_below(&path).then_some((path, meta))
        };
        Ok(found.into_iter().filter_map(below).collect())
    }

    /// What the model is now.
    pub(super) async fn look(&self) -> Result<Remote, ModelCacheError> {
        let (manifest, listed) = futures_util::try_join!(self.manifest(), self.listed())?;
        let mut chosen: Vec<(String, ObjectMeta, Option<String>)> = Vec::new();
        match &manifest {
            Some(manifest) => {
                for file in &manifest.files {
                    let lies = |found| ModelCacheError::ManifestLies {
                        url: self.url.clone(),
                        path: file.path.clone(),
                        expected: format!("{} bytes", file.size),
                        found,
                    };
                    let found = listed.iter().find(|(path, _)| *path == file.path);
                    let (path, meta) = found.ok_or_else(|| lies("no such object".to_owned()))?;
                    if meta.size != file.size {
                        return Err(lies(format!("{} bytes", meta.size)));
                    }
                    chosen.push((path.clone(), meta.clone(), Some(file.sha256.clone())));
                }
            }
            None => {
                let wanted = listed.into_iter().filter(|(path, _)| is_wanted(path) && path != model_files::NAME);
                chosen.extend(wanted.map(|(path, meta)| (path, meta, None)));
            }
        }
        if !chosen.iter().any(|(path, ..)| path == "model_index.json") {
            return Err(ModelCacheError::NoModel { url: self.url.clone() });
        }
        chosen.sort_by(|(one, ..), (other, ..)| one.cmp(other));
        // Some stores tell the ETag only of one object at a time, or in lists not as it is in conditions.
        let is_quoted = |meta: &ObjectMeta| meta.e_tag.as_ref().is_some_and(|tag| tag.ends_with('"'));
        let told = futures_util::stream::iter(chosen).map(async |(path, meta, sha256)| {
            let meta = if is_quoted(&meta) { meta } else { self.objects().head(&meta.location).await? };
            Ok((path, meta, sha256))
        });
        let told: Result<Vec<_>, object_store::Error> = told.buffered(ASKED_AT_ONCE).try_collect().await;
        let told = told.map_err(|source| ModelCacheError::Store { url: self.url.clone(), source })?;

        let mut hasher = Sha256::new();
        let mut hash = |text: &str| {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        };
        hash(&self.name);
        // With digests the content says it all; without them, what the store calls its objects means something only there.
        hash(if manifest.is_some() { "" } else { &self.url });
        let mut files = Vec::new();
        for (path, meta, sha256) in told {
            hash(&path);
            hash(&meta.size.to_string());
            match (&sha256, &meta.e_tag) {
                (Some(sha256), _) => hash(sha256),
                (None, Some(e_tag)) => hash(e_tag),
                (None, None) => hash(&meta.last_modified.to_rfc3339()),
            }
            files.push(RemoteFile { path, size: meta.size, e_tag: meta.e_tag, sha256 });
        }
        let version = hexadecimal(&hasher.finalize());
        Ok(Remote { name: self.name.clone(), url: self.url.clone(), files, version })
    }

    /// Asks for a part of a file, of the very bytes that were looked at.
    pub(super) async fn part(&self, file: &RemoteFile, range: Range<u64>) -> Result<GetResultPayload, PartError> {
        let options =
            GetOptions { if_match: file.e_tag.clone(), range: Some(range.clone().into()), ..GetOptions::default() };
        let found = self.objects().get_opts(&self.key(&file.path), options).await?;
        // Servers that know no conditions say at least what they sent.
        let is_same = file.e_tag.is_none() || found.meta.e_tag.is_none() || found.meta.e_tag == file.e_tag;
        if !is_same || found.meta.size != file.size || found.range != range {
            return Err(PartError::Replaced);
        }
        Ok(found.payload)
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }
}

/// Why a part did not come.
#[derive(Debug)]
pub(super) enum PartError {
    /// The object has other bytes than those that were looked at.
    Replaced,
    /// The store's word.
    Store(object_store::Error),
}

impl From<object_store::Error> for PartError {
    fn from(error: object_store::Error) -> Self {
        let is_replaced =
            matches!(error, object_store::Error::Precondition { .. } | object_store::Error::NotFound { .. });
        if is_replaced { Self::Replaced } else { Self::Store(error) }
    }
}

//! Models of the object store become directories of this machine: fetched once for all workers of a node, checked, kept
//! as long as there is room.
//!
//! A version of a model is known by what its files are. It is fetched by one process at a time into a place of its own and
//! moved to where it is looked for when it is whole and its digests are right, so whoever is killed leaves nothing behind
//! that anybody would take for a model. Files in the cache are looked at again where they changed, and once after every
//! start of the machine. What a model is good for is not known here.

mod extents;
mod fetching;
mod hashing;
mod journal;
mod layout;
mod policy;
mod push;
mod source;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytesize::ByteSize;
use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use crate::sched::Mono;
use crate::wire::model_files::ModelFilesError;

use super::clock::Clock;
use super::config::{ModelOptions, ModelSource, user_cache};
use super::store::StoreError;

use fetching::blocking;
use hashing::FileDigests;
use layout::{Entry, Layout, Plan, PlannedFile, Stamp, Verified, VerifiedFile};
use policy::{Kept, Need, NoRoom};
use source::{Remote, RemoteFile, Source};

pub use push::{Pushed, ToSend, push};

/// How often a model may change while it is fetched.
const LOOKS_MAX: u32 = 3;

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
pub enum ModelCacheError {
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] StoreError),
    /// The store does not answer, or refuses.
    #[error("the store of the model {url} cannot be asked")]
    Store {
        /// Of the model.
        url: String,
        /// The store's word.
        #[source]
        source: object_store::Error,
    },
    /// Nothing there that could be a model.
    #[error("there is no model at {url}: it has no model_index.json")]
    NoModel {
        /// Where.
        url: String,
    },
    /// The model's manifest is none.
    #[error(transparent)]
    Manifest(#[from] ModelFilesError),
    /// The manifest says of an object what is not so.
    #[error(
        "{url}: the manifest says {expected} of {path}, the store has {found}; put the model there again with `darkroom models push --all`"
    )]
    ManifestLies {
        /// Of the model.
        url: String,
        /// Of the file.
        path: String,
        /// What the manifest says.
        expected: String,
        /// What there is.
        found: String,
    },
    /// A part of a file did not come.
    #[error("{path} cannot be fetched")]
    Fetch {
        /// Of the file.
        path: String,
        /// The store's word.
        #[source]
        source: object_store::Error,
    },
    /// A file could not be put into the store.
    #[error("{path} cannot be stored")]
    Send {
        /// Of the file.
        path: String,
        /// The store's word.
        #[source]
        source: object_store::Error,
    },
    /// An object is another one than it was a moment ago.
    #[error("{path} is being replaced in the store, again and again; put new versions of models under new names")]
    Replaced {
        /// Of the file.
        path: String,
    },
    /// What was fetched twice is not what it should be.
    #[error(
        "{path} was fetched twice and has the digest {found}, not {expected}; put the model there again with `darkroom models push --all`"
    )]
    Digest {
        /// Of the file.
        path: String,
        /// As the manifest says, or as it was before.
        expected: String,
        /// As it is.
        found: String,
    },
    /// The cache may not become so large.
    #[error(
        "the model has {}, more than the {} that the cache may have (--model-cache-max)",
        ByteSize::b(*needed),
        ByteSize::b(*allowed)
    )]
    Limit {
        /// By the model.
        needed: u64,
        /// In all.
        allowed: u64,
    },
    /// The others are in use.
    #[error(
        "the model needs {}, and models in use have {} of the {} that the cache may have (--model-cache-max)",
        ByteSize::b(*needed),
        ByteSize::b(*in_use),
        ByteSize::b(*allowed)
    )]
    InUse {
        /// By the model.
        needed: u64,
        /// By others, which cannot go.
        in_use: u64,
        /// In all.
        allowed: u64,
    },
    /// The disk is full.
    #[error("the disk of {} has too little left for the model: {needed}", directory.display())]
    DiskFull {
        /// The cache, or the file.
        directory: PathBuf,
        /// What is missing.
        needed: String,
    },
    /// Something else about a file.
    #[error("{} cannot be used", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no home directory and no cache.
    #[error("there is no place for models: give --model-cache a directory")]
    NoPlace,
    /// A mistake of this program; the message is on standard error.
    #[error("fetching the model panicked")]
    Panicked,
}

impl ModelCacheError {
    fn file(path: &Path, source: io::Error) -> Self {
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Self::DiskFull { directory: path.to_owned(), needed: source.to_string() };
        }
        Self::File { path: path.to_owned(), source }
    }
}

/// A model that is on this machine, and stays there as long as this value.
#[derive(Debug)]
pub struct Present {
    /// The diffusers directory.
    pub directory: PathBuf,
    /// What bringing it took; nothing was to be brought where it is absent.
    pub fetched: Option<Fetched>,
    /// What is known of its files, so that nobody need read them for that: by path, SHA-256 of each piece of
    /// [`Self::PIECE_BYTES`] in hexadecimal digits.
    pub pieces: BTreeMap<String, Vec<String>>,
    in_use: Option<InUse>,
}

/// Keeps a version in the cache.
#[derive(Debug)]
struct InUse {
    entry: Entry,
    _lock: File,
}

impl Drop for InUse {
    fn drop(&mut self) {
        // Who is killed says nothing; then the beginning of its use counts.
        if let Err(error) = self.entry.touch() {
            tracing::warn!(%error, "model.touch");
        }
    }
}

/// What bringing a model took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// From the wish to the last file, whoever fetched it.
    pub took: Duration,
    /// When it was there.
    pub at_unix_ms: i64,
    /// Bytes that this process has received.
    pub bytes: u64,
    /// Bytes that another one had received before it ended.
    pub resumed_bytes: u64,
}

/// A model that is here or on its way.
#[derive(Clone, Debug)]
pub struct Coming(Arc<OnceLock<Result<Present, Arc<ModelCacheError>>>>);

impl Present {
    /// All pieces of a file but the last have as many.
    pub const PIECE_BYTES: u64 = hashing::PIECE_BYTES;

    fn of_directory(directory: PathBuf) -> Self {
        Self { directory, fetched: None, pieces: BTreeMap::new(), in_use: None }
    }

    /// Whether it is of the cache.
    pub fn is_cached(&self) -> bool {
        self.in_use.is_some()
    }
}

impl Coming {
    /// Waits for it. The thread is blocked meanwhile.
    ///
    /// # Errors
    /// Why it does not come.
    pub fn wait(&self) -> Result<&Present, Arc<ModelCacheError>> {
        self.0.wait().as_ref().map_err(Arc::clone)
    }

    /// What bringing it took, when it is there.
    pub fn fetched(&self) -> Option<Fetched> {
        self.0.get()?.as_ref().ok()?.fetched
    }
}

/// Begins to bring the model of the options, on a task of its own.
///
/// # Errors
/// `NoPlace`.
pub fn start(options: &ModelOptions, clock: Clock) -> Result<Coming, ModelCacheError> {
    let coming = Coming(Arc::default());
    let url = match &options.model {
        ModelSource::Directory(directory) => {
            let _ = coming.0.set(Ok(Present::of_directory(directory.clone())));
            return Ok(coming);
        }
        ModelSource::Url(url) => url.clone(),
    };
    let cache = ModelCache::new(options)?;
    let promise = coming.clone();
    tokio::spawn(async move {
        let began = clock.now();
        let brought = tokio::spawn(async move { cache.bring(&url, clock, began).await }).await;
        let brought = brought.unwrap_or(Err(ModelCacheError::Panicked));
        let _ = promise.0.set(brought.map_err(Arc::new));
    });
    Ok(coming)
}

/// The cache of one machine.
#[derive(Clone, Debug)]
pub struct ModelCache {
    directory: PathBuf,
    bytes_max: Option<u64>,
}

impl ModelCache {
    /// The cache that the options name. Nothing is done yet.
    ///
    /// # Errors
    /// `NoPlace` when they name none and there is no home directory.
    pub fn new(options: &ModelOptions) -> Result<Self, ModelCacheError> {
        let of_user = || Some(user_cache()?.join("models"));
        let directory = options.model_cache.clone().or_else(of_user).ok_or(ModelCacheError::NoPlace)?;
        Ok(Self { directory, bytes_max: options.model_cache_max })
    }

    /// Brings the model at `url` here, as it is there now. `began` is when it was first wanted.
    ///
    /// # Errors
    /// [`ModelCacheError`].
    pub async fn bring(&self, url: &str, clock: Clock, began: Mono) -> Result<Present, ModelCacheError> {
        let layout = Layout::open(&self.directory).map_err(|error| ModelCacheError::file(&self.directory, error))?;
        let source = Source::open(url)?;
        let mut looks = 0;
        loop {
            let remote = source.look().await?;
            looks += 1;
            match self.bring_version(&layout, &source, &remote).await {
                Err(ModelCacheError::Replaced { path }) if looks < LOOKS_MAX => {
                    tracing::warn!(url, path, "model.replaced");
                }
                outcome => {
                    let (present, bytes, resumed_bytes) = outcome?;
                    let took = clock.now().since(began);
                    let fetched = Fetched { took, at_unix_ms: clock.unix_ms(), bytes, resumed_bytes };
                    tracing::info!(url, fetch_ms = took.as_millis(), bytes, resumed_bytes, "model.present");
                    return Ok(Present { fetched: Some(fetched), ..present });
                }
            }
        }
    }

    async fn bring_version(
        &self,
        layout: &Layout,
        source: &Source,
        remote: &Remote,
    ) -> Result<(Present, u64, u64), ModelCacheError> {
        let entry = layout.entry(&remote.version, &remote.name);
        let failed = |error| ModelCacheError::file(layout.root(), error);
        let in_use = entry.lock_for_use().await.map_err(failed)?;
        let waiting = || tracing::info!(url = remote.url, "model.waiting: another process fetches or checks it");
        let alone = entry.lock_to_fetch(waiting).await.map_err(failed)?;
        let mut verified = entry.verified();
        let wanted = check(&entry, remote, &mut verified).await?;
        self.make_room(layout, &entry, remote, &wanted).await?;
        let (mut bytes, mut resumed) = (0, 0);
        if wanted.is_empty() {
            entry.write_verified(&verified).map_err(failed)?;
        } else {
            (bytes, resumed) = fetch(source, &entry, remote, &wanted, &mut verified).await?;
        }
        entry.touch().map_err(failed)?;
        drop(alone);
        let directory = entry.model();
        let of_version =
            |file: &RemoteFile| Some((file.path.clone(), verified.files.get(&file.path)?.digests.pieces.clone()));
        let pieces = remote.files.iter().filter_map(of_version).collect();
        let in_use = Some(InUse { entry, _lock: in_use });
        Ok((Present { directory, fetched: None, pieces, in_use }, bytes, resumed))
    }

    /// Evicts what must go for this version, and takes the room for the files that are wanted of it.
    async fn make_room(
        &self,
        layout: &Layout,
        entry: &Entry,
        remote: &Remote,
        wanted: &[usize],
    ) -> Result<(), ModelCacheError> {
        if wanted.is_empty() && self.bytes_max.is_none() {
            return Ok(());
        }
        let failed = |error| ModelCacheError::file(layout.root(), error);
        let _turn = layout.lock().await.map_err(failed)?;
        let emptying = layout.clone();
        blocking(move || emptying.empty_trash()).await.map_err(failed)?;
        let (mut kept, mut versions) = (Vec::new(), Vec::new());
        for (version, bytes, used_unix_ms) in layout.versions().map_err(failed)? {
            if version != remote.version {
                // Held until it is decided: nobody begins to use what is evicted.
                let alone = layout.try_alone(&version).map_err(failed)?;
                kept.push(Kept { bytes, used_unix_ms, is_in_use: alone.is_none() });
                versions.push((version, alone));
            }
        }
        let disk = statvfs(layout.root()).map_err(|error| failed(error.into()))?;
        let on_disk = |index: &usize| {
            let there = std::fs::metadata(entry.partial().join(&remote.files[*index].path));
            remote.files[*index].size.saturating_sub(there.map_or(0, |there| there.blocks() * 512))
        };
        let need = Need {
            bytes: remote.files.iter().map(|file| file.size).sum(),
            bytes_on_disk: wanted.iter().map(on_disk).sum(),
            bytes_max: self.bytes_max,
            disk_free: disk.f_bavail * disk.f_frsize,
        };
        let gone = match policy::evicted(&kept, &need) {
            Ok(gone) => gone,
            // Over the limit with what is there already: it is used as it is.
            Err(_) if wanted.is_empty() => Vec::new(),
            Err(why) => return Err(self.no_room(layout, &need, why)),
        };
        for index in gone {
            let (version, Some(alone)) = &mut versions[index] else { continue };
            tracing::info!(version, bytes = kept[index].bytes, "model.evicted");
            let (layout, version) = (layout.clone(), version.clone());
            let alone = alone.try_clone().map_err(failed)?;
            blocking(move || layout.remove(&version, &alone)).await.map_err(failed)?;
        }
        if !wanted.is_empty() {
            reserve(entry, remote, wanted).await?;
        }
        Ok(())
    }

    fn no_room(&self, layout: &Layout, need: &Need, why: NoRoom) -> ModelCacheError {
        let allowed = self.bytes_max.unwrap_or(u64::MAX);
        match why {
            NoRoom::Limit => ModelCacheError::Limit { needed: need.bytes, allowed },
            NoRoom::InUse { bytes } => ModelCacheError::InUse { needed: need.bytes, in_use: bytes, allowed },
            NoRoom::Disk { bytes } => ModelCacheError::DiskFull {
                directory: layout.root().to_owned(),
                needed: format!("{} are needed, {} are free", ByteSize::b(need.bytes_on_disk), ByteSize::b(bytes)),
            },
        }
    }
}

/// Writes down what will be there, and takes the room for it on the disk, so that a full one is noticed before anything is
/// fetched.
async fn reserve(entry: &Entry, remote: &Remote, wanted: &[usize]) -> Result<(), ModelCacheError> {
    let files = remote.files.iter();
    let planned =
        |file: &RemoteFile| PlannedFile { path: file.path.clone(), size: file.size, e_tag: file.e_tag.clone() };
    let plan = Plan { url: remote.url.clone(), files: files.map(planned).collect() };
    let before = entry.plan();
    let failed = |error| ModelCacheError::file(&entry.directory(), error);
    entry.write_plan(&plan).map_err(failed)?;
    if let Some(before) = before {
        // The parts of a file must all be of the same object.
        let is_other = |index: &&usize| before.files.get(**index) != plan.files.get(**index);
        let others: Vec<usize> = wanted.iter().filter(is_other).copied().collect();
        fetching::forget(entry, &others).map_err(failed)?;
    }
    let files: Vec<_> = wanted.iter().map(|index| &remote.files[*index]).collect();
    let places: Vec<(PathBuf, u64)> =
        files.iter().map(|file| (entry.partial().join(&file.path), file.size)).filter(|(_, size)| *size > 0).collect();
    let partial = entry.partial();
    let reserved = blocking(move || {
        for (path, size) in &places {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            let file = File::options().create(true).write(true).truncate(false).open(path)?;
            match fallocate(&file, FallocateFlags::empty(), 0, *size) {
                // Not every file system can promise.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    });
    reserved.await.map_err(|error| ModelCacheError::file(&partial, error))
}

/// Which files of a version are not there as they should be. Those that may have changed are read.
async fn check(entry: &Entry, remote: &Remote, verified: &mut Verified) -> Result<Vec<usize>, ModelCacheError> {
    let boot = layout::boot();
    let is_same_boot = verified.boot == boot;
    verified.boot = boot;
    let model = entry.model();
    if !model.exists() {
        return Ok((0..remote.files.len()).collect());
    }
    let (mut wanted, mut unsure) = (Vec::new(), Vec::new());
    for (index, file) in remote.files.iter().enumerate() {
        let path = model.join(&file.path);
        let known = verified.files.get(&file.path);
        let expected = file.sha256.clone().or_else(|| Some(known?.digests.sha256.clone()));
        match (Stamp::of(&path), expected) {
            (Ok(stamp), Some(expected)) => {
                let is_known = known.is_some_and(|was| was.stamp == stamp && was.digests.sha256 == expected);
                if !is_same_boot || !is_known {
                    unsure.push((index, path, expected, stamp));
                }
            }
            // Nobody knows what it should be, or it is not there.
            (Ok(_) | Err(_), _) => wanted.push(index),
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let looked = futures_util::stream::iter(unsure).map(|(index, path, expected, stamp)| async move {
        let read = path.clone();
        let digests = blocking(move || hashing::digests_of(&read)).await;
        let digests = digests.map_err(|error| ModelCacheError::file(&path, error))?;
        Ok::<_, ModelCacheError>((index, expected, VerifiedFile { digests, stamp }))
    });
    let looked: Vec<_> = looked.buffer_unordered(cores).try_collect().await?;
    for (index, expected, is) in looked {
        let path = &remote.files[index].path;
        if is.digests.sha256 == expected {
            verified.files.insert(path.clone(), is);
        } else {
            tracing::warn!(url = remote.url, path, digest = is.digests.sha256, expected, "model.damaged");
            wanted.push(index);
        }
    }
    wanted.sort_unstable();
    Ok(wanted)
}

/// Fetches files, checks them, and moves them to the model. What is wrong is fetched once more.
async fn fetch(
    source: &Source,
    entry: &Entry,
    remote: &Remote,
    wanted: &[usize],
    verified: &mut Verified,
) -> Result<(u64, u64), ModelCacheError> {
    let failed = |error| ModelCacheError::file(&entry.directory(), error);
    let mut digests = BTreeMap::new();
    let (mut bytes, mut resumed) = (0, 0);
    let mut to_fetch = wanted.to_vec();
    for is_last in [false, true] {
        let brought = fetching::fetch(source, remote, entry, &to_fetch).await?;
        bytes += brought.fetched;
        if !is_last {
            resumed = brought.resumed;
        }
        let expected_of = |index: usize| {
            let file = &remote.files[index];
            file.sha256.as_ref().or_else(|| Some(&verified.files.get(&file.path)?.digests.sha256)).cloned()
        };
        let wrong_one = |(index, found): (&usize, &FileDigests)| {
            let is_wrong = expected_of(*index).is_some_and(|expected| expected != found.sha256);
            is_wrong.then(|| (*index, found.sha256.clone()))
        };
        let wrong: Vec<(usize, String)> = brought.digests.iter().filter_map(wrong_one).collect();
        digests.extend(brought.digests);
        to_fetch = wrong.iter().map(|(index, _)| *index).collect();
        // So that whoever comes next does not believe it either.
        fetching::forget(entry, &to_fetch).map_err(failed)?;
        let Some((index, found)) = wrong.into_iter().next() else { break };
        let path = remote.files[index].path.clone();
        let expected = expected_of(index).unwrap_or_default();
        if is_last {
            return Err(ModelCacheError::Digest { path, expected, found });
        }
        tracing::warn!(url = remote.url, path, expected, found, "model.wrong_digest");
    }
    let mut paths = Vec::new();
    for (index, digests) in digests {
        let path = remote.files[index].path.clone();
        let stamp = Stamp::of(&entry.partial().join(&path)).map_err(failed)?;
        verified.files.insert(path.clone(), VerifiedFile { digests, stamp });
        paths.push(path);
    }
    // First what is known of them, then they themselves: a file of which nothing is known is fetched again.
    entry.write_verified(verified).map_err(failed)?;
    entry.publish(&paths).map_err(failed)?;
    Ok((bytes, resumed))
}

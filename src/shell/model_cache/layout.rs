//! Where things are in the cache, and the locks that say who may touch them.
//!
//! ```text
//! DIR/cache.lock                 exclusive, for a moment: who makes room
//! DIR/locks/<version>.use        shared by who uses or fetches a version, exclusive for who removes it
//! DIR/locks/<version>.fetch      exclusive: who checks, fetches or mends a version
//! DIR/<version>/plan.json        which files it has; counts against the cache's limit from then on
//! DIR/<version>/partial/<name>/  files that are being fetched
//! DIR/<version>/journal          which of their bytes are there
//! DIR/<version>/verified.json    digests of the files, and what they looked like when these were checked
//! DIR/<version>/model/<name>/    the model, whole
//! DIR/<version>/used             was touched when it was last used
//! DIR/trash/                     what is being removed
//! ```
//!
//! Locks are of the kernel's `flock`: they end with the process that has them, however it ends. Lock files are never
//! removed, as somebody may wait for one.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::hashing::FileDigests;

/// Between two looks at a lock that somebody else has.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The cache's directory.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

/// The directory of one version of one model.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    root: PathBuf,
    version: String,
    name: String,
}

/// The files of a version, as they were told when it was first wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Where they are from; for people.
    pub(super) url: String,
    /// In the order of their paths.
    pub(super) files: Vec<PlannedFile>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PlannedFile {
    pub(super) path: String,
    pub(super) size: u64,
    /// What the store calls these very bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) e_tag: Option<String>,
}

/// The digests of a version's files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Verified {
    /// When it was: what the disk of a machine holds that was started anew is looked at once more.
    pub(super) boot: String,
    /// By path.
    pub(super) files: BTreeMap<String, VerifiedFile>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VerifiedFile {
    #[serde(flatten)]
    pub(super) digests: FileDigests,
    pub(super) stamp: Stamp,
}

/// What changes when a file is written to, or replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Stamp {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let found = std::fs::metadata(path)?;
        let ns = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Ok(Self {
            inode: found.ino(),
            size: found.size(),
            modified_ns: ns(found.mtime(), found.mtime_nsec()),
            changed_ns: ns(found.ctime(), found.ctime_nsec()),
        })
    }
}

/// Tells one start of this machine from another; empty where the system does not say.
pub(super) fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl Layout {
    /// Makes what is always there.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(root.join("locks"))?;
        std::fs::create_dir_all(root.join("trash"))?;
        Ok(Self { root: root.canonicalize()? })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn entry(&self, version: &str, name: &str) -> Entry {
        Entry { root: self.root.clone(), version: version.to_owned(), name: name.to_owned() }
    }

    /// Waits for the turn to make room.
    pub(super) async fn lock(&self) -> io::Result<File> {
        exclusive(&self.root.join("cache.lock")).await
    }

    /// Every version that has a directory, with the bytes of its plan and when it was last used.
    pub(super) fn versions(&self) -> io::Result<Vec<(String, u64, i64)>> {
        let mut found = Vec::new();
        for directory in std::fs::read_dir(&self.root)? {
            let directory = directory?;
            let version = directory.file_name().to_string_lossy().into_owned();
            if !is_version(&version) {
                continue;
            }
            let entry = self.entry(&version, "");
            // Without a plan nothing was fetched.
            let bytes = entry
                .plan()
                .map_or(0, |plan| plan.files.iter().fold(0, |sum: u64, file| sum.saturating_add(file.size)));
            let used = std::fs::metadata(entry.used_path()).or_else(|_| directory.metadata());
            let used_unix_ms = used.map_or(0, |used| used.mtime() * 1000 + used.mtime_nsec() / 1_000_000);
            found.push((version, bytes, used_unix_ms));
        }
        found.sort();
        Ok(found)
    }

    /// The right to remove a version, if nobody uses it. It lasts as long as the value.
    pub(super) fn try_alone(&self, version: &str) -> io::Result<Option<File>> {
        let file = lock_file(&self.use_lock(version))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Removes a version, all at once as others see it.
    pub(super) fn remove(&self, version: &str, _alone: &File) -> io::Result<()> {
        std::fs::rename(self.root.join(version), self.root.join("trash").join(version))?;
        self.empty_trash()
    }

    /// Removes what somebody was removing when he was killed. For who has the cache's lock.
    pub(super) fn empty_trash(&self) -> io::Result<()> {
        for left in std::fs::read_dir(self.root.join("trash"))? {
            std::fs::remove_dir_all(left?.path())?;
        }
        Ok(())
    }

    fn use_lock(&self, version: &str) -> PathBuf {
        self.root.join("locks").join(format!("{version}.use"))
    }
}

/// SHA-256 in hexadecimal digits, as [`super::source::Remote`] makes it.
fn is_version(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Entry {
    pub(super) fn directory(&self) -> PathBuf {
        self.root.join(&self.version)
    }

    /// Where the model is when it is whole.
    pub(super) fn model(&self) -> PathBuf {
        self.directory().join("model").join(&self.name)
    }

    /// Where its files are until then.
    pub(super) fn partial(&self) -> PathBuf {
        self.directory().join("partial").join(&self.name)
    }

    pub(super) fn journal_path(&self) -> PathBuf {
        self.directory().join("journal")
    }

    fn used_path(&self) -> PathBuf {
        self.directory().join("used")
    }

    /// Keeps it from being removed while the value lives. Waits while somebody removes it.
    pub(super) async fn lock_for_use(&self) -> io::Result<File> {
        let path = self.root.join("locks").join(format!("{}.use", self.version));
        let file = lock_file(&path)?;
        wait(|| file.try_lock_shared()).await?;
        Ok(file)
    }

    /// The right to check and to fetch it; `waiting` is called once if somebody else has it.
    pub(super) async fn lock_to_fetch(&self, waiting: impl FnOnce()) -> io::Result<File> {
        let path = self.root.join("locks").join(format!("{}.fetch", self.version));
        let file = lock_file(&path)?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => waiting(),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        wait(|| file.try_lock()).await?;
        Ok(file)
    }

    pub(super) fn plan(&self) -> Option<Plan> {
        serde_json::from_slice(&std::fs::read(self.directory().join("plan.json")).ok()?).ok()
    }

    pub(super) fn write_plan(&self, plan: &Plan) -> io::Result<()> {
        std::fs::create_dir_all(self.directory())?;
        write_whole(&self.directory().join("plan.json"), &serde_json::to_vec_pretty(plan)?)
    }

    /// What was checked of its files; nothing where that is not known.
    pub(super) fn verified(&self) -> Verified {
        let read = || serde_json::from_slice(&std::fs::read(self.directory().join("verified.json")).ok()?).ok();
        read().unwrap_or_default()
    }

    pub(super) fn write_verified(&self, verified: &Verified) -> io::Result<()> {
        write_whole(&self.directory().join("verified.json"), &serde_json::to_vec_pretty(verified)?)
    }

    /// Says that it was used now.
    pub(super) fn touch(&self) -> io::Result<()> {
        // Others may do the same at the same time.
        std::fs::write(self.used_path(), b"\n")
    }

    /// Moves what was fetched to where it is looked for: the whole model, or files of one that is there.
    pub(super) fn publish(&self, files: &[String]) -> io::Result<()> {
        let (model, partial) = (self.directory().join("model"), self.directory().join("partial"));
        if model.exists() {
            for file in files {
                let to = self.model().join(file);
                if let Some(parent) = to.parent() {
                    std::fs::create_dir_all(parent)?;
                }
                std::fs::rename(self.partial().join(file), to)?;
            }
            std::fs::remove_dir_all(partial)?;
        } else {
            std::fs::rename(partial, &model)?;
        }
        remove_if_there(&self.journal_path())?;
        sync_directory(&self.directory())
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The old content or the new one, whatever happens.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("draft");
    let mut file = File::create(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(draft, path)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn lock_file(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

async fn exclusive(path: &Path) -> io::Result<File> {
    let file = lock_file(path)?;
    wait(|| file.try_lock()).await?;
    Ok(file)
}

/// Looks again and again: waiting in the kernel could not be given up.
async fn wait(mut lock: impl FnMut() -> Result<(), TryLockError>) -> io::Result<()> {
    loop {
        match lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOOK_EVERY).await,
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn plan(size: u64) -> Plan {
        Plan { url: "s3://x/y".into(), files: vec![PlannedFile { path: "a".into(), size, e_tag: None }] }
    }

    #[tokio::test]
    async fn a_version_in_use_cannot_be_removed_and_one_that_is_removed_can_be_used_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::open(directory.path()).unwrap();
        let entry = layout.entry(&version('a'), "m");
        let user = entry.lock_for_use().await.unwrap();
        entry.write_plan(&plan(3)).unwrap();
        let other = entry.lock_for_use().await.unwrap();
        assert!(layout.try_alone(&version('a')).unwrap().is_none());
        drop(user);
        assert!(layout.try_alone(&version('a')).unwrap().is_none());
        drop(other);
        let alone = layout.try_alone(&version('a')).unwrap().unwrap();
        layout.remove(&version('a'), &alone).unwrap();
        assert!(layout.versions().unwrap().is_empty());
        let waits = tokio::time::timeout(LOOK_EVERY * 5, entry.lock_for_use()).await;
        assert!(waits.is_err(), "it is used while it is removed");
        drop(alone);
        entry.lock_for_use().await.unwrap();
    }

    #[test]
    fn versions_are_known_with_their_bytes_and_the_order_in_which_they_were_used() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::open(directory.path()).unwrap();
        for (digit, size) in [('a', 3), ('b', 5)] {
            layout.entry(&version(digit), "m").write_plan(&plan(size)).unwrap();
            layout.entry(&version(digit), "m").touch().unwrap();
        }
        let old = File::open(layout.entry(&version('b'), "m").used_path()).unwrap();
        let then = std::time::UNIX_EPOCH + Duration::from_secs(1000);
        old.set_times(std::fs::FileTimes::new().set_modified(then)).unwrap();
        let found = layout.versions().unwrap();
        let sizes: Vec<_> = found.iter().map(|(version, bytes, _)| (&version[..1], *bytes)).collect();
        assert_eq!(sizes, [("a", 3), ("b", 5)]);
        assert!(found[1].2 == 1_000_000 && found[0].2 > 1_000_000, "{found:?}");
    }

    #[test]
    fn a_file_that_was_written_to_has_another_stamp() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        std::fs::write(&path, b"12").unwrap();
        let before = Stamp::of(&path).unwrap();
        assert_eq!(Stamp::of(&path).unwrap(), before);
        let replaced = directory.path().join("b");
        std::fs::write(&replaced, b"12").unwrap();
        std::fs::rename(&replaced, &path).unwrap();
        assert_ne!(Stamp::of(&path).unwrap(), before);
    }
}

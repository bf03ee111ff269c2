//! Brings what is missing of a model's files: several requests at a time, each for a part, into files beside the model.
//!
//! What was written is in the journal, so that whoever comes next goes on from there. Digests follow the bytes, on threads
//! of their own. Nothing is decided here but when to ask again; whether a digest is right is the caller's to say.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use object_store::GetResultPayload;
use tokio::task::{JoinHandle, spawn_blocking};

use super::ModelCacheError;
use super::extents::Extents;
use super::hashing::{FileDigests, FileHasher};
use super::journal::{Journal, Record};
use super::layout::Entry;
use super::policy::{self, Missing, Part};
use super::source::{PartError, Remote, RemoteFile, Source};

/// What one request asks for.
const REQUEST_BYTES: u64 = 16 << 20;
/// Requests under way.
const REQUESTS_AT_ONCE: usize = 8;
/// What is in memory of each request before it is written. What was received of it is lost with the process.
const PIECE_BYTES: usize = 1 << 20;
/// Or when nothing comes for so long.
const LULL: Duration = Duration::from_millis(50);
/// How often in a row a request may break off with nothing received.
const BROKEN_OFF_MAX: u32 = 5;
/// The wait after the first of them; it doubles with each.
const PAUSE: Duration = Duration::from_millis(200);

/// What was brought.
#[derive(Clone, Debug, Default)]
pub(super) struct Brought {
    /// The digests of each file, by its index.
    pub(super) digests: BTreeMap<usize, FileDigests>,
    /// Received now.
    pub(super) fetched: u64,
    /// Received by whoever tried before.
    pub(super) resumed: u64,
}

/// A file in the making.
struct Work<'a> {
    index: u32,
    remote: &'a RemoteFile,
    file: Arc<File>,
    there: Mutex<Extents>,
    /// Tells the digest how far the file goes without a hole.
    follow: mpsc::Sender<u64>,
}

/// Brings the files of `wanted` and returns their digests.
pub(super) async fn fetch(
    source: &Source,
    remote: &Remote,
    entry: &Entry,
    wanted: &[usize],
) -> Result<Brought, ModelCacheError> {
    let journal_path = entry.journal_path();
    let failed = |error| ModelCacheError::file(&journal_path, error);
    let (journal, records) = Journal::open(&journal_path).map_err(failed)?;
    let journal = Arc::new(journal);
    let mut works = Vec::new();
    let mut digests = Vec::new();
    let mut brought = Brought::default();
    for &index in wanted {
        let file = &remote.files[index];
        let path = entry.partial().join(&file.path);
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        let pieces = pieces_of(&records, number);
        let size = file.size;
        let recovered = blocking(move || recover(&path, size, pieces)).await;
        let (opened, there) = recovered.map_err(|error| ModelCacheError::file(&entry.partial(), error))?;
        brought.resumed += there.bytes();
        let opened = Arc::new(opened);
        let (follow, contiguous) = mpsc::channel();
        let _ = follow.send(there.contiguous());
        digests.push((index, follow_digest(Arc::clone(&opened), size, contiguous)));
        works.push(Work { index: number, remote: file, file: opened, there: Mutex::new(there), follow });
    }
    let missing = works.iter().enumerate().map(|(file, work)| Missing {
        file,
        size: work.remote.size,
        holes: work.there.lock().unwrap_or_else(PoisonError::into_inner).holes(work.remote.size),
    });
    let parts = policy::requests(missing.collect(), REQUEST_BYTES);
    let bytes: u64 = parts.iter().map(|part| part.range.end - part.range.start).sum();
    tracing::info!(url = remote.url, bytes, resumed_bytes = brought.resumed, requests = parts.len(), "model.fetch");
    let (works_of, journal) = (&works, &journal);
    futures_util::stream::iter(parts)
        .map(|Part { file, range }| bring(source, &works_of[file], range, journal))
        .buffer_unordered(REQUESTS_AT_ONCE)
        .try_collect::<()>()
        .await?;
    brought.fetched = bytes;
    drop(works);
    for (index, digest) in digests {
        let path = entry.partial().join(&remote.files[index].path);
        let digest = digest.await.map_err(|_| ModelCacheError::Panicked)?;
        let digest = digest.map_err(|error| ModelCacheError::file(&path, error))?;
        brought.digests.insert(index, digest);
    }
    Ok(brought)
}

/// Writes down that what was fetched of a file is of no use.
pub(super) fn forget(entry: &Entry, files: &[usize]) -> io::Result<()> {
    let (journal, _) = Journal::open(&entry.journal_path())?;
    files
        .iter()
        .try_for_each(|&file| journal.append(&Record::Forgotten { file: u32::try_from(file).unwrap_or(u32::MAX) }))
}

/// What the journal says of a file.
fn pieces_of(records: &[Record], wanted: u32) -> Vec<(Range<u64>, u32)> {
    let mut pieces = Vec::new();
    for record in records {
        match record {
            Record::Written { file, range, checksum } if *file == wanted => pieces.push((range.clone(), *checksum)),
            Record::Forgotten { file } if *file == wanted => pieces.clear(),
            Record::Written { .. } | Record::Forgotten { .. } => {}
        }
    }
    pieces
}

/// Opens a file, and finds out what of it can be believed.
fn recover(path: &Path, size: u64, pieces: Vec<(Range<u64>, u32)>) -> io::Result<(File, Extents)> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let file = File::options().create(true).read(true).write(true).truncate(false).open(path)?;
    if file.metadata()?.len() != size {
        file.set_len(size)?;
    }
    let mut there = Extents::default();
    let mut buffer = Vec::new();
    for (range, checksum) in pieces {
        if range.end > size || range.end - range.start > REQUEST_BYTES {
            continue;
        }
        buffer.resize(usize::try_from(range.end - range.start).unwrap_or(0), 0);
        file.read_exact_at(&mut buffer, range.start)?;
        if crc32fast::hash(&buffer) == checksum {
            there.add(range);
        }
    }
    Ok((file, there))
}

/// Works out the digest of a file that grows, from its beginning; `contiguous` tells how far it can be read.
fn follow_digest(file: Arc<File>, size: u64, contiguous: mpsc::Receiver<u64>) -> JoinHandle<io::Result<FileDigests>> {
    spawn_blocking(move || {
        let mut hasher = FileHasher::default();
        while hasher.bytes() < size {
            let Ok(mut end) = contiguous.recv() else {
                return Err(io::Error::other("it was not fetched to its end"));
            };
            while let Ok(later) = contiguous.try_recv() {
                end = end.max(later);
            }
            hasher.read(&file, end)?;
        }
        Ok(hasher.finish())
    })
}

/// Brings one part. A request that breaks off is made again for what it did not bring.
async fn bring(
    source: &Source,
    work: &Work<'_>,
    range: Range<u64>,
    journal: &Arc<Journal>,
) -> Result<(), ModelCacheError> {
    let mut at = range.start;
    let mut broken_off = 0;
    while at < range.end {
        let before = at;
        let payload = source.part(work.remote, at..range.end).await.map_err(|error| match error {
            PartError::Replaced => ModelCacheError::Replaced { path: work.remote.path.clone() },
            PartError::Store(source) => ModelCacheError::Fetch { path: work.remote.path.clone(), source },
        })?;
        let outcome = match payload {
            GetResultPayload::File(file, _) => copy(file, work, at..range.end, journal).await.map(|()| at = range.end),
            GetResultPayload::Stream(stream) => receive(stream, work, &mut at, range.end, journal).await,
        };
        match outcome {
            Ok(()) => {}
            Err(Broken::Disk(error)) => return Err(ModelCacheError::file(Path::new(&work.remote.path), error)),
            Err(Broken::Store(error)) => {
                broken_off = if at > before { 0 } else { broken_off + 1 };
                if broken_off >= BROKEN_OFF_MAX {
                    return Err(ModelCacheError::Fetch { path: work.remote.path.clone(), source: error });
                }
                tracing::warn!(path = work.remote.path, at, %error, "model.broken_off");
                tokio::time::sleep(PAUSE * (1 << broken_off)).await;
            }
        }
    }
    Ok(())
}

/// Why a part ends early.
enum Broken {
    /// The connection, most likely.
    Store(object_store::Error),
    /// Ours.
    Disk(io::Error),
}

/// Writes what comes, and how far it came to `at`.
async fn receive(
    mut stream: futures_util::stream::BoxStream<'static, object_store::Result<Bytes>>,
    work: &Work<'_>,
    at: &mut u64,
    end: u64,
    journal: &Arc<Journal>,
) -> Result<(), Broken> {
    let (mut chunks, mut waiting) = (Vec::new(), 0);
    loop {
        let (more, is_due, broken) = match tokio::time::timeout(LULL, stream.next()).await {
            Ok(Some(Ok(chunk))) => {
                waiting += chunk.len();
                chunks.push(chunk);
                (true, waiting >= PIECE_BYTES, None)
            }
            Ok(Some(Err(error))) => (false, true, Some(error)),
            Ok(None) => (false, true, None),
            Err(_) => (true, true, None),
        };
        if is_due && waiting > 0 {
            let length = waiting as u64;
            if *at + length > end {
                return Err(Broken::Disk(io::Error::other("the store sent more than was asked for")));
            }
            write(std::mem::take(&mut chunks), work, *at, journal).await.map_err(Broken::Disk)?;
            (*at, waiting) = (*at + length, 0);
        }
        if let Some(error) = broken {
            return Err(Broken::Store(error));
        }
        if !more {
            return Ok(());
        }
    }
}

async fn write(chunks: Vec<Bytes>, work: &Work<'_>, start: u64, journal: &Arc<Journal>) -> io::Result<()> {
    let (file, journal, index) = (Arc::clone(&work.file), Arc::clone(journal), work.index);
    let range = blocking(move || {
        let mut checksum = crc32fast::Hasher::new();
        let mut at = start;
        for chunk in &chunks {
            file.write_all_at(chunk, at)?;
            checksum.update(chunk);
            at += chunk.len() as u64;
        }
        // After the bytes: who is killed in between has written for nothing, and said nothing wrong.
        journal.append(&Record::Written { file: index, range: start..at, checksum: checksum.finalize() })?;
        Ok(start..at)
    });
    let range = range.await?;
    let mut there = work.there.lock().unwrap_or_else(PoisonError::into_inner);
    there.add(range);
    let _ = work.follow.send(there.contiguous());
    Ok(())
}

/// From a file of this machine.
async fn copy(file: File, work: &Work<'_>, range: Range<u64>, journal: &Arc<Journal>) -> Result<(), Broken> {
    let file = Arc::new(file);
    for start in range.clone().step_by(PIECE_BYTES) {
        let (file, length) = (Arc::clone(&file), PIECE_BYTES.min(usize::try_from(range.end - start).unwrap_or(0)));
        let read = blocking(move || {
            let mut piece = vec![0; length];
            file.read_exact_at(&mut piece, start)?;
            Ok(Bytes::from(piece))
        });
        let piece = read.await.map_err(Broken::Disk)?;
        write(vec![piece], work, start, journal).await.map_err(Broken::Disk)?;
    }
    Ok(())
}

/// What must not hold up the threads that everything else runs on.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "one extent is what is meant")]

    use super::super::hashing::digests_of;
    use super::*;

    #[test]
    fn only_what_is_in_the_file_is_believed_of_the_journal() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("below/file");
        let written = |range: Range<u64>, bytes: &[u8]| (range, crc32fast::hash(bytes));
        let (file, there) = recover(&path, 10, Vec::new()).unwrap();
        assert_eq!((there.bytes(), file.metadata().unwrap().len()), (0, 10));
        file.write_all_at(b"0123456789", 0).unwrap();
        let pieces = vec![
            written(0..3, b"012"),
            written(5..8, b"xyz"),
            written(8..10, b"89"),
            // Of a file that was larger.
            written(8..12, b"89ab"),
        ];
        let (_, there) = recover(&path, 10, pieces).unwrap();
        assert_eq!(there.holes(10), [3..8]);
    }

    #[test]
    fn what_was_forgotten_is_not_remembered() {
        let written = |file, start| Record::Written { file, range: start..start + 1, checksum: 0 };
        let records =
            [written(0, 1), written(1, 2), Record::Forgotten { file: 0 }, written(0, 3), Record::Forgotten { file: 2 }];
        assert_eq!(pieces_of(&records, 0), [(3..4, 0)]);
        assert_eq!(pieces_of(&records, 1), [(2..3, 0)]);
    }

    #[tokio::test]
    async fn a_digest_follows_the_bytes_and_fails_when_they_end_early() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let content: Vec<u8> = (0..3 * PIECE_BYTES + 5).map(|place| (place % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let start = || {
            let (follow, contiguous) = mpsc::channel();
            let file = Arc::new(File::open(&path).unwrap());
            (follow, follow_digest(file, content.len() as u64, contiguous))
        };
        let (follow, digest) = start();
        for end in [0, 1, PIECE_BYTES + 3, content.len()] {
            follow.send(end as u64).unwrap();
        }
        let digest = digest.await.unwrap().unwrap();
        assert_eq!(digest, digests_of(&path).unwrap());
        let (follow, digest) = start();
        follow.send(PIECE_BYTES as u64).unwrap();
        drop(follow);
        digest.await.unwrap().unwrap_err();
    }
}

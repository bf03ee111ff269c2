//! The identity of a model: SHA-256 over everything that decides its pixels.
//!
//! Hashing takes longer than mapping a model, so it goes on beside its first work, and only for whoever wants the digest. `darkroom.toml` is not in it: it only
//! fills gaps in requests. Neither is the path of the model's directory.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::error::LoadError;

/// Files are hashed in pieces of this size, on all cores.
const PIECE_BYTES: u64 = 16 << 20;
const BUFFER_BYTES: usize = 1 << 20;

/// Digests that somebody has worked out already, of files that have not changed since.
#[derive(Clone, Debug, Default)]
pub struct KnownPieces {
    /// What all pieces but the last of a file have; of no use if the engine counts otherwise.
    pub piece_bytes: u64,
    /// SHA-256 of each piece in lower-case hexadecimal digits, by the file's path below the model's directory.
    pub files: BTreeMap<String, Vec<String>>,
}

impl KnownPieces {
    /// Those of a file, if they can be all of it.
    fn of(&self, name: &str, length: u64) -> Option<Vec<[u8; 32]>> {
        let pieces = self.files.get(name).filter(|_| self.piece_bytes == PIECE_BYTES)?;
        (pieces.len() as u64 == length.div_ceil(PIECE_BYTES)).then_some(())?;
        pieces.iter().map(|digits| bytes_of(digits)).collect()
    }
}

/// What hexadecimal digits say.
fn bytes_of(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    (digits.len() == 64 && digits.is_ascii()).then_some(())?;
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

/// The digest of a model's files, which may still be in the making.
#[derive(Clone, Debug)]
pub struct ModelDigest(Arc<Promise>);

#[derive(Debug)]
struct Promise {
    digest: OnceLock<Result<String, LoadError>>,
    /// Until it is begun.
    work: Mutex<Option<Work>>,
}

#[derive(Debug)]
struct Work {
    directory: PathBuf,
    files: Vec<PathBuf>,
    known: KnownPieces,
}

impl ModelDigest {
    /// That of `files` below `directory`.
    pub(crate) fn new(directory: &Path, files: Vec<PathBuf>, known: KnownPieces) -> Self {
        let work = Work { directory: directory.to_owned(), files, known };
        Self(Arc::new(Promise { digest: OnceLock::new(), work: Mutex::new(Some(work)) }))
    }

    /// Begins to hash, on all cores, unless that is done.
    pub fn begin(&self) {
        let work = self.0.work.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Work { directory, files, known }) = work {
            let promise = Arc::clone(&self.0);
            std::thread::spawn(move || promise.digest.get_or_init(|| of_files(&directory, &files, &known)).is_ok());
        }
    }

    /// Waits for the digest, as lower-case hexadecimal digits.
    ///
    /// # Errors
    /// `Io` when a file cannot be read.
    pub fn wait(&self) -> Result<&str, &LoadError> {
        self.begin();
        self.0.digest.wait().as_deref()
    }
}

/// One piece of a file.
struct Piece {
    file: usize,
    offset: u64,
    length: u64,
    known: Option<[u8; 32]>,
}

/// The digest of `files` below `directory`, as lower-case hexadecimal digits: SHA-256 over name, length and the SHA-256
/// of each piece of every file, in the order of their names.
fn of_files(directory: &Path, files: &[PathBuf], known: &KnownPieces) -> Result<String, LoadError> {
    let mut names: Vec<(String, &PathBuf)> = files
        .iter()
        .map(|file| {
            let name = file.strip_prefix(directory).unwrap_or(file);
            (name.to_string_lossy().replace('\\', "/"), file)
        })
        .collect();
    names.sort();
    let (mut opened, mut pieces) = (Vec::new(), Vec::new());
    for (index, (name, path)) in names.iter().enumerate() {
        let file = File::open(path).map_err(|error| LoadError::reading(path, error))?;
        let length = file.metadata().map_err(|error| LoadError::reading(path, error))?.len();
        let known = known.of(name, length);
        let starts = (0..length).step_by(PIECE_BYTES as usize).enumerate();
        pieces.extend(starts.map(|(nth, offset)| Piece {
            file: index,
            offset,
            length: PIECE_BYTES.min(length - offset),
            known: known.as_ref().map(|known| known[nth]),
        }));
        opened.push((file, length));
    }
    let hashes: Vec<[u8; 32]> = pieces
        .par_iter()
        .map(|piece| match piece.known {
            Some(known) => Ok(known),
            None => {
                of_piece(&opened[piece.file].0, piece).map_err(|error| LoadError::reading(names[piece.file].1, error))
            }
        })
        .collect::<Result<_, _>>()?;
    let mut hasher = Sha256::new();
    let mut hashes = pieces.iter().zip(hashes).peekable();
    for (index, ((name, _), (_, length))) in names.iter().zip(&opened).enumerate() {
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(length.to_le_bytes());
        while let Some((_, hash)) = hashes.next_if(|(piece, _)| piece.file == index) {
            hasher.update(hash);
        }
    }
    Ok(hexadecimal(&hasher.finalize()))
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn of_piece(file: &File, piece: &Piece) -> std::io::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES.min(piece.length as usize)];
    let mut done = 0;
    while done < piece.length {
        let part = buffer.len().min((piece.length - done) as usize);
        file.read_exact_at(&mut buffer[..part], piece.offset + done)?;
        hasher.update(&buffer[..part]);
        done += part as u64;
    }
    Ok(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_borders_of_files_count() {
        let digest = |contents: &[(&str, &str)]| {
            let directory = tempfile::tempdir().unwrap();
            let files: Vec<PathBuf> = contents
                .iter()
                .map(|(name, content)| {
                    let path = directory.path().join(name);
                    std::fs::write(&path, content).unwrap();
                    path
                })
                .collect();
            of_files(directory.path(), &files, &KnownPieces::default()).unwrap()
        };
        let one = digest(&[("a", "12"), ("b", "3")]);
        assert_eq!(one.len(), 64);
        assert_eq!(one, digest(&[("b", "3"), ("a", "12")]));
        assert_ne!(one, digest(&[("a", "1"), ("b", "23")]));
        assert_ne!(one, digest(&[("a", "12"), ("c", "3")]));
    }

    #[test]
    fn every_piece_of_a_large_file_counts_and_so_does_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let length = 2 * PIECE_BYTES as usize + 7;
        let mut content = vec![0; length];
        let mut seen = std::collections::BTreeSet::new();
        for place in [0, PIECE_BYTES as usize, length - 1] {
            content[place] = 1;
            std::fs::write(&path, &content).unwrap();
            content[place] = 0;
            let digest = ModelDigest::new(directory.path(), vec![path.clone()], KnownPieces::default());
            assert!(seen.insert(digest.wait().unwrap().to_owned()), "{place}");
        }
    }

    #[test]
    fn what_is_known_is_not_read_again_and_makes_the_same_digest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let content: Vec<u8> = (0..PIECE_BYTES + 9).map(|place| (place % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let digest = |known: &KnownPieces| of_files(directory.path(), std::slice::from_ref(&path), known).unwrap();
        let pieces: Vec<String> =
            content.chunks(PIECE_BYTES as usize).map(|piece| hexadecimal(&Sha256::digest(piece))).collect();
        let with = |piece_bytes, pieces: &[String]| KnownPieces {
            piece_bytes,
            files: BTreeMap::from([("a".to_owned(), pieces.to_vec())]),
        };
        let expected = digest(&KnownPieces::default());
        assert_eq!(digest(&with(PIECE_BYTES, &pieces)), expected);
        // What cannot be of this file is not used.
        assert_eq!(digest(&with(PIECE_BYTES, &pieces[..1])), expected);
        assert_eq!(digest(&with(1 << 20, &pieces)), expected);
        assert_eq!(digest(&with(PIECE_BYTES, &[pieces[0].clone(), "none".into()])), expected);
        // It is the known ones that count: nothing was read.
        let others = [pieces[0].clone(), "0".repeat(64)];
        assert_ne!(digest(&with(PIECE_BYTES, &others)), expected);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let digest = ModelDigest::new(Path::new("."), vec!["missing.json".into()], KnownPieces::default());
        assert!(digest.wait().unwrap_err().to_string().contains("missing.json"));
    }
}

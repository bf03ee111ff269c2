//! Digests of a file, of all of it and of its pieces, in one pass over its bytes.
//!
//! The first is what a manifest says. The pieces are what a model's own digest is made of: whoever loads the model need not
//! read it for that again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::wire::request::hexadecimal;

/// As the engine counts them.
pub(super) const PIECE_BYTES: u64 = 16 << 20;
/// What is read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// In lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileDigests {
    /// SHA-256 of all bytes.
    pub(super) sha256: String,
    /// SHA-256 of each piece of [`PIECE_BYTES`], the last of which may be shorter; none where an earlier version has written it.
    #[serde(default)]
    pub(super) pieces: Vec<String>,
}

/// Takes a file's bytes in their order.
#[derive(Debug, Default)]
pub(super) struct FileHasher {
    whole: Sha256,
    piece: Sha256,
    bytes: u64,
    pieces: Vec<String>,
}

impl FileHasher {
    /// How far it is.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        self.whole.update(bytes);
        while !bytes.is_empty() {
            let left = PIECE_BYTES - self.bytes % PIECE_BYTES;
            let (now, later) = bytes.split_at(bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            self.piece.update(now);
            self.bytes += now.len() as u64;
            if self.bytes.is_multiple_of(PIECE_BYTES) {
                self.pieces.push(hexadecimal(&self.piece.finalize_reset()));
            }
            bytes = later;
        }
    }

    /// Reads the file from where it is to `end`.
    pub(super) fn read(&mut self, file: &File, end: u64) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES.min(usize::try_from(end - self.bytes.min(end)).unwrap_or(BUFFER_BYTES))];
        while self.bytes < end {
            let part = buffer.len().min(usize::try_from(end - self.bytes).unwrap_or(usize::MAX));
            file.read_exact_at(&mut buffer[..part], self.bytes)?;
            self.update(&buffer[..part]);
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> FileDigests {
        if !self.bytes.is_multiple_of(PIECE_BYTES) {
            self.pieces.push(hexadecimal(&self.piece.finalize()));
        }
        FileDigests { sha256: hexadecimal(&self.whole.finalize()), pieces: self.pieces }
    }
}

/// Those of a file that is whole.
pub(super) fn digests_of(path: &Path) -> io::Result<FileDigests> {
    let file = File::open(path)?;
    let mut hasher = FileHasher::default();
    hasher.read(&file, file.metadata()?.len())?;
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_where_they_should_however_the_bytes_come() {
        let piece = PIECE_BYTES as usize;
        for length in [0, 1, piece - 1, piece, piece + 1, 2 * piece] {
            let content: Vec<u8> = (0..length).map(|place| (place % 251) as u8).collect();
            let mut hasher = FileHasher::default();
            content.chunks(5 * piece / 7 + 1).for_each(|chunk| hasher.update(chunk));
            let digests = hasher.finish();
            assert_eq!(digests.sha256, hexadecimal(&Sha256::digest(&content)));
            let expected: Vec<String> =
                content.chunks(piece).map(|piece| hexadecimal(&Sha256::digest(piece))).collect();
            assert_eq!(digests.pieces, expected, "{length}");
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("file");
            std::fs::write(&path, &content).unwrap();
            assert_eq!(digests_of(&path).unwrap(), digests);
        }
    }
}

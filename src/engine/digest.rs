//! The identity of a model: SHA-256 over everything that decides its pixels.
//!
//! `darkroom.toml` is not in it: it only fills gaps in requests. Neither is the path of the model's directory.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::LoadError;

/// The digest of `files` below `directory`, as lower-case hexadecimal digits.
///
/// Files are taken in the order of their names; each counts with name and length, so that moving bytes from one file to
/// the next makes another digest.
pub(crate) fn of_files(directory: &Path, files: &[PathBuf]) -> Result<String, LoadError> {
    let mut names: Vec<(String, &PathBuf)> = files
        .iter()
        .map(|file| {
            let name = file.strip_prefix(directory).unwrap_or(file);
            (name.to_string_lossy().replace('\\', "/"), file)
        })
        .collect();
    names.sort();
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for (name, path) in names {
        let io = |source| LoadError::Io { path: path.clone(), source };
        let mut file = File::open(path).map_err(io)?;
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(file.metadata().map_err(io)?.len().to_le_bytes());
        loop {
            match file.read(&mut buffer).map_err(io)? {
                0 => break,
                count => hasher.update(&buffer[..count]),
            }
        }
    }
    Ok(hasher.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
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
            of_files(directory.path(), &files).unwrap()
        };
        let one = digest(&[("a", "12"), ("b", "3")]);
        assert_eq!(one.len(), 64);
        assert_eq!(one, digest(&[("b", "3"), ("a", "12")]));
        assert_ne!(one, digest(&[("a", "1"), ("b", "23")]));
        assert_ne!(one, digest(&[("a", "12"), ("c", "3")]));
    }
}

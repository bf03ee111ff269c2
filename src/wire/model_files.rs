//! The manifest of a model in the object store: which files it has, how large they are, and their digests.
//!
//! It lies beside the files as [`NAME`]. A model has one if it was put there by `darkroom models push`; it says nothing of
//! what the model can do.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// What the manifest is called, below the model's prefix.
pub const NAME: &str = "darkroom.manifest.json";
/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;

/// All files of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFiles {
    /// Of this document's form.
    pub version: u32,
    /// Every file but the manifest, by path.
    pub files: Vec<ModelFile>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ModelFile {
    /// Below the model's directory, as `unet/config.json`.
    pub path: String,
    /// In bytes.
    pub size: u64,
    /// SHA-256 of its bytes, in lower-case hexadecimal digits.
    pub sha256: String,
}

/// Why a document is no manifest of a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelFilesError {
    /// Not the JSON that it should be.
    #[error("{NAME} cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// A field holds what it must not.
    #[error("{NAME}: {field} is {value:?}; it must be {allowed}")]
    Field {
        /// Which.
        field: String,
        /// What it holds.
        value: String,
        /// What it may hold.
        allowed: &'static str,
    },
}

impl ModelFiles {
    /// The manifest of these files.
    pub fn of(mut files: Vec<ModelFile>) -> Self {
        files.sort();
        Self { version: VERSION, files }
    }
}

/// Whether a path stays below the directory that it is taken from, and names one file in one way only.
pub fn is_path_below(path: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && name != "." && name != ".." && !name.contains(['\\', '\0']);
    path.split('/').all(is_name)
}

/// Reads a manifest; what it says can be used as it is.
///
/// # Errors
/// [`ModelFilesError`], which names the field.
pub fn decode(bytes: &[u8]) -> Result<ModelFiles, ModelFilesError> {
    let manifest: ModelFiles = serde_json::from_slice(bytes)?;
    let wrong = |field: String, value: &str, allowed| {
        Err(ModelFilesError::Field { field, value: value.chars().take(200).collect(), allowed })
    };
    if manifest.version != VERSION {
        return wrong("version".into(), &manifest.version.to_string(), "1");
    }
    if manifest.files.is_empty() {
        return wrong("files".into(), "[]", "a list of at least one file");
    }
    let mut seen = BTreeSet::new();
    for (index, ModelFile { path, sha256, .. }) in manifest.files.iter().enumerate() {
        if !is_path_below(path) || path == NAME {
            return wrong(format!("files[{index}].path"), path, "a path below the model's, as unet/config.json");
        }
        if !seen.insert(path) {
            return wrong(format!("files[{index}].path"), path, "there once");
        }
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if sha256.len() != 64 || !sha256.bytes().all(is_digit) {
            return wrong(format!("files[{index}].sha256"), sha256, "64 lower-case hexadecimal digits");
        }
    }
    Ok(manifest)
}

/// The manifest as it is stored.
///
/// # Errors
/// serde's; no manifest has what JSON lacks.
pub fn encode(manifest: &ModelFiles) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = serde_json::to_vec_pretty(manifest)?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> ModelFile {
        ModelFile { path: path.into(), size: 3, sha256: "0a".repeat(32) }
    }

    #[test]
    fn what_is_written_reads_back_in_the_order_of_paths() {
        let manifest = ModelFiles::of(vec![file("unet/config.json"), file("model_index.json")]);
        assert_eq!(manifest.files[0].path, "model_index.json");
        assert_eq!(decode(&encode(&manifest).unwrap()).unwrap(), manifest);
    }

    #[test]
    fn what_must_not_be_is_refused_by_its_field() {
        let with = |change: &dyn Fn(&mut ModelFiles)| {
            let mut manifest = ModelFiles::of(vec![file("a"), file("b/c")]);
            change(&mut manifest);
            decode(&encode(&manifest).unwrap()).unwrap_err().to_string()
        };
        for path in ["", "/etc/passwd", "../a", "b/../c", "b//c", "./a", "b\\c", "b/", NAME] {
            let said = with(&|manifest| manifest.files[1].path = path.into());
            assert!(said.contains("files[1].path"), "{path}: {said}");
        }
        assert!(with(&|manifest| manifest.files[1].path = "a".into()).contains("there once"));
        for sha256 in ["", "0A", &"0A".repeat(32), &"g0".repeat(32)] {
            assert!(with(&|manifest| manifest.files[0].sha256 = sha256.into()).contains("files[0].sha256"));
        }
        assert!(with(&|manifest| manifest.version = 2).contains("version"));
        assert!(with(&|manifest| manifest.files.clear()).contains("files"));
        assert!(decode(b"{\"version\": 1}").unwrap_err().to_string().contains("files"));
    }
}

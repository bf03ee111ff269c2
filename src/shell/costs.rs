//! The file with what `darkroom profile` measured: where it is, reading and writing it.
//!
//! It measures nothing. A worker without the file guesses and learns.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sched::{BatchKey, CostModel};
use crate::wire::cost::{self, CostTable};

use super::config::user_cache;

/// Where the figures of a model on one kind of device are kept unless somebody says otherwise:
/// `$XDG_CACHE_HOME/darkroom/costs/<model>-<placement>.json`.
pub fn path(model: &str, placement: &str) -> Option<PathBuf> {
    let cache = user_cache()?;
    let words = placement.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let placement = words.collect::<Vec<_>>().join("-").to_ascii_lowercase();
    Some(cache.join("costs").join(format!("{model}-{placement}.json")))
}

/// What is known from the file at `path`; nothing when there is none.
///
/// # Errors
/// When there is one and it cannot be read.
pub fn read(path: &Path) -> io::Result<CostModel> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(CostModel::default()),
        Err(error) => return Err(error),
    };
    let table = cost::decode(&bytes).map_err(io::Error::other)?;
    let took = |ms: f64| Duration::try_from_secs_f64(ms / 1e3).map_err(io::Error::other);
    let mut costs = CostModel::default();
    for step in table.steps {
        let key = BatchKey { width: step.width, height: step.height };
        costs.measured_step(key, step.images, took(step.ms)?);
        if let Some(bytes) = step.bytes {
            costs.measured_step_bytes(key, step.images, bytes);
        }
    }
    for decode in table.decode {
        let key = BatchKey { width: decode.width, height: decode.height };
        costs.measured_decode(key, took(decode.ms)?);
        if let Some(bytes) = decode.bytes {
            costs.measured_decode_bytes(key, bytes);
        }
    }
    Ok(costs)
}

/// Keeps `table` at `path`, whole or not at all.
///
/// # Errors
/// The system's.
pub fn write(path: &Path, table: &CostTable) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let unfinished = path.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&unfinished, cost::encode(table).map_err(io::Error::other)?)?;
    std::fs::rename(&unfinished, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::cost::{DecodeCost, StepCost};

    #[test]
    fn what_is_written_is_known_afterwards_and_what_is_damaged_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("below/costs.json");
        assert_eq!(read(&path).unwrap(), CostModel::default());
        let table = CostTable {
            model: "shapes".into(),
            placement: "Cpu, F32".into(),
            steps: vec![StepCost { width: 64, height: 64, images: 1, ms: 12.5, bytes: Some(1 << 20) }],
            decode: vec![DecodeCost { width: 64, height: 64, ms: 7.0, bytes: None }],
        };
        write(&path, &table).unwrap();
        let costs = read(&path).unwrap();
        let key = BatchKey { width: 64, height: 64 };
        assert!((costs.step_ms(key, 1) - 12.5).abs() < 1e-6 && (costs.decode_ms(key) - 7.0).abs() < 1e-6);
        assert_eq!((costs.step_bytes(key, 1), costs.decode_bytes(key)), (Some(1 << 20), None));
        std::fs::write(&path, "{}").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("model"));
        let step = StepCost { width: 64, height: 64, images: 1, ms: -1.0, bytes: None };
        let negative = CostTable { steps: vec![step], ..table };
        write(&path, &negative).unwrap();
        assert!(read(&path).is_err());
    }

    #[test]
    fn a_file_without_bytes_is_read_as_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("costs.json");
        let old = r#"{"model": "shapes", "placement": "Cpu, F32",
            "steps": [{"width": 64, "height": 64, "images": 1, "ms": 12.5}], "decode": []}"#;
        std::fs::write(&path, old).unwrap();
        let costs = read(&path).unwrap();
        let key = BatchKey { width: 64, height: 64 };
        assert!((costs.step_ms(key, 1) - 12.5).abs() < 1e-6);
        assert_eq!(costs.step_bytes(key, 1), None);
    }
}

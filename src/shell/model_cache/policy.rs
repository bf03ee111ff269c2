//! What the cache decides: which files make a model, in which order they are fetched, and which models make room. Pure.

use std::ops::Range;

/// Which objects below a model's prefix are files of it. What people publish beside them, such as the same weights in other
/// formats, is of no use here and can be many times larger.
pub(super) fn is_wanted(path: &str) -> bool {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    if path.split('/').any(|part| part.starts_with('.')) {
        return false;
    }
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        // Weights belong to a part; what lies beside `model_index.json` is the whole model in one file.
        Some("safetensors") => !directory.is_empty(),
        Some("json" | "txt" | "toml" | "model") => true,
        Some(_) | None => false,
    }
}

/// What is missing of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Missing {
    /// Which.
    pub(super) file: usize,
    /// Of all of it.
    pub(super) size: u64,
    /// In order.
    pub(super) holes: Vec<Range<u64>>,
}

/// What one request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) file: usize,
    pub(super) range: Range<u64>,
}

/// The requests that bring what is missing, in the order in which they begin.
///
/// Small files go first: configurations are needed before anything else. Then large ones, the largest first and each from
/// its beginning: the digest of a file follows its bytes in order, so the one that takes longest should not begin last.
pub(super) fn requests(mut missing: Vec<Missing>, bytes_max: u64) -> Vec<Part> {
    let is_large = |file: &Missing| file.size > bytes_max;
    missing.sort_by_key(|file| {
        let size = if is_large(file) { u64::MAX - file.size } else { file.size };
        (is_large(file), size, file.file)
    });
    let mut parts = Vec::new();
    for Missing { file, holes, .. } in missing {
        for hole in holes {
            let starts = (hole.start..hole.end).step_by(usize::try_from(bytes_max.max(1)).unwrap_or(usize::MAX));
            parts.extend(
                starts.map(|start| Part { file, range: start..hole.end.min(start.saturating_add(bytes_max.max(1))) }),
            );
        }
    }
    parts
}

/// A model in the cache, whole or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Of all its files, fetched or not: what is being fetched needs its room too.
    pub(super) bytes: u64,
    /// When it was last used.
    pub(super) used_unix_ms: i64,
    /// Whether somebody uses or fetches it.
    pub(super) is_in_use: bool,
}

/// The room that a model needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Need {
    /// All its files.
    pub(super) bytes: u64,
    /// What of them has no place on the disk yet.
    pub(super) bytes_on_disk: u64,
    /// What all models may have together.
    pub(super) bytes_max: Option<u64>,
    /// What the disk has left.
    pub(super) disk_free: u64,
}

/// There is none, whatever is evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// The model alone is larger than the cache may be.
    Limit,
    /// With those in use it would be.
    InUse {
        /// What these have.
        bytes: u64,
    },
    /// The disk has too little left.
    Disk {
        /// How much it could have.
        bytes: u64,
    },
}

/// Which of the others go, so that there is room: the least recently used ones, none that is in use, and no more than needed.
pub(super) fn evicted(others: &[Kept], need: &Need) -> Result<Vec<usize>, NoRoom> {
    if need.bytes_max.is_some_and(|bytes_max| need.bytes > bytes_max) {
        return Err(NoRoom::Limit);
    }
    let mut total = others.iter().fold(need.bytes, |sum, kept| sum.saturating_add(kept.bytes));
    let mut free = need.disk_free;
    let mut candidates: Vec<usize> = (0..others.len()).filter(|index| !others[*index].is_in_use).collect();
    candidates.sort_by_key(|index| (others[*index].used_unix_ms, *index));
    let mut candidates = candidates.into_iter();
    let mut gone = Vec::new();
    loop {
        let is_over = need.bytes_max.is_some_and(|bytes_max| total > bytes_max);
        let is_full = free < need.bytes_on_disk;
        if !is_over && !is_full {
            return Ok(gone);
        }
        let Some(index) = candidates.next() else {
            return Err(if is_over {
                NoRoom::InUse { bytes: total - need.bytes }
            } else {
                NoRoom::Disk { bytes: free }
            });
        };
        total = total.saturating_sub(others[index].bytes);
        free = free.saturating_add(others[index].bytes);
        gone.push(index);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "one extent is what is meant")]

    use super::*;

    #[test]
    fn a_model_is_what_the_engine_reads() {
        let wanted = [
            "model_index.json",
            "darkroom.toml",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "tokenizer/merges.txt",
            "tokenizer_3/spiece.model",
        ];
        let others = [
            "v1-5-pruned.safetensors",
            "unet/diffusion_pytorch_model.bin",
            "README.md",
            ".gitattributes",
            ".cache/x.json",
            "vae/.hidden.json",
            "unet/openvino",
        ];
        assert!(wanted.iter().all(|path| is_wanted(path)));
        assert!(!others.iter().any(|path| is_wanted(path)));
    }

    #[test]
    fn small_files_are_asked_for_first_and_then_the_largest_from_its_beginning() {
        let missing = |file, size, holes: &[Range<u64>]| Missing { file, size, holes: holes.to_vec() };
        let parts = requests(
            vec![
                missing(0, 25, &[0..25]),
                missing(1, 3, &[0..3]),
                missing(2, 40, &[7..12, 30..40]),
                missing(3, 1, &[0..1]),
            ],
            10,
        );
        let expected = [(3, 0..1), (1, 0..3), (2, 7..12), (2, 30..40), (0, 0..10), (0, 10..20), (0, 20..25)];
        assert_eq!(parts, expected.map(|(file, range)| Part { file, range }));
    }

    fn kept(bytes: u64, used_unix_ms: i64) -> Kept {
        Kept { bytes, used_unix_ms, is_in_use: false }
    }

    fn need(bytes: u64, bytes_max: u64) -> Need {
        Need { bytes, bytes_on_disk: bytes, bytes_max: Some(bytes_max), disk_free: u64::MAX }
    }

    #[test]
    fn the_least_recently_used_go_and_no_more_than_needed() {
        let others = [kept(10, 3), kept(10, 1), kept(10, 2)];
        for (bytes, gone) in [(70, vec![]), (71, vec![1]), (80, vec![1]), (90, vec![1, 2]), (100, vec![1, 2, 0])] {
            assert_eq!(evicted(&others, &need(bytes, 100)), Ok(gone), "{bytes}");
        }
        assert_eq!(evicted(&others, &need(101, 100)), Err(NoRoom::Limit));
        let unlimited = Need { bytes_max: None, ..need(1 << 40, 0) };
        assert_eq!(evicted(&others, &unlimited), Ok(vec![]));
    }

    #[test]
    fn what_is_in_use_never_goes() {
        let others = [Kept { is_in_use: true, ..kept(50, 1) }, kept(10, 2)];
        assert_eq!(evicted(&others, &need(50, 100)), Ok(vec![1]));
        assert_eq!(evicted(&others, &need(51, 100)), Err(NoRoom::InUse { bytes: 50 }));
    }

    #[test]
    fn a_disk_that_is_full_is_made_room_on_too() {
        let others = [kept(10, 2), kept(10, 1)];
        let on_disk = |bytes_on_disk| Need { bytes_on_disk, bytes_max: None, disk_free: 5, ..need(30, 0) };
        assert_eq!(evicted(&others, &on_disk(5)), Ok(vec![]));
        assert_eq!(evicted(&others, &on_disk(6)), Ok(vec![1]));
        assert_eq!(evicted(&others, &on_disk(25)), Ok(vec![1, 0]));
        assert_eq!(evicted(&others, &on_disk(26)), Err(NoRoom::Disk { bytes: 25 }));
    }
}

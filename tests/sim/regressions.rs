//! One line for each seed that found a bug.

/// The day, the seed, and what was wrong.
pub(crate) const FOUND: &[(&str, u64, &str)] = &[];

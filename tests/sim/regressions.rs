//! One line for each seed that found a bug. A change of what a seed makes of the world takes the meaning from the lines
//! before it: look for the bug's seed again with the fix undone.

/// The day, the seed, and what was wrong.
pub(crate) const FOUND: &[(&str, u64, &str)] = &[
    ("2026-11-23", 1, "a claim refused for good was tried for ever"),
    ("2026-11-23", 17, "a claim that is tried again took up no room"),
    ("2026-11-23", 200, "what was left of a pull did not count as asked for"),
    ("2026-11-23", 850, "a NAK was tried again after the lease was over"),
    ("2026-11-23", 600, "an extension after the lease was taken for one in time"),
    ("2026-11-23", 160, "what takes the engine down was never suspected in a batch"),
    ("2026-11-23", 43, "a job whose rows do not stand together was failed twice"),
    ("2026-11-25", 6779, "a worker that was to end stepped a job past its deadline"),
];

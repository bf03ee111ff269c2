//! Rules of the code base that no compiler checks. Each has its reason beside it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

fn files_below(directory: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "{directory} has no .{extension} files");
    found.sort();
    found
}

/// The lines of a file that are code of the program: no comments, nothing after the unit tests begin.
fn code_lines(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    let program = text.split("#[cfg(test)]").next().unwrap_or_default();
    (1..)
        .zip(program.lines())
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(number, line)| (number, line.to_owned()))
        .collect()
}

fn offences(files: &[PathBuf], is_offence: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for path in files {
        for (number, line) in code_lines(path) {
            if is_offence(&line) {
                found.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    found
}

/// A module that imports another one it should not know cannot be understood, tested or replaced without it.
#[test]
fn modules_import_only_what_stands_below_them() {
    let rules: [(&str, &[&str]); 5] = [
        ("src/job", &["sched", "simulation", "wire", "engine", "shell"]),
        ("src/sched", &["simulation", "wire", "engine", "shell"]),
        ("src/simulation", &["wire", "engine", "shell"]),
        ("src/wire", &["sched", "simulation", "engine", "shell"]),
        ("src/engine", &["sched", "simulation", "wire", "shell"]),
    ];
    for (module, forbidden) in rules {
        let found = offences(&files_below(module, "rs"), |line| {
            forbidden.iter().any(|name| line.contains(&format!("crate::{name}")))
        });
        assert!(found.is_empty(), "{module} must not import these:\n{}", found.join("\n"));
    }
}

/// Purity is what makes the scheduler's simulation and every seed mean something.
#[test]
fn the_core_knows_no_clock_no_io_and_no_unordered_maps() {
    let words = ["Instant", "SystemTime", "HashMap", "HashSet", "std::env", "std::fs", "std::net", "async ", "tokio"];
    let mut files = files_below("src/job", "rs");
    files.extend(files_below("src/sched", "rs"));
    files.extend(files_below("src/simulation", "rs"));
    files.extend(files_below("src/wire", "rs"));
    let found = offences(&files, |line| words.iter().any(|word| line.contains(word)));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// `wire` alone decides how things look outside the process; the engine reads its own models' files.
#[test]
fn jobs_and_the_scheduler_cannot_be_serialised() {
    let mut files = files_below("src/job", "rs");
    files.extend(files_below("src/sched", "rs"));
    let found = offences(&files, |line| line.contains("serde"));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A subject written twice is a subject that will differ.
#[test]
fn subjects_are_written_only_in_the_subject_module() {
    let mut files = files_below("src", "rs");
    files.extend(files_below("functions", "rs"));
    files.retain(|path| !path.ends_with("wire/subject.rs"));
    let prefixes = [
        "darkroom.req.",
        "darkroom.ev.",
        "darkroom.prog.",
        "darkroom.dlq.",
        "darkroom.ctl.",
        "darkroom.hook.",
        "DARKROOM_REQ",
    ];
    let found =
        offences(&files, |line| prefixes.iter().any(|prefix| line.contains(prefix)) && !line.contains("include_str!"));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Tensors stay in the engine and NATS types in the shell, so that either can change alone.
#[test]
fn foreign_types_stay_in_their_module() {
    let everything = || files_below("src", "rs");
    for (word, home) in [("candle_", "src/engine"), ("async_nats::", "src/shell"), ("object_store::", "src/shell")] {
        let mut files = everything();
        files.retain(|path| !path.to_string_lossy().contains(home) && !path.to_string_lossy().contains("src/cli"));
        let found = offences(&files, |line| line.contains(word));
        assert!(found.is_empty(), "{word} belongs to {home}:\n{}", found.join("\n"));
    }
}

/// The first thing a reader of a file wants to know is what it is for.
#[test]
fn every_file_says_what_it_is_for() {
    for directory in ["src", "functions", "tests", "benches"] {
        for path in files_below(directory, "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let first = text.lines().find(|line| !line.starts_with("#!")).unwrap_or_default();
            assert!(first.starts_with("//!"), "{} does not begin with //!", path.display());
        }
    }
}

/// A function's `main` is wiring; what it wires is in the library, where tests reach it.
#[test]
fn functions_are_thin() {
    for path in files_below("functions", "rs") {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 120, "{} has {lines} lines", path.display());
    }
}

/// Skipped tests rot, and a sleep is a race that was not understood.
#[test]
fn tests_neither_skip_nor_sleep() {
    let mut files = files_below("tests", "rs");
    // Waiting for what cannot be waited for is written once, there.
    files.retain(|path| !path.to_string_lossy().contains("tests/support"));
    let ignore = concat!("#[", "ignore");
    let sleep = concat!("thread::", "sleep");
    let found = offences(&files, |line| line.contains(ignore) || line.contains(sleep));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

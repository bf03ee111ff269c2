//! Whatever reads bytes that others wrote gets wrong ones: it refuses them, or what it makes of them is within all rules.
//!
//! Each target is a function of bytes that panics when it finds something wrong. As a test it runs on the files of
//! `corpus/<target>`, which hold what was once wrong as well, and on a fixed number of inputs that `mutate` makes of them, the
//! same ones each time; `DARKROOM_FUZZ_INPUTS` makes it another number. `local/fuzz` builds the same targets with libFuzzer,
//! which looks for inputs that reach new code.

#![cfg_attr(fuzzing, no_main)]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests fail like tests, and say why")]

#[cfg(feature = "engine")]
mod engine;
mod faces;
mod mutate;
#[cfg(feature = "shell")]
mod shell;
mod simulation;
mod wire;

use std::path::Path;

/// Something that reads foreign bytes.
struct Target {
    /// That of its test and its corpus.
    name: &'static str,
    /// Reads them.
    run: fn(&[u8]),
    /// Inputs that are made here, because they depend on models or are no text.
    seeds: fn() -> Vec<Vec<u8>>,
    /// Damaged inputs of a test.
    inputs: u64,
}

fn no_seeds() -> Vec<Vec<u8>> {
    Vec::new()
}

/// The targets by name, and a test of each.
macro_rules! targets {
    ($($(#[$condition:meta])? $name:ident = $run:path, $seeds:path, $inputs:literal;)*) => {
        fn target(name: &str) -> Option<Target> {
            match name {
                $($(#[$condition])? stringify!($name) =>
                    Some(Target { name: stringify!($name), run: $run, seeds: $seeds, inputs: $inputs }),)*
                _ => None,
            }
        }

        $($(#[$condition])? #[test] fn $name() {
            check(&target(stringify!($name)).unwrap());
        })*
    };
}

targets! {
    request = wire::request, no_seeds, 20_000;
    record = wire::record, no_seeds, 20_000;
    event = wire::event, no_seeds, 20_000;
    subject = wire::subject, no_seeds, 20_000;
    manifest = wire::manifest, no_seeds, 20_000;
    model_manifest = wire::model_manifest, no_seeds, 20_000;
    report = wire::report, no_seeds, 20_000;
    text = wire::text, no_seeds, 20_000;
    billing = wire::billing, no_seeds, 20_000;
    webhook = wire::webhook, no_seeds, 20_000;
    face = faces::face, no_seeds, 20_000;
    workload = simulation::workload, simulation::workloads, 2_000;
    costs = simulation::costs, simulation::tables, 5_000;
    #[cfg(feature = "engine")] checkpoint = engine::checkpoint, engine::checkpoints, 4_000;
    #[cfg(feature = "engine")] lora = engine::lora, engine::loras, 400;
    #[cfg(feature = "engine")] weights = engine::weights, engine::weight_files, 400;
    #[cfg(feature = "engine")] model = engine::model, engine::model_files, 400;
    #[cfg(feature = "engine")] prompt = engine::prompt, no_seeds, 200;
    #[cfg(feature = "engine")] picture = engine::picture, engine::pictures, 2_000;
    #[cfg(feature = "shell")] address = shell::address, no_seeds, 20_000;
    #[cfg(feature = "shell")] url = shell::url, no_seeds, 20_000;
    #[cfg(feature = "shell")] data_url = shell::data_url, no_seeds, 20_000;
    #[cfg(feature = "shell")] setting = shell::setting, no_seeds, 20_000;
}

/// The files of a target's corpus and what is made for it, in order.
fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target.name);
    let files = std::fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut all: Vec<(String, Vec<u8>)> =
        files.map(|path| (path.display().to_string(), std::fs::read(&path).unwrap())).collect();
    all.sort();
    let made = (target.seeds)().into_iter().enumerate();
    all.extend(made.map(|(index, bytes)| (format!("seed {index}"), bytes)));
    assert!(!all.is_empty(), "{} has no corpus", target.name);
    all
}

fn check(target: &Target) {
    let corpus = corpus(target);
    for (name, bytes) in &corpus {
        run(target, bytes, name);
    }
    let seeds: Vec<&[u8]> = corpus.iter().map(|(_, bytes)| bytes.as_slice()).collect();
    let inputs = std::env::var("DARKROOM_FUZZ_INPUTS").map_or(target.inputs, |inputs| inputs.parse().unwrap());
    for index in 0..inputs {
        run(target, &mutate::mutated(&seeds, index), &format!("input {index}"));
    }
}

/// Runs the target; a failure leaves the input where it can be kept for good.
fn run(target: &Target, bytes: &[u8], what: &str) {
    let outcome = std::panic::catch_unwind(|| (target.run)(bytes));
    if let Err(panic) = outcome {
        let path = std::env::temp_dir().join(format!("darkroom-fuzz-{}", target.name));
        std::fs::write(&path, bytes).unwrap();
        eprintln!(
            "{what} fails; copy {} to tests/fuzz/corpus/{}: {:?}",
            path.display(),
            target.name,
            String::from_utf8_lossy(&bytes[..bytes.len().min(2000)])
        );
        std::panic::resume_unwind(panic);
    }
}

#[cfg(not(fuzzing))]
#[test]
fn every_directory_of_the_corpus_has_its_target() {
    let mut found = 0;
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let source = include_str!("main.rs");
        assert!(source.contains(&format!(" {name} = ")), "nothing reads {name}");
        found += 1;
    }
    assert!(found > 10);
}

/// What libFuzzer calls; the environment names the target.
#[cfg(fuzzing)]
mod fuzzer {
    use std::sync::LazyLock;

    use super::{Target, corpus, target};

    static TARGET: LazyLock<Target> = LazyLock::new(|| {
        let name = std::env::var("DARKROOM_FUZZ_TARGET").unwrap_or_default();
        let target = target(&name).unwrap_or_else(|| panic!("DARKROOM_FUZZ_TARGET names no target: {name:?}"));
        if let Ok(directory) = std::env::var("DARKROOM_FUZZ_SEEDS") {
            for (index, (_, bytes)) in corpus(&target).into_iter().enumerate() {
                std::fs::write(format!("{directory}/seed-{index}"), bytes).unwrap();
            }
            std::process::exit(0);
        }
        target
    });

    // Its hook ends the process with any panic, but some are caught, and meant to be.
    libfuzzer_sys::fuzz_target!(
        init: {
            drop(std::panic::take_hook());
            LazyLock::force(&TARGET);
        },
        |bytes: &[u8]| (TARGET.run)(bytes)
    );
}

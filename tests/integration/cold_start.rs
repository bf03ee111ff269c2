//! How fast a model comes from a store to the first step of a worker, beside what the server and the disk can do:
//! `cargo bench --profile dev -p darkroom-integration --bench cold_start -- --gb 1`, after
//! `cargo build --workspace --bins`. `--model DIR` takes a model of that size as it is, as `local/bench/models.py` makes them.
//!
//! Prints what was measured and judges nothing. Server and client share the machine. Files that were written a moment ago
//! are in memory, so reading costs the server no disk.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods, reason = "a benchmark")]

#[allow(dead_code, reason = "the tests use the rest")]
mod stack;
#[path = "../support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use darkroom::engine::read_manifest;
use darkroom::shell::config::StoreOptions;
use darkroom::shell::{store, topology};
use serde_json::{Value, json};

use stack::{Stack, model_directory, program};
use support::process::{Background, run};
use support::s3::S3Server;

/// A large model from a slow disk.
const PATIENCE: Duration = Duration::from_secs(1800);
/// What is read and written at once.
const BLOCK: usize = 1 << 20;

/// What is asked of it.
enum Asked {
    /// The default model with so much noise beside it.
    Gigabytes(f64),
    Model(PathBuf),
    /// Of this program itself, with the variables of the store: GET this object once, as a whole.
    Get {
        store: String,
        key: String,
    },
}

fn asked() -> Asked {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    match (words.next().as_deref(), words.next(), words.next()) {
        (Some("--gb"), Some(number), _) => Asked::Gigabytes(number.parse().expect("--gb takes a number")),
        (Some("--model"), Some(directory), _) => Asked::Model(directory.into()),
        (Some("--get"), Some(store), Some(key)) => Asked::Get { store, key },
        (None, ..) => Asked::Gigabytes(4.0),
        _ => panic!("usage: cold_start [--gb NUMBER | --model DIR]"),
    }
}

#[tokio::main]
async fn main() {
    // Not /tmp, which may be memory.
    let directory = tempfile::tempdir_in(program("darkroom").parent().unwrap()).unwrap();
    let model = match asked() {
        Asked::Get { store, key } => return get(store, &key).await,
        Asked::Model(model) => model,
        Asked::Gigabytes(gigabytes) => made(&directory.path().join("ballast"), gigabytes),
    };
    let files = files_of(&model);
    let bytes: u64 = files.iter().map(|(_, size)| size).sum();
    let (largest, largest_bytes) = files.iter().max_by_key(|(_, size)| size).unwrap();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("{}: {} files, {:.2} GB, on {cores} cores", model.display(), files.len(), bytes as f64 / 1e9);

    let copied = Instant::now();
    copy_and_sync(&files, &directory.path().join("copy"));
    let disk = rate("the disk, files copied one after the other and synced", bytes, copied.elapsed());
    fs::remove_dir_all(directory.path().join("copy")).unwrap();

    let s3 = S3Server::start_fast_in(directory.path()).await;
    let url = format!("{}/models/bench", s3.store_url());
    let mut push = Command::new(program("darkroom"));
    push.args(["models", "push"]).arg(&model).arg(&url).envs(s3.environment());
    // s3s-fs puts the parts of a large file together before it answers.
    push.env("AWS_TIMEOUT", "1200s");
    run(&mut push, PATIENCE).await.expect_success();

    let key = format!("models/bench/{}", largest.strip_prefix(&model).unwrap().display());
    let mut get = Command::new(std::env::current_exe().unwrap());
    get.args(["--get", &s3.store_url(), &key]).envs(s3.environment());
    let seconds: f64 = run(&mut get, PATIENCE).await.expect_success().trim().parse().unwrap();
    let server = rate("the server, one GET of the largest file", *largest_bytes, Duration::from_secs_f64(seconds));

    let cache = directory.path().join("cache");
    let mut fetch = Command::new(program("darkroom"));
    fetch.args(["--json", "models", "fetch", "--model", &url, "--model-cache"]).arg(&cache).envs(s3.environment());
    let said: Value = serde_json::from_str(&run(&mut fetch, PATIENCE).await.expect_success()).unwrap();
    assert_eq!(said["fetched_bytes"], bytes);
    let took = Duration::from_millis(said["fetch_ms"].as_u64().unwrap());
    let fetched = rate("fetched into the cache, digests checked", bytes, took);
    println!("  = {:.2} of the server's rate, {:.2} of the disk's", fetched / server, fetched / disk);
    fs::remove_dir_all(&cache).unwrap();

    first_step(&model, &s3, &url, &cache).await;
}

/// From nothing to the first step of a job that waits.
async fn first_step(model: &Path, s3: &S3Server, url: &str, cache: &Path) {
    let stack = Stack::start().await;
    // The name of a model without one is its directory's, which is another one in the store.
    let mut manifest = read_manifest(model).unwrap();
    if !model.join("darkroom.toml").exists() {
        manifest.name = "bench".parse().unwrap();
    }
    let models = std::slice::from_ref(&manifest);
    topology::reconcile_with(&stack.bus, models, stack.nats.replicas(), topology::Mode::Apply).await.unwrap();
    let side = manifest.limits.side_min;
    let body = json!({"prompt": "a heart", "num_inference_steps": 2, "width": side, "height": side, "seed": 1});
    let subject = format!("darkroom.req.{}.normal.any.t", manifest.name);
    stack.publish(&subject, Some("first"), serde_json::to_vec(&body).unwrap()).await;
    let mut command = Command::new(program("darkroom-generate"));
    command.args(["--nats", &stack.nats.url(), "--store", &stack.store_url(), "--model", url, "--model-cache"]);
    command.arg(cache).envs(s3.environment());
    let began = Instant::now();
    let worker = Background::start(&mut command);
    let ready = worker.wait_for_log(|line| line.contains("worker.ready"), PATIENCE).await;
    let stepped = worker.wait_for_log(|line| line.contains("worker.first_step"), PATIENCE).await;
    let whole = began.elapsed();
    let phases = [
        ("fetch", figure(&ready, "fetch_ms")),
        ("load", figure(&ready, "load_ms")),
        ("first step", figure(&stepped, "first_step_ms")),
    ];
    let longest = phases.iter().map(|(_, ms)| *ms).fold(0.0, f64::max);
    let told: Vec<String> = phases.iter().map(|(phase, ms)| format!("{phase} {ms:.0} ms")).collect();
    let whole_ms = whole.as_secs_f64() * 1e3;
    println!("exec to the end of the first step, {side} × {side}: {whole_ms:.0} ms ({})", told.join(", "));
    println!("  = {:.2} of the longest phase", whole_ms / longest);
}

/// The value of a field in a line of the log.
fn figure(line: &str, field: &str) -> f64 {
    let rest = line.split_once(&format!("{field}=")).or_else(|| line.split_once(&format!("\"{field}\":")));
    let (_, rest) = rest.unwrap_or_else(|| panic!("{field} is not in {line}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

fn rate(what: &str, bytes: u64, took: Duration) -> f64 {
    let rate = bytes as f64 / took.as_secs_f64();
    println!("{what}: {:.0} MB/s ({:.2} s)", rate / 1e6, took.as_secs_f64());
    rate
}

/// The default model, and noise that no engine reads.
fn made(directory: &Path, gigabytes: f64) -> PathBuf {
    for (file, _) in files_of(&model_directory()) {
        let to = directory.join(file.strip_prefix(model_directory()).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
    let mut random = File::open("/dev/urandom").unwrap();
    let mut block = vec![0; 64 * BLOCK];
    random.read_exact(&mut block).unwrap();
    // The shares that denoiser, text encoder and decoder of Stable Diffusion 1.5 have.
    for (part, share) in [("unet", 0.806), ("text_encoder", 0.115), ("vae", 0.079)] {
        let mut file = BufWriter::new(File::create(directory.join(part).join("ballast.safetensors")).unwrap());
        let mut left = (gigabytes * share * 1e9) as u64;
        while left > 0 {
            let length = block.len().min(usize::try_from(left).unwrap());
            file.write_all(&block[..length]).unwrap();
            left -= length as u64;
        }
        file.into_inner().unwrap().sync_all().unwrap();
    }
    directory.to_owned()
}

fn files_of(directory: &Path) -> Vec<(PathBuf, u64)> {
    let (mut found, mut open) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match fs::metadata(&path).unwrap() {
                metadata if metadata.is_dir() => open.push(path),
                metadata => found.push((path, metadata.len())),
            }
        }
    }
    found
}

fn copy_and_sync(files: &[(PathBuf, u64)], to: &Path) {
    fs::create_dir_all(to).unwrap();
    let mut block = vec![0; BLOCK];
    for (index, (path, _)) in files.iter().enumerate() {
        let mut from = File::open(path).unwrap();
        let mut copy = File::create(to.join(index.to_string())).unwrap();
        loop {
            let length = from.read(&mut block).unwrap();
            if length == 0 {
                break;
            }
            copy.write_all(&block[..length]).unwrap();
        }
        copy.sync_all().unwrap();
    }
}

/// Reads an object as one stream, and prints the seconds that it took.
async fn get(store: String, key: &str) {
    let options = StoreOptions { store, url_expires: Duration::from_secs(60) };
    let url = store::open(&options).unwrap().url_of(key).await.unwrap();
    let began = Instant::now();
    let mut answer = reqwest::get(url).await.unwrap().error_for_status().unwrap();
    let mut bytes = 0;
    while let Some(chunk) = answer.chunk().await.unwrap() {
        bytes += chunk.len();
    }
    assert!(bytes > 0);
    println!("{}", began.elapsed().as_secs_f64());
}

//! Models of a store, and the cache of the machine: kills, eviction, files that were replaced, damaged or lied about.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use darkroom::engine::{self, Engine as _, LoadOptions, read_manifest};
use darkroom::job::Status;
use darkroom::shell::topology;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::stack::{PATIENCE, Stack, model_directory, program};
use crate::support::eventually;
use crate::support::process::{Background, Finished, run};
use crate::support::s3::S3Server;

/// Of a file that no engine reads, so that a model is fetched by several requests.
const BALLAST: &str = "unet/ballast.safetensors";
const BALLAST_BYTES: usize = 40 << 20;

/// Bytes that nothing can be guessed of.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    std::iter::repeat_with(|| next().to_le_bytes()).flatten().take(bytes).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A store, models to put there, and a cache.
struct Models {
    s3: S3Server,
    directory: TempDir,
}

impl Models {
    async fn start() -> Self {
        Self { s3: S3Server::start().await, directory: tempfile::tempdir().unwrap() }
    }

    /// The default model under another name, with ballast.
    fn make(&self, name: &str, ballast: usize) -> PathBuf {
        let directory = self.directory.path().join("made").join(name);
        copy(&model_directory(), &directory);
        let settings = fs::read_to_string(directory.join("darkroom.toml")).unwrap();
        let settings = settings.replace("name = \"shapes\"", &format!("name = \"{name}\""));
        fs::write(directory.join("darkroom.toml"), settings).unwrap();
        let seed = name.bytes().map(u64::from).sum();
        fs::write(directory.join(BALLAST), noise(seed, ballast)).unwrap();
        directory
    }

    fn url(&self, name: &str) -> String {
        format!("{}/models/{name}", self.s3.store_url())
    }

    fn cache(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    async fn darkroom(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(program("darkroom"));
        run(command.args(["--json", "models"]).args(arguments).envs(self.s3.environment()), PATIENCE).await
    }

    /// Makes a model and puts it there.
    async fn put(&self, name: &str, ballast: usize) -> PathBuf {
        let directory = self.make(name, ballast);
        self.push(name).await;
        directory
    }

    async fn push(&self, name: &str) -> Value {
        let directory = self.directory.path().join("made").join(name);
        let pushed = self.darkroom(&["push", &directory.display().to_string(), &self.url(name)]).await;
        serde_json::from_str(&pushed.expect_success()).unwrap()
    }

    fn fetch_command(&self, name: &str, cache: &Path) -> Command {
        let mut command = Command::new(program("darkroom"));
        command.args(["--json", "models", "fetch", "--model", &self.url(name), "--model-cache"]).arg(cache);
        command.envs(self.s3.environment()).env("DARKROOM_LOG", "info");
        command
    }

    async fn fetch_with(&self, name: &str, more: &[&str]) -> Finished {
        run(self.fetch_command(name, &self.cache()).args(more), PATIENCE).await
    }

    async fn fetch(&self, name: &str) -> Fetched {
        Fetched::of(self.fetch_with(name, &[]).await)
    }

    fn worker_command(&self, stack: &Stack, name: &str, worker: &str) -> Command {
        let mut command = Command::new(program("darkroom-generate"));
        command.args(["--nats", &stack.nats.url(), "--store", &stack.store_url(), "--model", &self.url(name)]);
        command.args(["--worker", worker, "--model-cache"]).arg(self.cache()).envs(self.s3.environment());
        command
    }

    /// Of a model's files, as they were sent: every byte as often as it was.
    fn sent(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let prefix = format!("/{}/models/{name}/", self.s3.bucket());
        let mut found = BTreeMap::<String, Vec<u8>>::new();
        for sent in self.s3.sent() {
            let Some(path) = sent.path.strip_prefix(&prefix) else { continue };
            let times = found.entry(path.to_owned()).or_default();
            let (start, end) = (sent.range.start as usize, sent.range.end as usize);
            times.resize(times.len().max(end), 0);
            times[start..end].iter_mut().for_each(|times| *times += 1);
        }
        found
    }

    /// Every byte of every file was sent once.
    fn assert_sent_once(&self, name: &str) {
        let sent = self.sent(name);
        let directory = self.directory.path().join("made").join(name);
        let mut files = 0;
        each_file(&directory, &mut |path, content| {
            files += 1;
            let times = sent.get(path).unwrap_or_else(|| panic!("{name}: {path} was not sent"));
            assert_eq!(times.len(), content.len(), "{name}: {path}");
            let twice = times.iter().filter(|times| **times != 1).count();
            assert_eq!(twice, 0, "{name}: {twice} bytes of {path} were not sent once");
        });
        assert_eq!(sent.len(), files, "{name}");
    }
}

fn each_file(directory: &Path, found: &mut impl FnMut(&str, &[u8])) {
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found(path.strip_prefix(directory).unwrap().to_str().unwrap(), &fs::read(&path).unwrap());
            }
        }
    }
}

/// What `models fetch` said.
#[derive(Debug)]
struct Fetched {
    directory: PathBuf,
    bytes: u64,
    resumed: u64,
    log: String,
}

impl Fetched {
    fn of(finished: Finished) -> Self {
        assert!(finished.status.success(), "{finished}");
        let said: Value = serde_json::from_str(&finished.stdout).unwrap();
        Self {
            directory: said["directory"].as_str().unwrap().into(),
            bytes: said["fetched_bytes"].as_u64().unwrap(),
            resumed: said["resumed_bytes"].as_u64().unwrap(),
            log: finished.stderr,
        }
    }

    /// It is this model, byte for byte.
    fn assert_is(&self, made: &Path) {
        let mut files = 0;
        each_file(made, &mut |path, content| {
            files += 1;
            assert!(fs::read(self.directory.join(path)).unwrap() == content, "{path} has other bytes");
        });
        let mut cached = 0;
        each_file(&self.directory, &mut |_, _| cached += 1);
        assert_eq!(cached, files);
    }
}

/// How many bytes the journals of a cache say that they have: records of 28 bytes, the length in the fifth word.
fn journaled(cache: &Path) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(cache).into_iter().flatten() {
        let journal = fs::read(entry.unwrap().path().join("journal")).unwrap_or_default();
        let lengths = journal.chunks_exact(28).map(|record| u32::from_le_bytes(record[16..20].try_into().unwrap()));
        bytes += lengths.map(u64::from).sum::<u64>();
    }
    bytes
}

fn bytes_of(directory: &Path) -> u64 {
    let mut bytes = 0;
    each_file(directory, &mut |_, content| bytes += content.len() as u64);
    bytes
}

fn small() -> Value {
    json!({"prompt": "a heart", "num_inference_steps": 2, "width": 64, "height": 64, "seed": 1})
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_fetch_three_models_once_although_one_is_killed_in_the_middle() {
    let models = Models::start().await;
    let stack = Stack::start().await;
    let names = ["one", "two", "three"];
    let mut made = Vec::new();
    for name in names {
        made.push(models.put(name, BALLAST_BYTES).await);
    }
    let manifests: Vec<_> = made.iter().map(|directory| read_manifest(directory).unwrap()).collect();
    topology::reconcile_with(&stack.bus, &manifests, stack.nats.replicas(), topology::Mode::Apply).await.unwrap();

    // The first one fetches until the store holds it, the second one waits for the first.
    let held_after = 18 << 20;
    models.s3.hold_after(Some(held_after));
    let mut first = Background::start(&mut models.worker_command(&stack, "one", "first"));
    first.wait_for_log(|line| line.contains("model.fetch"), PATIENCE).await;
    let second = Background::start(&mut models.worker_command(&stack, "one", "second"));
    second.wait_for_log(|line| line.contains("model.waiting"), PATIENCE).await;
    let body = serde_json::to_vec(&small()).unwrap();
    stack.publish("darkroom.req.one.normal.any.t", Some("early"), body.clone()).await;
    let all_written = async || {
        let sent = models.s3.bytes_sent();
        (sent >= held_after && journaled(&models.cache()) == sent).then_some(sent)
    };
    let before = eventually("what was sent to be written", PATIENCE, all_written).await;
    first.kill();
    models.s3.hold_after(None);
    let ready = second.wait_for_log(|line| line.contains("worker.ready"), PATIENCE).await;
    assert!(ready.contains("fetch_ms") && ready.contains("load_ms"), "{ready}");
    let fetched = second.wait_for_log(|line| line.contains("model.present"), PATIENCE).await;
    assert!(fetched.contains(&before.to_string()), "{before} bytes should go on: {fetched}");
    let early = stack.end_of("early").await;
    assert_eq!(early.state.status, Status::Completed);
    let early = early.terminal.unwrap();
    assert_eq!(early["worker"], "second");
    let (fetching, loading) = (&early["timings"]["fetching_ms"], &early["timings"]["loading_ms"]);
    assert!(fetching.as_f64().unwrap() > 0.0 && loading.as_f64() >= fetching.as_f64(), "{early}");
    second.wait_for_log(|line| line.contains("worker.first_step"), PATIENCE).await;
    let prompts = second.wait_for_log(|line| line.contains("worker.first_prompts"), PATIENCE).await;
    assert!(prompts.contains("early"), "its prompts are encoded while the rest of the model is loaded: {prompts}");
    let model = engine::load(&made[0], &LoadOptions::default()).unwrap();
    let digest = model.digest().wait().unwrap();
    assert_eq!(early["model_digest"], digest, "it is the same model as in a directory");

    // The killed one comes back and finds everything, also while the other one has it.
    let again = Background::start(&mut models.worker_command(&stack, "one", "first"));
    let ready = again.wait_for_log(|line| line.contains("worker.ready"), PATIENCE).await;
    assert!(ready.contains("fetched_bytes=0") || ready.contains("\"fetched_bytes\":0"), "{ready}");
    drop(second);
    stack.publish("darkroom.req.one.normal.any.t", Some("late"), body.clone()).await;
    let late = stack.end_of("late").await.terminal.unwrap();
    assert_eq!((&late["worker"], &late["timings"]["fetching_ms"]), (&json!("first"), &json!(0.0)), "{late}");
    assert_eq!(late["model_digest"], digest);
    drop(again);

    // Two at the same time want the two others.
    let workers = ["first", "second"].map(|worker| {
        ["two", "three"].map(|name| {
            let worker = format!("{worker}-{name}");
            Background::start(&mut models.worker_command(&stack, name, &worker))
        })
    });
    for worker in workers.iter().flatten() {
        worker.wait_for_log(|line| line.contains("worker.ready"), PATIENCE).await;
    }
    for name in ["two", "three"] {
        stack.publish(&format!("darkroom.req.{name}.normal.any.t"), Some(name), body.clone()).await;
        assert_eq!(stack.end_of(name).await.state.status, Status::Completed);
    }
    for name in names {
        models.assert_sent_once(name);
    }
    for (name, made) in names.iter().zip(&made) {
        let fetched = models.fetch(name).await;
        assert_eq!((fetched.bytes, fetched.resumed), (0, 0));
        fetched.assert_is(made);
    }
}

/// One run for each moment at which it is killed.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_at_any_moment_leaves_what_another_goes_on_from() {
    let models = Models::start().await;
    let made = models.put("killed", 4 << 20).await;
    let total = bytes_of(&made);
    for turn in 0..8 {
        let cache = models.directory.path().join(format!("cache-{turn}"));
        let sent = models.s3.bytes_sent();
        models.s3.hold_after(Some(sent + total * turn / 8));
        let mut fetch = Background::start(&mut models.fetch_command("killed", &cache));
        fetch.wait_for_log(|line| line.contains("model.fetch"), PATIENCE).await;
        let all_written = async || {
            let now = models.s3.bytes_sent() - sent;
            (now >= total * turn / 8 && journaled(&cache) == now).then_some(now)
        };
        let before = eventually("what was sent to be written", PATIENCE, all_written).await;
        fetch.kill();
        models.s3.hold_after(None);
        let fetched = Fetched::of(run(&mut models.fetch_command("killed", &cache), PATIENCE).await);
        assert_eq!((fetched.resumed, fetched.bytes), (before, total - before), "{}", fetched.log);
        fetched.assert_is(&made);
        assert_eq!(models.s3.bytes_sent() - sent, total);
        let files = fs::read_dir(fetched.directory.ancestors().nth(2).unwrap()).unwrap();
        let left: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        assert!(!left.iter().any(|name| name == "partial" || name == "journal"), "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_model_goes_and_never_one_in_use() {
    let models = Models::start().await;
    let stack = Stack::start().await;
    let mut size = 0;
    for name in ["used", "older", "newer", "fourth"] {
        let made = models.put(name, 1 << 20).await;
        let manifest = read_manifest(&made).unwrap();
        let one = std::slice::from_ref(&manifest);
        topology::reconcile_with(&stack.bus, one, stack.nats.replicas(), topology::Mode::Apply).await.unwrap();
        size = size.max(bytes_of(&made));
    }
    let room_for_three = (3 * size + size / 2).to_string();
    let limit = ["--model-cache-max", &room_for_three];
    // The first one would be the first to go.
    let mut worker = Background::start(models.worker_command(&stack, "used", "w").args(limit));
    worker.wait_for_log(|line| line.contains("worker.ready"), PATIENCE).await;
    let used = models.fetch("used").await;
    let older = Fetched::of(models.fetch_with("older", &limit).await);
    let newer = Fetched::of(models.fetch_with("newer", &limit).await);
    // It is used once more.
    let older_again = Fetched::of(models.fetch_with("older", &limit).await);
    assert_eq!((older_again.bytes, &older_again.directory), (0, &older.directory));
    let fourth = Fetched::of(models.fetch_with("fourth", &limit).await);
    assert!(fourth.log.contains("model.evicted"), "{}", fourth.log);
    let there = |fetched: &Fetched| fetched.directory.exists();
    assert!(there(&used) && there(&older) && !there(&newer) && there(&fourth));
    let job = serde_json::to_vec(&small()).unwrap();
    stack.publish("darkroom.req.used.normal.any.t", Some("job"), job).await;
    assert_eq!(stack.end_of("job").await.state.status, Status::Completed);

    // With room for one alone, the one in use stays, and the others are of no use any more.
    let room_for_one = (size + size / 2).to_string();
    let refused = models.fetch_with("newer", &["--model-cache-max", &room_for_one]).await;
    assert!(!refused.status.success() && refused.stderr.contains("in use"), "{refused}");
    assert!(there(&used));
    let refused = models.fetch_with("newer", &["--model-cache-max", "1MiB"]).await;
    assert!(!refused.status.success() && refused.stderr.contains("--model-cache-max"), "{refused}");
    // Who is killed uses nothing.
    worker.kill();
    let alone = Fetched::of(models.fetch_with("newer", &["--model-cache-max", &room_for_one]).await);
    assert!(!there(&used) && !there(&older) && !there(&fourth) && there(&alone));
    alone.assert_is(&models.directory.path().join("made/newer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_replaced_makes_another_version_also_in_the_middle() {
    let models = Models::start().await;
    for has_manifest in [true, false] {
        let name = if has_manifest { "told" } else { "bare" };
        let made = models.make(name, BALLAST_BYTES);
        // Without a manifest, as any other tool puts it there.
        let put = async || {
            models.push(name).await;
            if !has_manifest {
                fs::remove_file(models.s3.file(&format!("models/{name}/darkroom.manifest.json"))).unwrap();
            }
        };
        put().await;
        let old = models.fetch(name).await;
        old.assert_is(&made);
        fs::write(made.join(BALLAST), noise(77, BALLAST_BYTES)).unwrap();
        put().await;
        let new = models.fetch(name).await;
        new.assert_is(&made);
        assert_ne!(old.directory, new.directory);
        assert!(old.directory.exists(), "somebody may use it");

        fs::write(made.join(BALLAST), noise(78, BALLAST_BYTES)).unwrap();
        put().await;
        // Small files come first: when their first byte is held, nobody has asked for the ballast.
        let sent = models.s3.bytes_sent();
        models.s3.hold_after(Some(sent + 1));
        let mut fetching = Background::start(&mut models.fetch_command(name, &models.cache()));
        eventually("a part", PATIENCE, async || (models.s3.bytes_sent() > sent).then_some(())).await;
        fs::write(made.join(BALLAST), noise(79, BALLAST_BYTES)).unwrap();
        put().await;
        models.s3.hold_after(None);
        let status = fetching.wait(PATIENCE).await;
        let fetched = Fetched::of(Finished { status, stdout: fetching.stdout(), stderr: fetching.stderr() });
        fetched.assert_is(&made);
        assert!(fetched.log.contains("model.replaced"), "{}", fetched.log);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_found_and_alone_fetched_anew() {
    let models = Models::start().await;
    for has_manifest in [true, false] {
        let name = if has_manifest { "told" } else { "bare" };
        let made = models.put(name, 1 << 20).await;
        if !has_manifest {
            fs::remove_file(models.s3.file(&format!("models/{name}/darkroom.manifest.json"))).unwrap();
        }
        let fetched = models.fetch(name).await;
        for path in ["vae/diffusion_pytorch_model.safetensors", "model_index.json"] {
            let damaged = fetched.directory.join(path);
            let mut bytes = fs::read(&damaged).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&damaged, &bytes).unwrap();
            let again = models.fetch(name).await;
            assert_eq!((&again.directory, again.bytes), (&fetched.directory, bytes.len() as u64), "{}", again.log);
            assert!(again.log.contains("model.damaged") && again.log.contains(path), "{}", again.log);
            again.assert_is(&made);
            assert_eq!(models.fetch(name).await.bytes, 0);
        }
        fs::remove_file(fetched.directory.join("unet/config.json")).unwrap();
        models.fetch(name).await.assert_is(&made);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_lies_is_found_out_and_leaves_no_model() {
    let models = Models::start().await;
    models.put("lied", 1 << 20).await;
    let manifest = models.s3.file("models/lied/darkroom.manifest.json");
    let honest = fs::read_to_string(&manifest).unwrap();
    let document: Value = serde_json::from_str(&honest).unwrap();
    let of = |path: &str| document["files"].as_array().unwrap().iter().position(|file| file["path"] == path).unwrap();
    let ballast = of(BALLAST);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut lie = document.clone();
        change(&mut lie["files"][ballast]);
        fs::write(&manifest, lie.to_string()).unwrap();
    };
    let refused = async |words: &[&str]| {
        let refused = models.fetch_with("lied", &[]).await;
        assert!(!refused.status.success(), "{refused}");
        for word in words {
            assert!(refused.stderr.contains(word), "{word}: {refused}");
        }
        let model = fs::read_dir(models.cache()).into_iter().flatten();
        let model = model.filter(|entry| entry.as_ref().unwrap().path().join("model").exists()).count();
        assert_eq!(model, 0);
    };
    with(&|file| file["size"] = json!(5));
    refused(&[BALLAST, "5 bytes", "models push"]).await;
    with(&|file| file["path"] = json!("unet/none.safetensors"));
    refused(&["unet/none.safetensors", "no such object"]).await;
    with(&|file| file["path"] = json!("../../outside"));
    refused(&["files[", "../../outside"]).await;
    let sent = models.s3.bytes_sent();
    assert_eq!(sent, 0, "what cannot be true is not fetched");
    with(&|file| file["sha256"] = json!("0".repeat(64)));
    refused(&[BALLAST, "fetched twice", &"0".repeat(64)]).await;
    // Twice, and nothing else was.
    let times = models.sent("lied");
    assert!(times.iter().all(|(path, times)| times.iter().all(|times| *times == 1 + u8::from(path == BALLAST))));
    fs::write(&manifest, honest).unwrap();
    models.fetch("lied").await.assert_is(&models.directory.path().join("made/lied"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_sends_what_the_store_has_not_and_a_model_that_is_none_is_refused() {
    let models = Models::start().await;
    let made = models.put("pushed", 20 << 20).await;
    assert_eq!(models.push("pushed").await["sent_bytes"], 0);
    fs::write(made.join("README.md"), "not of the model").unwrap();
    fs::write(made.join("darkroom.toml"), "name = \"other\"\n").unwrap();
    let sent = models.push("pushed").await;
    assert_eq!(sent["sent_bytes"], "name = \"other\"\n".len());
    fs::remove_file(made.join("README.md")).unwrap();
    models.fetch("pushed").await.assert_is(&made);

    let nothing = models.fetch_with("nothing", &[]).await;
    assert!(!nothing.status.success() && nothing.stderr.contains("model_index.json"), "{nothing}");
    let empty = models.directory.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let refused = models.darkroom(&["push", &empty.display().to_string(), &models.url("empty")]).await;
    assert!(!refused.status.success() && refused.stderr.contains("model_index.json"), "{refused}");
}

/// A small file system in memory. Gone when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: &Path, bytes: u64) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=777"), "tmpfs"])
            .arg(path)
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(path.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_before_anything_is_fetched_and_others_make_room() {
    let models = Models::start().await;
    let (small, large) = (models.put("small", 1 << 20).await, models.put("large", 12 << 20).await);
    let disk = models.directory.path().join("disk");
    let Some(_disk) = Disk::mount(&disk, bytes_of(&large) + (2 << 20)) else {
        // Past what libtest catches: a test that was not made must not look as if it was.
        writeln!(std::io::stderr(), "NOT RUN: a full disk needs a file system of its own, so root").unwrap();
        return;
    };
    let fetch = async |name: &str| run(&mut models.fetch_command(name, &disk), PATIENCE).await;
    fs::write(disk.join("in-the-way"), vec![1; 4 << 20]).unwrap();
    let refused = fetch("large").await;
    assert!(!refused.status.success() && refused.stderr.contains("too little left"), "{refused}");
    assert_eq!(models.s3.bytes_sent(), 0);
    Fetched::of(fetch("small").await).assert_is(&small);
    // It goes for a larger one as soon as that is enough.
    let refused = fetch("large").await;
    assert!(!refused.status.success() && refused.stderr.contains("too little left"), "{refused}");
    Fetched::of(fetch("small").await).assert_is(&small);
    fs::remove_file(disk.join("in-the-way")).unwrap();
    let fetched = Fetched::of(fetch("large").await);
    fetched.assert_is(&large);
    assert!(fetched.log.contains("model.evicted"), "{}", fetched.log);
    let refused = tokio::time::timeout(PATIENCE, fetch("small")).await.unwrap();
    assert!(Fetched::of(refused).log.contains("model.evicted"));
}

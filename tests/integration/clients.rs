//! The examples of `docs/clients`, as their readers run them: a platform on this machine, and packages as they are published.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::ImageFormat;
use serde_json::Value;

use crate::stack::{PATIENCE, program};
use crate::support::process::{Background, run};
use crate::support::{checkout, eventually, nats, node, python};
use crate::up::up;

/// What runs an example, and the packages that it needs.
#[derive(Clone, Copy)]
enum Runner {
    Shell,
    Python(&'static [&'static str]),
    Node(&'static [&'static str]),
    /// As an example of this package.
    Cargo,
    /// A shell that finds the stand-in for `nats`, which no registry has.
    NatsCli,
}

struct Example {
    file: &'static str,
    runner: Runner,
    /// What it prints, in this order, among other words.
    prints: &'static [&'static str],
}

const OVER_NATS: &[&str] = &[
    "submitted",
    "known already",
    "accepted",
    "started",
    "progress: step",
    "completed",
    "image.png",
    "submitted",
    "asked to cancel:",
    "cancelled",
    "cancelled",
];

const EXAMPLES: &[Example] = &[
    Example {
        file: "curl.sh",
        runner: Runner::Shell,
        prints: &[
            "event: accepted",
            "event: started",
            "event: progress",
            "event: completed",
            "image.png",
            "waited: completed",
            "taken back: cancelled",
        ],
    },
    Example {
        file: "http.mjs",
        runner: Runner::Node(&[]),
        prints: &["accepted", "started", "progress: step", "completed", "image.png", "started", "cancelled"],
    },
    Example {
        file: "openai_images.py",
        runner: Runner::Python(python::HTTP_CLIENTS),
        prints: &[
            "models: shapes",
            "image_generation.partial_image",
            "image_generation.completed",
            "again: http",
            "edited: http",
            "refused: size invalid_request",
        ],
    },
    Example {
        file: "replicate_predictions.py",
        runner: Runner::Python(python::HTTP_CLIENTS),
        prints: &["succeeded", "image.png", "run: http", "run: http", "taken back: canceled"],
    },
    Example {
        file: "triton_http.py",
        runner: Runner::Python(python::TRITON),
        prints: &["inputs: PROMPT", "image.png", "url: "],
    },
    Example {
        file: "webhook_receiver.py",
        runner: Runner::Python(python::STANDARD_WEBHOOKS),
        prints: &["told: darkroom.job.started", "told: darkroom.job.completed", "image.png"],
    },
    Example { file: "nats_py.py", runner: Runner::Python(python::NATS_PY), prints: OVER_NATS },
    Example { file: "nats.mjs", runner: Runner::Node(node::NATS_JS), prints: OVER_NATS },
    Example { file: "nats.rs", runner: Runner::Cargo, prints: OVER_NATS },
    Example {
        file: "nats-cli.sh",
        runner: Runner::NatsCli,
        prints: &["Duplicate: true", ".started", ".completed", "image.png", ".started", "cancelled", ".cancelled"],
    },
];

impl Example {
    fn source(&self) -> PathBuf {
        checkout().join("docs/clients").join(self.file)
    }

    /// A copy of the example and what it needs in an empty directory, and the command that runs it there.
    fn command(&self, directory: &Path) -> Command {
        fs::copy(self.source(), directory.join(self.file)).unwrap();
        let of_file = |program: &Path| {
            let mut command = Command::new(program);
            command.arg(self.file);
            command
        };
        let mut command = match self.runner {
            Runner::Shell => of_file(Path::new("sh")),
            Runner::Python(packages) => {
                let mut command = of_file(Path::new("python3"));
                command.env("PYTHONPATH", python::installed(packages));
                command
            }
            Runner::Node(packages) => {
                if !packages.is_empty() {
                    symlink(node::installed(packages), directory.join("node_modules")).unwrap();
                }
                of_file(&node::program())
            }
            Runner::Cargo => Command::new(program("examples/client")),
            Runner::NatsCli => {
                symlink(checkout().join("tests/clients/nats_cli.py"), directory.join("nats")).unwrap();
                let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
                let mut command = of_file(Path::new("sh"));
                command.env("PATH", path).env("PYTHONPATH", python::installed(python::NATS_PY));
                command
            }
        };
        command.current_dir(directory);
        command
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_does_what_it_says_and_all_get_the_same_picture() {
    let data = tempfile::tempdir().unwrap();
    let (port, http) = (nats::free_port_pair(), nats::free_port_pair());
    let platform = Background::start(&mut up(data.path(), port, http));
    platform.wait_for_line(|line| line.contains("ready"), PATIENCE).await;
    let servers = format!("nats://127.0.0.1:{port}");
    let url = format!("http://127.0.0.1:{http}");
    eventually("the gateway", PATIENCE, async || {
        let answer = reqwest::get(format!("{url}/health/ready")).await.ok()?;
        answer.status().is_success().then_some(())
    })
    .await;
    let mut secret = Command::new(program("darkroom"));
    secret.args(["--nats", &servers, "--json", "webhooks", "secret", "default"]);
    let secret: Value = serde_json::from_str(run(&mut secret, PATIENCE).await.expect_success().trim()).unwrap();
    let secret = secret["secret"].as_str().unwrap();
    let mut pictures = BTreeSet::new();
    for example in EXAMPLES {
        let directory = tempfile::tempdir().unwrap();
        let mut command = example.command(directory.path());
        command.envs([("NATS_URL", &*servers), ("DARKROOM_URL", &*url), ("DARKROOM_WEBHOOK_SECRET", secret)]);
        let printed = run(&mut command, PATIENCE).await.expect_success();
        let mut rest = printed.as_str();
        for words in example.prints {
            let found = rest.split_once(words);
            rest = found.unwrap_or_else(|| panic!("{}: no {words:?} where it belongs:\n{printed}", example.file)).1;
        }
        let picture = fs::read(directory.path().join("image.png")).unwrap();
        let pixels = image::load_from_memory_with_format(&picture, ImageFormat::Png).unwrap();
        assert_eq!((pixels.width(), pixels.height()), (256, 256), "{}", example.file);
        pictures.insert(picture);
    }
    assert_eq!(pictures.len(), 1, "all ask for the same circle");
}

#[test]
fn every_example_is_in_the_table_with_the_versions_that_are_tested() {
    let directory = checkout().join("docs/clients");
    let table = fs::read_to_string(directory.join("README.md")).unwrap();
    let names = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: BTreeSet<String> = names.filter(|name| name != "README.md").collect();
    let examples: BTreeSet<String> = EXAMPLES.iter().map(|example| example.file.to_owned()).collect();
    assert_eq!(files, examples, "what is there is what is tested");
    for example in EXAMPLES {
        let row = table.lines().find(|line| line.contains(&format!("]({})", example.file)));
        let row = row.unwrap_or_else(|| panic!("{} is not in the table", example.file));
        let packages = match example.runner {
            Runner::Python(packages) | Runner::Node(packages) => packages,
            Runner::Shell | Runner::Cargo | Runner::NatsCli => continue,
        };
        // Of those that are installed together, the ones that it tells its reader to install.
        let text = fs::read_to_string(example.source()).unwrap();
        let told: Vec<&&str> = packages.iter().filter(|package| text.contains(**package)).collect();
        assert_eq!(told.is_empty(), packages.is_empty(), "{} names none of {packages:?}", example.file);
        for package in told {
            assert!(row.contains(*package), "{}: {package}", example.file);
        }
    }
}

//! Clients in Python, with the packages they need, pinned, in Darkroom's cache.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::{cache, checkout};

/// Neither needs another one.
const PACKAGES: [&str; 2] = ["nats-py==2.16.0", "standardwebhooks==1.1.0"];

/// A client of `tests/clients`, ready for its arguments.
///
/// # Panics
/// If the packages cannot be installed.
pub(crate) fn client(script: &str) -> Command {
    let mut command = Command::new("python3");
    command
        .arg(checkout().join("tests/clients").join(script))
        .env("PYTHONPATH", packages())
        // The checkout stays clean.
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// The directory of the packages, which is made by the first who needs it.
fn packages() -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let install = || {
        let directory = cache().join("python").join(PACKAGES.join("+").replace("==", "-"));
        if directory.is_dir() {
            return directory;
        }
        let parent = directory.parent().expect("a directory in a cache");
        std::fs::create_dir_all(parent).expect("the cache can be written");
        let staging = tempfile::tempdir_in(parent).expect("the cache can be written");
        let packages = staging.path().join("packages");
        let python = python_with_pip(staging.path());
        let pip =
            ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--target"];
        let status = Command::new(python)
            .args(pip)
            .arg(&packages)
            .args(PACKAGES)
            .envs([("PIP_ROOT_USER_ACTION", "ignore"), ("PIP_USER", "0")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        assert!(status.is_ok_and(|status| status.success()), "pip cannot install {PACKAGES:?}");
        // Another test process may have come first: its directory is as good.
        if let Err(error) = std::fs::rename(&packages, &directory) {
            assert!(directory.is_dir(), "{}: {error}", directory.display());
        }
        directory
    };
    DIRECTORY.get_or_init(install).clone()
}

/// A Python that has pip. Debian and Ubuntu leave both venv's ensurepip and pip out of python3; either is enough.
fn python_with_pip(staging: &Path) -> PathBuf {
    let succeeds = |command: &mut Command| {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
    };
    let environment = staging.join("venv");
    if succeeds(Command::new("python3").args(["-m", "venv"]).arg(&environment)) {
        return environment.join("bin/python3");
    }
    assert!(
        succeeds(Command::new("python3").args(["-m", "pip", "--version"])),
        "no python3 with venv or pip; on Debian and Ubuntu: apt-get install python3 python3-venv"
    );
    PathBuf::from("python3")
}

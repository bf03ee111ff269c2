//! Clients in Python, with the packages they need: pinned, each set in a directory of Darkroom's cache.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{cached, checkout};

/// NATS' own package.
pub(crate) const NATS_PY: &[&str] = &["nats-py==2.16.0"];
/// Those of the services whose interfaces the gateway has too.
pub(crate) const HTTP_CLIENTS: &[&str] = &["openai==3.57.0", "replicate==1.0.7"];
/// That of the standard by which webhooks are signed.
pub(crate) const STANDARD_WEBHOOKS: &[&str] = &["standardwebhooks==1.1.0"];
/// What asks a described interface everything that may be asked, and more.
pub(crate) const SCHEMATHESIS: &[&str] = &["schemathesis==4.32.5"];
/// What KEDA speaks.
pub(crate) const GRPC: &[&str] = &["grpcio==1.85.1", "grpcio-tools==1.85.1"];
/// Triton's own package.
pub(crate) const TRITON: &[&str] = &["tritonclient[http]==2.73.0"];

/// A client of `tests/clients` that needs these packages, ready for its arguments.
///
/// # Panics
/// If they cannot be installed.
pub(crate) fn client(script: &str, packages: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command
        .arg(checkout().join("tests/clients").join(script))
        .env("PYTHONPATH", installed(packages))
        // The checkout stays clean.
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// The directory of the packages, with all that they need.
///
/// # Panics
/// If they cannot be installed.
pub(crate) fn installed(wanted: &[&str]) -> PathBuf {
    cached(&format!("python/{}", wanted.join("+").replace("==", "-")), |staging| {
        let packages = staging.join("packages");
        let python = python_with_pip(staging);
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--target"];
        let status = Command::new(python)
            .args(pip)
            .arg(&packages)
            .args(wanted)
            .envs([("PIP_ROOT_USER_ACTION", "ignore"), ("PIP_USER", "0")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        assert!(status.is_ok_and(|status| status.success()), "pip cannot install {wanted:?}");
        packages
    })
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

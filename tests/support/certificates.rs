//! An authority of the test's own, and certificates from it: good for one run on loopback.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// A certificate and its key, PEM.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// What one authority has signed. Gone when dropped.
#[derive(Debug)]
pub(crate) struct Certificates {
    _directory: TempDir,
    pub(crate) authority: PathBuf,
    /// For 127.0.0.1 and localhost.
    pub(crate) server: Certificate,
    pub(crate) client: Certificate,
}

impl Certificates {
    /// Makes them, with fresh keys.
    ///
    /// # Panics
    /// If that fails.
    pub(crate) fn make() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut params = CertificateParams::new(Vec::new()).expect("no names are good names");
        params.distinguished_name.push(DnType::CommonName, "an authority of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let authority = directory.path().join("ca.pem");
        fs::write(&authority, certificate.pem()).expect("the directory can be written");
        let issuer = Issuer::new(params, key);
        let server = sign(&issuer, directory.path(), "server", ExtendedKeyUsagePurpose::ServerAuth);
        let client = sign(&issuer, directory.path(), "client", ExtendedKeyUsagePurpose::ClientAuth);
        Self { _directory: directory, authority, server, client }
    }
}

fn sign(issuer: &Issuer<'_, KeyPair>, directory: &Path, name: &str, purpose: ExtendedKeyUsagePurpose) -> Certificate {
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let mut params = CertificateParams::new(names).expect("good names");
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages.push(purpose);
    let pair = KeyPair::generate().expect("a key");
    let signed = params.signed_by(&pair, issuer).expect("a certificate");
    let (certificate, key) = (directory.join(name).with_extension("pem"), directory.join(name).with_extension("key"));
    fs::write(&certificate, signed.pem()).expect("the directory can be written");
    fs::write(&key, pair.serialize_pem()).expect("the directory can be written");
    Certificate { certificate, key }
}

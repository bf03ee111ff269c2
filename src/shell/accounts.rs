//! What a nats-server with accounts reads: its configuration, the keys of the roles, the blocks of tenants.
//!
//! It makes files and text. It changes no server: that reads them when it starts, or when it is told to reload.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nkeys::{KeyPair, KeyPairType};

use crate::job::{ModelName, Pool, Priority, Tenant};
use crate::wire::subject;

/// The users that `nats/accounts.conf` knows, by the names that it gives their keys.
pub const ROLES: [&str; 7] = ["system", "setup", "worker", "deadletter", "gateway", "webhook", "scaler"];
/// Accounts that are not a tenant's.
const RESERVED: [&str; 2] = ["SYS", "DARKROOM"];

const SERVER: &str = include_str!("../../nats/server.conf");
const ACCOUNTS: &str = include_str!("../../nats/accounts.conf");
const TENANT: &str = include_str!("../../nats/tenant.conf");
const IMPORT: &str = "{ service: { account: DARKROOM, subject: \"{subject}\" } }";

/// Why keys or a block could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AccountsError {
    /// A file that cannot be written, or that is there already: a key is never overwritten.
    #[error("{path} cannot be written")]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The name is the platform's.
    #[error("{tenant} cannot be a tenant: an account of the platform has that name")]
    Reserved {
        /// The name.
        tenant: Tenant,
    },
    /// Something else than the public half of a user's nkey.
    #[error("{key} is not the public key of a user: it would begin with U and be 56 characters long")]
    PublicKey {
        /// What was given.
        key: String,
    },
    /// No random numbers, or a key that cannot be written down.
    #[error("no key could be made")]
    Key(#[from] nkeys::error::Error),
}

/// Fills a directory for a nats-server: its configuration, no tenants yet, and a key pair for every role, whose seed in
/// `<role>.nk` only its owner can read. Nothing is overwritten.
///
/// # Errors
/// [`AccountsError::Path`] when a file is there already or cannot be written.
pub fn make_directory(directory: &Path) -> Result<Vec<PathBuf>, AccountsError> {
    fs::create_dir_all(directory).map_err(|source| AccountsError::Path { path: directory.to_owned(), source })?;
    let mut written = Vec::new();
    let mut public = String::from("# The public halves of the keys of Darkroom's roles.\n");
    for role in ROLES {
        let path = directory.join(role).with_extension("nk");
        let key = NewKey::new();
        key.write_seed(&path)?;
        public.push_str(&format!("nkey_{role}: {}\n", key.public()));
        written.push(path);
    }
    let tenants = "# The accounts of tenants: `darkroom tenant add` prints their blocks.\n";
    for (name, text) in [
        ("keys.conf", public.as_str()),
        ("tenants.conf", tenants),
        ("accounts.conf", ACCOUNTS),
        ("server.conf", SERVER),
    ] {
        let path = directory.join(name);
        write_new(&path, text, 0o644)?;
        written.push(path);
    }
    Ok(written)
}

/// A new user's key pair.
#[derive(Debug)]
pub struct NewKey {
    pair: KeyPair,
}

impl NewKey {
    /// Makes one.
    #[expect(clippy::new_without_default, reason = "no two are the same")]
    pub fn new() -> Self {
        Self { pair: KeyPair::new_user() }
    }

    /// The half that servers may know.
    pub fn public(&self) -> String {
        self.pair.public_key()
    }

    /// Writes the other half to a new file that only its owner can read.
    ///
    /// # Errors
    /// [`AccountsError::Path`] when the file is there already or cannot be written.
    pub fn write_seed(&self, path: &Path) -> Result<(), AccountsError> {
        write_new(path, &(self.pair.seed()? + "\n"), 0o600)
    }
}

/// The block of a tenant's account for `tenants.conf`: who has the other half of `public_key` may publish requests for
/// `models` with these priorities and pools.
///
/// # Errors
/// [`AccountsError`] when the name or the key will not do.
pub fn tenant_block(
    tenant: &Tenant,
    public_key: &str,
    models: &[ModelName],
    priorities: &[Priority],
    pools: &[Pool],
) -> Result<String, AccountsError> {
    if RESERVED.contains(&tenant.as_str()) {
        return Err(AccountsError::Reserved { tenant: tenant.clone() });
    }
    let is_user = KeyPair::from_public_key(public_key).is_ok_and(|pair| pair.key_pair_type() == KeyPairType::User);
    if !is_user {
        return Err(AccountsError::PublicKey { key: public_key.to_owned() });
    }
    let mut requests = Vec::new();
    for model in models {
        for priority in priorities {
            for pool in pools {
                let subject = subject::request(model, *priority, *pool, tenant);
                requests.push(IMPORT.replace("{subject}", &subject));
            }
        }
    }
    let block = TENANT
        .replace("{tenant}", tenant.as_str())
        .replace("{key}", public_key)
        .replace("{requests}", &requests.join("\n        "));
    Ok(block)
}

/// The seed in the text of a key file: comments and empty lines are passed over, as other tools of NATS do.
///
/// # Errors
/// `InvalidData` when there is none.
pub fn seed_in(text: &str) -> io::Result<String> {
    let seed = text.lines().map(str::trim).find(|line| KeyPair::from_seed(line).is_ok());
    let missing = || io::Error::new(io::ErrorKind::InvalidData, "no line of it is the seed of an nkey, as SU…");
    seed.map(str::to_owned).ok_or_else(missing)
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), AccountsError> {
    let failed = |source| AccountsError::Path { path: path.to_owned(), source };
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(tenant: &str, key: &str) -> Result<String, AccountsError> {
        let models = ["shapes".parse().unwrap(), "other".parse().unwrap()];
        tenant_block(&tenant.parse().unwrap(), key, &models, &[Priority::Normal, Priority::Low], &[Pool::Any])
    }

    #[test]
    fn a_tenant_may_publish_what_is_listed_and_only_as_itself() {
        let key = KeyPair::new_user().public_key();
        let block = block("acme", &key).unwrap();
        assert!(block.contains(&key));
        for placeholder in ["{tenant}", "{key}", "{requests}", "{subject}"] {
            assert!(!block.contains(placeholder), "{placeholder}");
        }
        for line in block.lines().filter(|line| line.contains("darkroom.req.") && line.contains("account:")) {
            assert!(line.trim_end().ends_with(".acme\" } }"), "{line}");
            assert!(!line.contains('*'), "{line}");
        }
        assert_eq!(block.matches("subject: \"darkroom.req.").count(), 4);
    }

    #[test]
    fn names_of_the_platform_and_other_keys_are_refused() {
        let key = KeyPair::new_user().public_key();
        assert!(matches!(block("DARKROOM", &key), Err(AccountsError::Reserved { .. })));
        assert!(matches!(block("SYS", &key), Err(AccountsError::Reserved { .. })));
        for key in [KeyPair::new_account().public_key(), KeyPair::new_user().seed().unwrap(), String::new()] {
            assert!(matches!(block("acme", &key), Err(AccountsError::PublicKey { .. })), "{key}");
        }
    }

    #[test]
    fn a_seed_is_found_among_comments() {
        let seed = KeyPair::new_user().seed().unwrap();
        assert_eq!(seed_in(&format!("# worker\n\n{seed}\n")).unwrap(), seed);
        assert!(seed_in("SUA").is_err());
    }
}

//! Standard Webhooks 1.0: secrets, how they are kept, and what they sign.
//!
//! It makes no secrets up: random bytes come from outside.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::time::{parse_rfc3339, rfc3339};

/// The layout of secrets that this build writes.
const SCHEMA: u32 = 1;
const PREFIX: &str = "whsec_";
/// Bytes of a secret that is made here.
pub const SECRET_BYTES: usize = 32;
const SECRET_BYTES_MIN: usize = 24;
const SECRET_BYTES_MAX: usize = 64;

/// What receiver and sender share. Its text is only given to who asks for it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// Text that is no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a secret is {PREFIX} and the Base64 of {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes")]
pub struct InvalidSecret;

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

impl FromStr for Secret {
    type Err = InvalidSecret;

    fn from_str(text: &str) -> Result<Self, InvalidSecret> {
        let bytes = text.strip_prefix(PREFIX).and_then(|text| STANDARD.decode(text).ok()).ok_or(InvalidSecret)?;
        let has_length = (SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&bytes.len());
        if has_length { Ok(Self(bytes)) } else { Err(InvalidSecret) }
    }
}

impl Secret {
    /// A secret of bytes that nobody can guess.
    pub fn from_random(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(bytes.to_vec())
    }

    /// As receivers are given it.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", STANDARD.encode(&self.0))
    }

    /// The signature of a message with this id and body, sent at `unix_s`.
    pub fn sign(&self, id: &str, unix_s: i64, body: &[u8]) -> String {
        // Keys of any length will do for HMAC.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else { return String::new() };
        mac.update(format!("{id}.{unix_s}.").as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// A tenant's secrets, the newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secrets {
    /// What signs first.
    pub current: Secret,
    /// What signs too for a while, and until when: milliseconds since the Unix epoch.
    pub previous: Vec<(Secret, i64)>,
}

#[derive(Serialize, Deserialize)]
struct SecretsDocument {
    schema: u32,
    current: String,
    #[serde(default)]
    previous: Vec<PreviousDocument>,
}

#[derive(Serialize, Deserialize)]
struct PreviousDocument {
    secret: String,
    until: String,
}

/// Bytes that hold no secrets of ours. It says nothing of what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tenant's secrets are damaged, or another build's")]
pub struct InvalidSecrets;

impl Secrets {
    /// Those of a tenant that had none.
    pub fn first(secret: Secret) -> Self {
        Self { current: secret, previous: Vec::new() }
    }

    /// With a new one, beside which those that are good now sign until `until_unix_ms`.
    #[must_use]
    pub fn rotated(&self, new: Secret, unix_ms: i64, until_unix_ms: i64) -> Self {
        let last = (self.current.clone(), until_unix_ms);
        let older = self.previous.iter().filter(|(_, until)| *until > unix_ms).cloned();
        let previous = std::iter::once(last).chain(older).filter(|(_, until)| *until > unix_ms).collect();
        Self { current: new, previous }
    }

    /// The value of the header `webhook-signature`: one signature of each secret that is good then, the newest first.
    pub fn sign(&self, id: &str, unix_ms: i64, body: &[u8]) -> String {
        let good = self.previous.iter().filter(|(_, until)| *until > unix_ms).map(|(secret, _)| secret);
        let signatures = std::iter::once(&self.current).chain(good);
        signatures.map(|secret| secret.sign(id, unix_ms.div_euclid(1000), body)).collect::<Vec<_>>().join(" ")
    }

    /// As they are kept.
    pub fn encode(&self) -> Vec<u8> {
        let previous = self.previous.iter();
        let document = SecretsDocument {
            schema: SCHEMA,
            current: self.current.reveal(),
            previous: previous
                .map(|(secret, until)| PreviousDocument { secret: secret.reveal(), until: rfc3339(*until) })
                .collect(),
        };
        serde_json::to_vec(&document).unwrap_or_default()
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`InvalidSecrets`].
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidSecrets> {
        let document: SecretsDocument = serde_json::from_slice(bytes).map_err(|_| InvalidSecrets)?;
        if document.schema != SCHEMA {
            return Err(InvalidSecrets);
        }
        let previous = |old: PreviousDocument| {
            let secret = old.secret.parse().map_err(|_| InvalidSecrets)?;
            Ok((secret, parse_rfc3339(&old.until).ok_or(InvalidSecrets)?))
        };
        Ok(Self {
            current: document.current.parse().map_err(|_| InvalidSecrets)?,
            previous: document.previous.into_iter().map(previous).collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(byte: u8) -> Secret {
        Secret::from_random([byte; SECRET_BYTES])
    }

    /// The example of the standard's own libraries.
    #[test]
    fn the_example_of_the_standard_is_signed_as_it_says() {
        let secret: Secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap();
        let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn secrets_read_back_and_never_reach_logs() {
        let one = secret(7);
        assert_eq!(one.reveal().parse(), Ok(one.clone()));
        assert_eq!(format!("{one:?}"), "Secret(…)");
        let secrets = Secrets::first(one.clone()).rotated(secret(8), 0, 1_795_000_000_123);
        assert_eq!(Secrets::decode(&secrets.encode()), Ok(secrets.clone()));
        assert!(!format!("{secrets:?}").contains("Bwc"));
        for bad in ["", "whsec_", "whsec_AAAA", "whsec_!", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", &"whsec_A".repeat(99)] {
            assert_eq!(bad.parse::<Secret>(), Err(InvalidSecret), "{bad}");
        }
        for bad in ["", "{}", r#"{"schema":2,"current":"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}"#] {
            assert_eq!(Secrets::decode(bad.as_bytes()), Err(InvalidSecrets), "{bad}");
        }
    }

    #[test]
    fn after_a_rotation_the_new_secret_signs_first_and_the_old_one_for_a_while() {
        let signatures = |secrets: &Secrets, unix_ms| -> Vec<String> {
            secrets.sign("id", unix_ms, b"body").split(' ').map(str::to_owned).collect()
        };
        let by = |byte, unix_ms: i64| secret(byte).sign("id", unix_ms / 1000, b"body");
        let secrets = Secrets::first(secret(1));
        assert_eq!(signatures(&secrets, 5_000), [by(1, 5_000)]);
        let secrets = secrets.rotated(secret(2), 5_000, 10_000);
        assert_eq!(signatures(&secrets, 9_999), [by(2, 9_999), by(1, 9_999)]);
        assert_eq!(signatures(&secrets, 10_000), [by(2, 10_000)]);
        // Again before the first one is over: three.
        let secrets = secrets.rotated(secret(3), 9_000, 20_000);
        assert_eq!(signatures(&secrets, 9_500), [by(3, 9_500), by(2, 9_500), by(1, 9_500)]);
        let secrets = secrets.rotated(secret(4), 30_000, 30_000);
        assert_eq!((signatures(&secrets, 30_000), secrets.previous.len()), (vec![by(4, 30_000)], 0), "at once");
    }
}

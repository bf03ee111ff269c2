//! Identifiers that stand as one token in NATS subjects, KV keys and object keys.
//!
//! A token is 1 to 64 characters of `[A-Za-z0-9_-]`: legal in all three places, free of wildcards and separators.

use std::fmt;
use std::str::FromStr;

use super::limits::TOKEN_LENGTH_MAX;

/// A string that cannot be an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to {TOKEN_LENGTH_MAX} characters of A-Z a-z 0-9 _ -, and as a tenant neither models nor loras")]
pub struct InvalidToken;

/// Whether `text` may stand as an identifier.
pub fn is_token(text: &str) -> bool {
    (1..=TOKEN_LENGTH_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// Folders of the object store that are not a tenant's.
const NO_TENANTS: &[&str] = &["models", "loras"];

macro_rules! token {
    ($(#[$doc:meta])* $name:ident) => {
        token! { $(#[$doc])* $name, except &[] }
    };
    ($(#[$doc:meta])* $name:ident, except $reserved:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The token as it stands in subjects and keys.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidToken;

            fn from_str(text: &str) -> Result<Self, InvalidToken> {
                let reserved: &[&str] = $reserved;
                if is_token(text) && !reserved.contains(&text) { Ok(Self(text.to_owned())) } else { Err(InvalidToken) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

token! {
    /// Names one job of a tenant; chosen by the publisher, or derived from the stream sequence.
    JobId
}
token! {
    /// Who a job belongs to.
    Tenant, except NO_TENANTS
}
token! {
    /// Names a model on the bus.
    ModelName
}
token! {
    /// Names a LoRA: its file is `<name>.safetensors`.
    LoraName
}
token! {
    /// Names one running `generate` process.
    WorkerId
}

/// Reads and shows an enum with `ALL` and `as_str` by its name on the wire.
macro_rules! by_name {
    ($name:ident) => {
        impl std::str::FromStr for $name {
            type Err = $crate::job::InvalidToken;

            fn from_str(text: &str) -> Result<Self, $crate::job::InvalidToken> {
                Self::ALL.iter().copied().find(|kind| kind.as_str() == text).ok_or($crate::job::InvalidToken)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(self.as_str())
            }
        }
    };
}
pub(super) use by_name;

impl JobId {
    /// The id of a request that was published without one: publishers know the sequence from their PubAck.
    pub fn from_stream_sequence(sequence: u64) -> Self {
        Self(format!("seq-{sequence}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_what_subjects_keys_and_paths_all_allow() {
        let long = "a".repeat(TOKEN_LENGTH_MAX);
        for good in ["a", "A-b_9", "0199-aa", long.as_str()] {
            assert_eq!(good.parse::<JobId>().unwrap().as_str(), good);
        }
        let too_long = "a".repeat(TOKEN_LENGTH_MAX + 1);
        for bad in ["", "*", ">", "a.b", "a b", "a/b", "..", "ü", "a\n", too_long.as_str()] {
            assert_eq!(bad.parse::<JobId>(), Err(InvalidToken), "{bad:?}");
        }
    }
}

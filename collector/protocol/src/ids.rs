//! Identities. Each is its own type, checked where it enters, so that no string is taken for another.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// An identity that came from outside does not have its form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what} {value:?} is not {expected}")]
pub struct InvalidId {
    what: &'static str,
    value: String,
    expected: &'static str,
}

impl InvalidId {
    fn new(what: &'static str, value: &str, expected: &'static str) -> Self {
        Self { what, value: value.chars().take(80).collect(), expected }
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $expected:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// The identity as it stands on the wire.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(value: &str) -> Result<Self, InvalidId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(value) { Ok(Self(value.into())) } else { Err(InvalidId::new($what, value, $expected)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(value: String) -> Result<Self, InvalidId> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id! {
    /// An agent's identity: a UUID that it keeps in its state folder.
    NodeId, "node", "a UUID in lower case", |v| uuid::Uuid::parse_str(v).is_ok_and(|u| u.hyphenated().to_string() == v)
}

text_id! {
    /// A job's identity: 1 to 64 characters of `a-z`, `0-9` and `-`.
    JobId, "job", "1 to 64 of a-z, 0-9 and -", |v| {
        (1..=64).contains(&v.len()) && v.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    }
}

impl NodeId {
    /// A fresh random identity.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().hyphenated().to_string().into())
    }
}

/// A fencing token: the generation of the collector that gave it in the upper 32 bits, a counter below.
/// A greater token was given later, across restarts of the collector too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct Token(pub u64);

impl Token {
    /// The first token of a generation is one above this.
    pub fn before_generation(generation: u32) -> Self {
        Self(u64::from(generation) << 32)
    }

    /// The token after this one; `None` where its generation has no more.
    pub fn next(self) -> Option<Self> {
        (self.0 as u32 != u32::MAX).then_some(Self(self.0.wrapping_add(1)))
    }

    /// The generation of the collector that gave it.
    pub fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// SHA-256 of a blob: its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 32 bytes, for a protobuf field.
    pub fn to_bytes(self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(&self.0)
    }
}

impl TryFrom<&[u8]> for Hash {
    type Error = InvalidId;

    fn try_from(value: &[u8]) -> Result<Self, InvalidId> {
        value.try_into().map(Self).map_err(|_| InvalidId::new("hash", &hex::encode(value), "32 bytes"))
    }
}

impl FromStr for Hash {
    type Err = InvalidId;

    fn from_str(value: &str) -> Result<Self, InvalidId> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(value, &mut bytes)
            .map_err(|_| InvalidId::new("hash", value, "64 hex digits"))?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Hash {
    type Error = InvalidId;

    fn try_from(value: String) -> Result<Self, InvalidId> {
        value.parse()
    }
}

impl From<Hash> for String {
    fn from(hash: Hash) -> Self {
        hash.to_string()
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", hex::encode(&self.0[..6]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_checked_where_they_enter() {
        assert!("digits-1".parse::<JobId>().is_ok());
        for bad in ["", "Digits", "a/b", "a b", &"x".repeat(65)] {
            assert!(bad.parse::<JobId>().is_err(), "{bad:?}");
        }
        let node = NodeId::random();
        assert_eq!(node.as_str().parse(), Ok(node.clone()));
        assert!(node.as_str().to_uppercase().parse::<NodeId>().is_err(), "one node has one spelling");
        assert!(serde_json::from_str::<JobId>("\"../etc\"").is_err());
    }

    #[test]
    fn tokens_of_a_later_generation_are_greater() {
        let last = Token(Token::before_generation(1).0 + 0xffff_fffe).next().unwrap();
        assert_eq!((last.generation(), last.next()), (1, None), "it does not run into the next generation");
        assert!(Token::before_generation(2).next() > Some(last));
        assert_eq!(Token::before_generation(7).next().unwrap().generation(), 7);
        assert_eq!(Token(u64::MAX).next(), None);
    }

    #[test]
    fn hash_round_trips() {
        let hash = Hash::of(b"abc");
        assert_eq!(hash.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(Hash::try_from(&hash.to_bytes()[..]), Ok(hash));
        assert!(Hash::try_from(&[0u8; 31][..]).is_err());
    }
}

//! What decides the bits of a result, beside its arguments.
//!
//! Invariant: two machines with equal [`Numerics`] compute equal bits; whatever may change a bit
//! changes the value, or else [`crate::VERSION`].

use std::fmt;
use std::str::FromStr;

use crate::{SetupError, VERSION};

/// The numerics that a `sync` job pins: only nodes whose own are equal may compute its shards.
///
/// Written as `avx512f/f32/1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Numerics {
    /// The instruction set of the matrix kernels: `avx512f`, `fma` (AVX2), `neon`, or `scalar-` and the
    /// architecture. The order of a sum's terms is that of the vectors' lanes. On x86-64 denormals are
    /// flushed to zero; each name implies whether they are.
    pub instruction_set: String,
    /// The type of parameters, activations and gradients: `f32`.
    pub precision: String,
    /// [`VERSION`] of the kernel.
    pub kernel_version: u32,
}

/// A text is not `instruction set/precision/version`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("numerics are {text:?}; expected is instruction set/precision/version, as in avx512f/f32/1")]
pub struct NumericsParseError {
    /// What was read.
    pub text: String,
}

impl Numerics {
    /// Those of this machine and this build.
    #[must_use]
    pub fn detect() -> Self {
        Self { instruction_set: instruction_set(), precision: "f32".to_owned(), kernel_version: VERSION }
    }
}

impl fmt::Display for Numerics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.instruction_set, self.precision, self.kernel_version)
    }
}

impl FromStr for Numerics {
    type Err = NumericsParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| NumericsParseError { text: text.chars().take(MAX_SHOWN).collect() })
    }
}

/// Characters of a foreign text that an error repeats.
const MAX_SHOWN: usize = 80;
/// Longest name of an instruction set or precision.
const MAX_NAME: usize = 32;

fn parse(text: &str) -> Option<Numerics> {
    let mut parts = text.split('/');
    let instruction_set = name(parts.next()?)?;
    let precision = name(parts.next()?)?;
    let version = parts.next()?;
    // `u32::from_str` takes "+1" and "01", which `Display` would not give back.
    let kernel_version = version.parse().ok().filter(|number: &u32| number.to_string() == version)?;
    parts.next().is_none().then_some(Numerics { instruction_set, precision, kernel_version })
}

fn name(part: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    let fine = !part.is_empty() && part.len() <= MAX_NAME && part.chars().all(allowed);
    fine.then(|| part.to_owned())
}

/// What `gemm` chooses: `init_gemm_fn` of `gemm-common` 0.19 asks in this order.
#[cfg(target_arch = "x86_64")]
fn instruction_set() -> String {
    if is_x86_feature_detected!("avx512f") {
        return "avx512f".to_owned();
    }
    if is_x86_feature_detected!("fma") { "fma".to_owned() } else { "scalar-x86_64".to_owned() }
}

#[cfg(target_arch = "aarch64")]
fn instruction_set() -> String {
    let neon = std::arch::is_aarch64_feature_detected!("neon");
    if neon { "neon".to_owned() } else { "scalar-aarch64".to_owned() }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instruction_set() -> String {
    format!("scalar-{}", std::env::consts::ARCH)
}

/// Refuses a processor on which `gemm` would panic: having looked for one feature, it demands all of
/// its level (`pulp`'s V4 and V3). Xeon Phi has AVX-512F alone; hypervisors mask what they like.
#[cfg(target_arch = "x86_64")]
pub(crate) fn check_processor() -> Result<(), SetupError> {
    macro_rules! first_missing {
        ($($feature:tt),*) => {
            [$(($feature, is_x86_feature_detected!($feature))),*].into_iter().find(|(_, there)| !there)
        };
    }
    let v3 = || first_missing!("sse4.2", "ssse3", "popcnt", "avx", "avx2", "bmi1", "bmi2", "fma", "lzcnt");
    let v4 = || first_missing!("avx512bw", "avx512cd", "avx512dq", "avx512vl").or_else(v3);
    let (chosen, missing) = match instruction_set().as_str() {
        "avx512f" => ("avx512f", v4()),
        "fma" => ("fma", v3()),
        _ => ("scalar", None),
    };
    missing.map_or(Ok(()), |(missing, _)| Err(SetupError::Processor { chosen, missing }))
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn check_processor() -> Result<(), SetupError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let numerics: Numerics = "avx512f/f32/1".parse().unwrap();
        assert_eq!(numerics.instruction_set, "avx512f");
        assert_eq!((numerics.precision.as_str(), numerics.kernel_version), ("f32", 1));
        assert_eq!(numerics.to_string(), "avx512f/f32/1");
        let here = Numerics::detect();
        assert_eq!(here.to_string().parse(), Ok(here));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in
            ["", "avx512f", "a/f32", "a/f32/x", "a/f32/1/2", "/f32/1", "a/f32/+1", "a/f32/01", "A/f32/1"]
        {
            assert!(text.parse::<Numerics>().is_err(), "{text}");
        }
        let long = "x".repeat(10_000).parse::<Numerics>().unwrap_err();
        assert_eq!(long.text.len(), MAX_SHOWN);
    }
}

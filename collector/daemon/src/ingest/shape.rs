//! Bounds a push by a walk over its bytes, before anything is allocated for it.
//!
//! A protobuf message of two bytes becomes a structure of two hundred, so that a limit on bytes alone
//! would let 4 MiB grow to hundreds. This walk follows the fields of OTLP that hold messages or repeated
//! strings, and counts them.
//!
//! Invariant: it allocates nothing, and its depth is bounded by [`MAX_DEPTH`].

/// Most data points of a push: a node with dozens of GPUs has some hundred.
pub(super) const MAX_POINTS: usize = 8192;

/// Most messages of a push: a point, its attributes and their values, for each of [`MAX_POINTS`], twice
/// over. At most about 200 bytes each once decoded: 26 MB.
pub(super) const MAX_MESSAGES: usize = 131_072;

/// Most messages inside each other: six down to a point's attribute, and some for lists.
pub(super) const MAX_DEPTH: usize = 16;

/// Why a push cannot be walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misshapen {
    /// It is not protobuf, or ends early.
    Malformed,
    /// It exceeds a limit.
    TooMany,
}

/// OTLP's messages that matter to the walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Request,
    ResourceMetrics,
    Resource,
    EntityRef,
    ScopeMetrics,
    Scope,
    Metric,
    Numbers,
    Histograms,
    ExponentialHistograms,
    Summaries,
    Number,
    Histogram,
    ExponentialHistogram,
    Summary,
    Exemplar,
    KeyValue,
    AnyValue,
    Array,
    KeyValueList,
    /// Anything that is repeated and has nothing of interest inside.
    Leaf,
}

impl Kind {
    /// What a length-delimited field holds, where that is to be counted.
    fn field(self, number: u64) -> Option<Self> {
        Some(match (self, number) {
            (Self::Request, 1) => Self::ResourceMetrics,
            (Self::ResourceMetrics, 1) => Self::Resource,
            (Self::ResourceMetrics, 2) => Self::ScopeMetrics,
            (Self::Resource, 3) => Self::EntityRef,
            (Self::EntityRef, 3 | 4) | (Self::ExponentialHistogram, 8 | 9) | (Self::Summary, 6) => Self::Leaf,
            (Self::ScopeMetrics, 1) => Self::Scope,
            (Self::ScopeMetrics, 2) => Self::Metric,
            (Self::Metric, 5 | 7) => Self::Numbers,
            (Self::Metric, 9) => Self::Histograms,
            (Self::Metric, 10) => Self::ExponentialHistograms,
            (Self::Metric, 11) => Self::Summaries,
            (Self::Numbers, 1) => Self::Number,
            (Self::Histograms, 1) => Self::Histogram,
            (Self::ExponentialHistograms, 1) => Self::ExponentialHistogram,
            (Self::Summaries, 1) => Self::Summary,
            (Self::Number, 5) | (Self::Histogram, 8) | (Self::ExponentialHistogram, 11) => Self::Exemplar,
            (Self::Resource | Self::ExponentialHistogram | Self::KeyValueList, 1)
            | (Self::Scope, 3)
            | (Self::Metric, 12)
            | (Self::Number | Self::Summary | Self::Exemplar, 7)
            | (Self::Histogram, 9) => Self::KeyValue,
            (Self::KeyValue, 2) | (Self::Array, 1) => Self::AnyValue,
            (Self::AnyValue, 5) => Self::Array,
            (Self::AnyValue, 6) => Self::KeyValueList,
            _ => return None,
        })
    }

    fn is_point(self) -> bool {
        matches!(self, Self::Number | Self::Histogram | Self::ExponentialHistogram | Self::Summary)
    }
}

/// What was counted.
#[derive(Default)]
struct Shape {
    points: usize,
    messages: usize,
}

/// Whether a push is well-formed enough and small enough to be decoded.
pub(super) fn check(push: &[u8]) -> Result<(), Misshapen> {
    Shape::default().walk(push, Kind::Request, 0)
}

impl Shape {
    fn walk(&mut self, mut bytes: &[u8], kind: Kind, depth: usize) -> Result<(), Misshapen> {
        self.messages += 1;
        self.points += usize::from(kind.is_point());
        if self.messages > MAX_MESSAGES || self.points > MAX_POINTS || depth > MAX_DEPTH {
            return Err(Misshapen::TooMany);
        }
        if kind == Kind::Leaf {
            return Ok(());
        }
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            match key & 7 {
                0 => drop(varint(&mut bytes)?),
                1 => drop(take(&mut bytes, 8)?),
                2 => {
                    let length = varint(&mut bytes)?;
                    let content = take(&mut bytes, length)?;
                    if let Some(kind) = kind.field(key >> 3) {
                        self.walk(content, kind, depth + 1)?;
                    }
                }
                5 => drop(take(&mut bytes, 4)?),
                _ => return Err(Misshapen::Malformed),
            }
        }
        Ok(())
    }
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], Misshapen> {
    let length = usize::try_from(length).map_err(|_| Misshapen::Malformed)?;
    let (content, rest) = bytes.split_at_checked(length).ok_or(Misshapen::Malformed)?;
    *bytes = rest;
    Ok(content)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Misshapen> {
    prost::encoding::decode_varint(bytes).map_err(|_| Misshapen::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `content` as field `number` of a message, over and over.
    fn nested(numbers: &[u8], content: &[u8]) -> Vec<u8> {
        numbers.iter().rev().fold(content.to_vec(), |content, number| {
            let mut bytes = vec![number << 3 | 2];
            prost::encoding::encode_varint(content.len() as u64, &mut bytes);
            bytes.extend(content);
            bytes
        })
    }

    #[test]
    fn small_messages_are_counted_before_they_grow() {
        let points = |number: usize| nested(&[1, 2, 2, 7], &[1 << 3 | 2, 0].repeat(number));
        assert_eq!(check(&points(MAX_POINTS)), Ok(()));
        assert_eq!(check(&points(MAX_POINTS + 1)), Err(Misshapen::TooMany));
        for path in [&[1, 1][..], &[1, 2, 2, 5, 1], &[1, 2, 2, 9, 1], &[1, 2, 2, 5, 1, 5], &[1, 1, 3]] {
            let field = match path {
                [1, 1] | [1, 2, 2, 5, 1, 5] => {
                    if path.len() == 2 {
                        1
                    } else {
                        7
                    }
                }
                [.., 5, 1] => 5,
                [.., 9, 1] => 8,
                _ => 3,
            };
            let many = nested(path, &[field << 3 | 2, 0].repeat(MAX_MESSAGES));
            assert_eq!(check(&many), Err(Misshapen::TooMany), "{path:?}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let lists = |depth: usize| {
            let mut path = vec![1, 1, 1, 2];
            path.extend([5, 1].repeat(depth));
            nested(&path, &[])
        };
        assert_eq!(check(&lists(6)), Ok(()));
        assert_eq!(check(&lists(7)), Err(Misshapen::TooMany));
        assert_eq!(check(&lists(100_000)), Err(Misshapen::TooMany));
    }

    #[test]
    fn what_is_not_protobuf_is_malformed() {
        for bytes in [
            &[0xff][..],
            &[10, 5, 0],
            &[10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[3],
            &[9, 0],
            &[13],
        ] {
            assert_eq!(check(bytes), Err(Misshapen::Malformed), "{bytes:?}");
        }
        assert_eq!(check(&[]), Ok(()));
    }
}

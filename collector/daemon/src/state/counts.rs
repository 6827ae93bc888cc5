//! What was taken in and what was not, by reason.
//!
//! Invariant: whatever the ingest path does not use is counted here under a reason; nothing is dropped in
//! silence.

use wattmill_protocol::catalogue::{COLLECTOR_INGEST_REJECTED, COLLECTOR_INGESTED_POINTS};
use wattmill_protocol::exposition::Point;

/// Why a push, a frame or a point did not count. Orders and indexes [`Counts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reason {
    /// A push over the size limit.
    TooLarge,
    /// A push that is not what it says it is.
    Malformed,
    /// A push with more messages, points or nesting than is taken.
    TooMany,
    /// A push that names another node than its content does.
    IdentityMismatch,
    /// A resource without a node's identity.
    BadIdentity,
    /// A point of a metric that the catalogue does not have; ignored.
    UnknownMetric,
    /// A point of another kind, unit or temporality than the catalogue says.
    WrongForm,
    /// A point without one of its labels, or with one that is too long.
    BadAttribute,
    /// A point without a time.
    NoTime,
    /// NaN, an infinity or no value.
    NotFinite,
    /// Below zero where nothing can be.
    Negative,
    /// A driver's blank that stands for "not available".
    Sentinel,
    /// More than the counter can hold.
    OutOfRange,
    /// A frame from further in the future than clocks may be apart.
    Future,
    /// A frame that is not newer than what its node said before: a duplicate, or out of order.
    Late,
    /// A counter that went down without a new start.
    Backwards,
    /// A node whose clock or spool went back; its frame was taken.
    SteppedBack,
    /// A node that was found to claim a share of its host that others have.
    HostOverlap,
    /// A GPU that was found to be metered by an earlier node as well.
    GpuOverlap,
    /// A node beyond the number that is kept.
    TooManyNodes,
    /// A series beyond the number that is kept of a node.
    TooManySeries,
}

impl Reason {
    /// Every reason, in order.
    pub(crate) const ALL: [Self; 21] = [
        Self::TooLarge,
        Self::Malformed,
        Self::TooMany,
        Self::IdentityMismatch,
        Self::BadIdentity,
        Self::UnknownMetric,
        Self::WrongForm,
        Self::BadAttribute,
        Self::NoTime,
        Self::NotFinite,
        Self::Negative,
        Self::Sentinel,
        Self::OutOfRange,
        Self::Future,
        Self::Late,
        Self::Backwards,
        Self::SteppedBack,
        Self::HostOverlap,
        Self::GpuOverlap,
        Self::TooManyNodes,
        Self::TooManySeries,
    ];

    /// The value of the `reason` label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::TooMany => "too_many",
            Self::IdentityMismatch => "identity_mismatch",
            Self::BadIdentity => "bad_identity",
            Self::UnknownMetric => "unknown_metric",
            Self::WrongForm => "wrong_form",
            Self::BadAttribute => "bad_attribute",
            Self::NoTime => "no_time",
            Self::NotFinite => "not_finite",
            Self::Negative => "negative",
            Self::Sentinel => "sentinel",
            Self::OutOfRange => "out_of_range",
            Self::Future => "future",
            Self::Late => "late",
            Self::Backwards => "backwards",
            Self::SteppedBack => "stepped_back",
            Self::HostOverlap => "host_overlap",
            Self::GpuOverlap => "gpu_overlap",
            Self::TooManyNodes => "too_many_nodes",
            Self::TooManySeries => "too_many_series",
        }
    }
}

/// Points taken, and what was not by [`Reason`]; since the collector started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    ingested: u64,
    rejected: [u64; Reason::ALL.len()],
}

impl Counts {
    /// Counts `points` as taken.
    pub(crate) fn ingest(&mut self, points: usize) {
        self.ingested += points as u64;
    }

    /// Counts one of `reason`.
    pub(crate) fn reject(&mut self, reason: Reason) {
        self.reject_many(reason, 1);
    }

    /// Counts `number` of `reason`.
    pub(crate) fn reject_many(&mut self, reason: Reason, number: u64) {
        self.rejected[reason as usize] += number;
    }

    #[cfg(test)]
    /// Points taken.
    pub(crate) fn ingested(&self) -> u64 {
        self.ingested
    }

    /// What was counted under `reason`.
    pub(crate) fn rejected(&self, reason: Reason) -> u64 {
        self.rejected[reason as usize]
    }

    /// Adds what another count saw.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.ingested += other.ingested;
        for (mine, theirs) in self.rejected.iter_mut().zip(other.rejected) {
            *mine += theirs;
        }
    }

    /// The counts for `/metrics`, every reason from the start so that increases are seen.
    pub(crate) fn points(&self) -> Vec<Point> {
        let rejected = Reason::ALL
            .iter()
            .map(|r| Point::new(&COLLECTOR_INGEST_REJECTED, &[r.as_str()], self.rejected(*r) as f64));
        std::iter::once(Point::new(&COLLECTOR_INGESTED_POINTS, &[], self.ingested as f64))
            .chain(rejected)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_index_their_counts() {
        let mut names = std::collections::HashSet::new();
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert!(names.insert(reason.as_str()));
        }
        let mut counts = Counts::default();
        counts.reject(Reason::Late);
        let mut sum = Counts::default();
        sum.ingest(3);
        sum.merge(&counts);
        sum.merge(&counts);
        assert_eq!((sum.ingested(), sum.rejected(Reason::Late), sum.rejected(Reason::Future)), (3, 2, 0));
        let points = sum.points();
        assert!(points.contains(&Point::new(&COLLECTOR_INGEST_REJECTED, &["late"], 2.0)));
        assert_eq!(points.len(), 1 + Reason::ALL.len());
    }
}

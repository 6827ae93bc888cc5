//! Several agents on one host: who counts what.
//!
//! Invariant: the host's scopes, its peak and each GPU count once in the roll-up. Where nodes of a host
//! (one machine-id) account for more than the whole of it, those that joined later are left out; a GPU
//! belongs to the node that joined first among those that meter it. A claim lapses once its node has
//! been silent for [`CLAIM_SECONDS`], so that an agent that was installed anew is counted soon.

use std::collections::{BTreeMap, HashMap};

use wattmill_protocol::NodeId;
use wattmill_protocol::catalogue as metrics;

use super::frame::{NANOS_PER_SECOND, NodeFrame};
use super::nodes::{Node, Verdict};

/// Seconds of silence, by the host's own clock, after which a node no longer stands in the way of
/// another of its host: longer than a restart, shorter than anyone waits for figures.
pub(crate) const CLAIM_SECONDS: u64 = 300;

/// How far shares may sum above the whole: three thirds in binary do.
const FRACTION_TOLERANCE: f64 = 1e-6;

/// Index entries that are kept before the first clean-up.
const SMALLEST_INDEX: usize = 1024;

/// Which nodes are on a host, and which may meter a GPU. Derived from the nodes.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    machines: HashMap<Box<str>, Vec<NodeId>>,
    gpus: HashMap<Box<str>, Vec<NodeId>>,
    /// Entries of `gpus` when it was last cleaned of those that are gone.
    cleaned: usize,
}

impl Hosts {
    /// The index of `nodes`.
    pub(crate) fn of(nodes: &BTreeMap<NodeId, Node>) -> Self {
        let mut hosts = Self::default();
        for node in nodes.values() {
            hosts.place(node, None);
            hosts.note_gpus(node);
        }
        hosts.cleaned = hosts.gpus.len();
        hosts
    }

    /// Notes the host of `node`, which was on the host `before`.
    pub(crate) fn place(&mut self, node: &Node, before: Option<&str>) {
        if before == Some(&*node.machine_id) {
            return;
        }
        if let Some(others) = before.and_then(|machine_id| self.machines.get_mut(machine_id)) {
            others.retain(|id| *id != node.id);
        }
        self.machines.entry(node.machine_id.clone()).or_default().push(node.id.clone());
        if let Some(machine_id) = before
            && self.machines.get(machine_id).is_some_and(Vec::is_empty)
        {
            self.machines.remove(machine_id);
        }
    }

    /// Notes the GPUs of `node`.
    pub(crate) fn note_gpus(&mut self, node: &Node) {
        for uuid in node.latest.gpus.keys() {
            match self.gpus.get_mut(uuid) {
                Some(owners) if owners.contains(&node.id) => {}
                Some(owners) => owners.push(node.id.clone()),
                None => {
                    self.gpus.insert(uuid.clone(), vec![node.id.clone()]);
                }
            }
        }
    }

    /// Forgets GPUs that no node has any more, once they are many.
    pub(crate) fn clean(&mut self, nodes: &BTreeMap<NodeId, Node>) {
        if self.gpus.len() <= SMALLEST_INDEX.max(2 * self.cleaned) {
            return;
        }
        for (uuid, owners) in &mut self.gpus {
            owners.retain(|id| nodes.get(id).is_some_and(|node| node.latest.gpus.contains_key(uuid)));
        }
        self.gpus.retain(|_, owners| !owners.is_empty());
        self.cleaned = self.gpus.len();
    }

    /// Entries of the index of GPUs.
    #[cfg(test)]
    pub(crate) fn gpus_noted(&self) -> usize {
        self.gpus.len()
    }

    /// What others count of that which `frame` is about.
    pub(crate) fn verdict(&self, nodes: &BTreeMap<NodeId, Node>, frame: &NodeFrame) -> Verdict {
        let joined = nodes.get(&frame.node).map_or(0, |node| node.joined_unix_nanos);
        let joined = if joined == 0 { frame.time_unix_nanos } else { joined };
        let earlier = |id: &NodeId| {
            let silent_at = frame.time_unix_nanos.saturating_sub(CLAIM_SECONDS * NANOS_PER_SECOND);
            let other = if *id == frame.node { None } else { nodes.get(id) };
            other.filter(|other| {
                let claims = other.newest_unix_nanos > 0 && !other.retired;
                let first = (other.joined_unix_nanos, &other.id) < (joined, &frame.node);
                claims && first && other.newest_unix_nanos >= silent_at
            })
        };
        let neighbours = self.machines.get(&frame.machine_id).map_or(&[][..], Vec::as_slice);
        let mut claims: Vec<_> = neighbours.iter().filter_map(earlier).collect();
        claims.sort_by_key(|node| (node.joined_unix_nanos, &node.id));
        let fits = |share: f64| share <= 1.0 + FRACTION_TOLERANCE;
        let claimed = claims.iter().fold(0.0, |claimed, node| {
            if fits(claimed + node.host_fraction) { claimed + node.host_fraction } else { claimed }
        });

        let uuids = frame.samples.iter().filter(|sample| {
            sample.is(&metrics::GPU_UP)
                || sample.is(&metrics::GPU_ENERGY_JOULES)
                || sample.is(&metrics::GPU_POWER_WATTS)
        });
        let foreign = uuids.map(|sample| sample.label(0)).filter(|&uuid| {
            let owners = self.gpus.get(uuid).map_or(&[][..], Vec::as_slice);
            owners.iter().filter_map(earlier).any(|node| node.latest.gpus.contains_key(uuid))
        });
        Verdict {
            host_excluded: !fits(claimed + frame.host_fraction),
            foreign_gpus: foreign.map(Box::from).collect(),
        }
    }
}

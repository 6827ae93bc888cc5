//! What one event leads to.

use std::collections::BTreeSet;

use wattmill_protocol::{JobId, NodeId};

use crate::event::{Effect, Message};
use crate::record::Write;

/// The writes and effects of a step, in order, and which jobs' records changed: each is written once, as it
/// stands at the step's end.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) writes: Vec<Write>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) changed: BTreeSet<JobId>,
}

impl Step {
    pub(crate) fn send(&mut self, node: &NodeId, message: Message) {
        self.effects.push(Effect::Send { node: node.clone(), message });
    }
}

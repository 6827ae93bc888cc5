//! The state as records for the store.
//!
//! A record has a key and a value; writing it replaces the one before it, and none is ever deleted: a
//! node has one record for its counters, totals and position, and one for each hour of its ring, under
//! the hour's place in the ring. Only what changed is written again, every 10 s: 0.5 kB and the current
//! hour (at most 4.3 kB, about 1 kB compressed) for each node that pushed.
//!
//! Invariants:
//! - All records of a [`Checkpoint`] are of one instant. Written in **one** transaction, they leave the
//!   store with one consistent whole; only then are its positions durable.
//! - What is read back is exactly what was written (every bit of every column), or an error: each value
//!   has a version and a CRC-32.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use prost::Message;
use wattmill_protocol::NodeId;

use super::State;
use super::hosts::Hosts;
use super::nodes::Node;
use super::ring::{CHUNK_SLOTS, CHUNKS, Chunk};
use super::stored::StoredNode;

/// Version of the records. A program reads its own and the one before, once there is one.
const VERSION: u8 = 1;

/// Bytes before the content, in every version: version, and CRC-32 of version and content.
const HEADER_BYTES: usize = 5;

/// Bytes of a chunk's content: the hour and three columns.
const CHUNK_BYTES: usize = 8 + 3 * 4 * CHUNK_SLOTS;

/// A stored record cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PersistError {
    /// It ends early, or its CRC is not that of its content.
    #[error("telemetry record {key:?} is damaged")]
    Damaged {
        /// Which.
        key: String,
    },
    /// It was written by another version.
    #[error(
        "telemetry record {key:?} has version {version}, this program reads {VERSION}; run the version that wrote it"
    )]
    Version {
        /// Which.
        key: String,
        /// Its version.
        version: u8,
    },
    /// Its content is whole, but not what it should be.
    #[error("telemetry record {key:?} holds {what}")]
    Content {
        /// Which.
        key: String,
        /// What it holds that it should not.
        what: &'static str,
    },
}

/// A record of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Its key: `node/ID` or `ring/ID/PLACE`.
    pub(crate) key: String,
    /// Its value, replaced as a whole.
    pub(crate) value: Vec<u8>,
}

/// A record that cannot be read back, and why.
#[derive(Debug)]
pub(crate) struct Damaged {
    /// As it was found.
    pub(crate) record: Record,
    /// What is wrong with it.
    pub(crate) error: PersistError,
}

/// What changed, for one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// To be written, each in place of the one of its key.
    pub(crate) records: Vec<Record>,
    /// For the next checkpoint's `since`, once this one is committed. If it is not, the next one takes
    /// the earlier sequence again.
    pub(crate) sequence: u64,
    /// Spool positions of the nodes that changed: durable once this is committed. Those of a checkpoint
    /// of everything, taken right after a restore, are all that are durable already.
    pub(crate) positions: Vec<(NodeId, u64)>,
}

/// Copies of what changed, not encoded yet.
pub(super) struct Changes {
    sequence: u64,
    nodes: Vec<(NodeId, StoredNode)>,
    chunks: Vec<(NodeId, Chunk)>,
}

impl State {
    /// Copies what changed since the checkpoint with the sequence `since`, or everything.
    pub(super) fn changes_since(&self, since: Option<u64>) -> Changes {
        let changed = |at: u64| since.is_none_or(|since| at > since);
        let mut changes = Changes { sequence: self.sequence, nodes: Vec::new(), chunks: Vec::new() };
        for node in self.nodes.values().filter(|node| changed(node.changed)) {
            changes.nodes.push((node.id.clone(), StoredNode::of(node)));
            let chunks = node.ring.chunks().filter(|chunk| changed(chunk.changed));
            changes.chunks.extend(chunks.map(|chunk| (node.id.clone(), chunk.clone())));
        }
        changes
    }

    /// The state of all records of a store, in any order, and those that cannot be read: a node that has
    /// lost its record is a new one, and an hour that is lost is a gap.
    ///
    /// # Errors
    /// When a record is of a version that this program does not know: it must not write over it.
    pub(super) fn from_records(
        records: impl IntoIterator<Item = Record>,
    ) -> Result<(Self, Vec<Damaged>), PersistError> {
        let mut state = Self::default();
        let (mut chunks, mut damaged) = (Vec::new(), Vec::new());
        for record in records {
            match decode(&record) {
                Ok(Content::Node(node)) => {
                    state.nodes.insert(node.id.clone(), *node);
                }
                Ok(Content::Chunk(id, chunk)) => chunks.push((id, chunk)),
                Err(error @ PersistError::Version { .. }) => return Err(error),
                Err(error) => damaged.push(Damaged { record, error }),
            }
        }
        for (id, chunk) in chunks {
            if let Some(node) = state.nodes.get_mut(&id) {
                node.ring.restore(*chunk);
            }
        }
        state.hosts = Hosts::of(&state.nodes);
        Ok((state, damaged))
    }
}

/// What a record holds.
enum Content {
    Node(Box<Node>),
    Chunk(NodeId, Box<Chunk>),
}

fn decode(record: &Record) -> Result<Content, PersistError> {
    let content = open(record)?;
    let error = |what| PersistError::Content { key: record.key.clone(), what };
    let mut parts = record.key.split('/');
    let (kind, id) = (parts.next(), parts.next().and_then(|id| id.parse::<NodeId>().ok()));
    match (kind, id) {
        (Some("node"), Some(id)) => {
            let stored = StoredNode::decode(content).map_err(|_| error("no node"))?;
            Ok(Content::Node(Box::new(stored.node(id).ok_or_else(|| error("an unknown source"))?)))
        }
        (Some("ring"), Some(id)) => {
            let chunk = decode_chunk(content).ok_or_else(|| error("no hour of a ring"))?;
            Ok(Content::Chunk(id, Box::new(chunk)))
        }
        _ => Err(error("something under a key that names no node")),
    }
}

impl Changes {
    /// The records of what changed.
    pub(super) fn encode(self) -> Checkpoint {
        let positions = self.nodes.iter().filter_map(|(id, node)| Some((id.clone(), node.position?)));
        let positions = positions.collect();
        let nodes = self.nodes.iter().map(|(id, node)| seal(format!("node/{id}"), &node.encode_to_vec()));
        let chunks = self.chunks.iter().map(|(id, chunk)| {
            seal(format!("ring/{id}/{}", chunk.number % CHUNKS as u64), &encode_chunk(chunk))
        });
        Checkpoint { records: nodes.chain(chunks).collect(), sequence: self.sequence, positions }
    }
}

fn seal(key: String, content: &[u8]) -> Record {
    let mut value = Vec::with_capacity(HEADER_BYTES + content.len());
    value.push(VERSION);
    value.extend_from_slice(&crc(VERSION, content).to_le_bytes());
    value.extend_from_slice(content);
    Record { key, value }
}

fn open(record: &Record) -> Result<&[u8], PersistError> {
    let damaged = || PersistError::Damaged { key: record.key.clone() };
    let (header, content) = record.value.split_at_checked(HEADER_BYTES).ok_or_else(damaged)?;
    let (version, stored) = header.split_first().ok_or_else(damaged)?;
    if stored != crc(*version, content).to_le_bytes() {
        return Err(damaged());
    }
    if *version != VERSION {
        return Err(PersistError::Version { key: record.key.clone(), version: *version });
    }
    Ok(content)
}

fn crc(version: u8, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[version]);
    hasher.update(content);
    hasher.finalize()
}

fn encode_chunk(chunk: &Chunk) -> Vec<u8> {
    let mut raw = Vec::with_capacity(CHUNK_BYTES);
    raw.extend_from_slice(&chunk.number.to_le_bytes());
    for column in [&chunk.joules, &chunk.flops, &chunk.seconds] {
        raw.extend(column.iter().flat_map(|value| value.to_le_bytes()));
    }
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory does not fail; were it to, the record would be refused when it is read.
    let _ = encoder.write_all(&raw);
    encoder.finish().unwrap_or_default()
}

fn decode_chunk(content: &[u8]) -> Option<Chunk> {
    let mut raw = Vec::with_capacity(CHUNK_BYTES + 1);
    DeflateDecoder::new(content).take(CHUNK_BYTES as u64 + 1).read_to_end(&mut raw).ok()?;
    let (number, columns) = raw.split_first_chunk::<8>()?;
    if columns.len() != CHUNK_BYTES - 8 {
        return None;
    }
    let mut chunk = Chunk::empty(u64::from_le_bytes(*number));
    let (values, _) = columns.as_chunks::<4>();
    let mut values = values.iter().map(|bytes| f32::from_le_bytes(*bytes));
    for column in [&mut chunk.joules, &mut chunk.flops, &mut chunk.seconds] {
        column.iter_mut().zip(&mut values).for_each(|(place, value)| *place = value);
    }
    Some(chunk)
}

//! Content-addressed blobs. What was put is durable at once; what nobody names is an orphan, and allowed.

use std::collections::BTreeMap;

use wattmill_protocol::Hash;

/// Vectors of `f32` by the hash of their bytes.
#[derive(Debug, Default)]
pub struct Blobs(BTreeMap<Hash, Vec<f32>>);

impl Blobs {
    /// Stores a vector and returns its name.
    pub fn put(&mut self, values: Vec<f32>) -> Hash {
        let name = name(&values);
        self.0.insert(name, values);
        name
    }

    /// The vector of that name.
    pub fn get(&self, name: Hash) -> Option<&[f32]> {
        self.0.get(&name).map(Vec::as_slice)
    }

    /// Forgets a vector.
    pub fn remove(&mut self, name: Hash) {
        self.0.remove(&name);
    }
}

/// What a vector is called: the hash of its little-endian bytes.
pub fn name(values: &[f32]) -> Hash {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Hash::of(&bytes)
}

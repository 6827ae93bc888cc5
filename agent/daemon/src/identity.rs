//! Who this node is, and which host it runs on.
//!
//! Invariant: the node's identity is made once and kept in the state folder; it never changes while that
//! folder stands. The host's identity is the same for every agent on it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use wattmill_protocol::{Hash, NodeId};

/// File of the node's identity in the state folder.
const NODE_ID_FILE: &str = "node-id";

/// Identities of the node and its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The node: one agent with its state folder.
    pub node: NodeId,
    /// The host, shared by all its agents.
    pub machine_id: String,
    /// The host's boot; `None` where the kernel does not tell, and then no boot equals another.
    pub boot_id: Option<String>,
}

/// The identity cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("cannot keep the node's identity in {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} does not hold a node identity: put back the right one, or remove the file to become a new node", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: wattmill_protocol::ids::InvalidId,
    },
}

/// Reads who this node is, and makes a new identity on the first start.
///
/// # Errors
/// When the state folder cannot be used, or holds something that is no identity.
pub fn load(state_dir: &Path, machine_id_file: &Path, procfs_root: &Path) -> Result<Identity, IdentityError> {
    let node = node_id(&state_dir.join(NODE_ID_FILE))?;
    let boot_id = fs::read_to_string(procfs_root.join("sys/kernel/random/boot_id"))
        .ok()
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty());
    let machine_id = machine_id(machine_id_file).unwrap_or_else(|| {
        // Of the running kernel, where that is known: all agents of the host then have the same, in
        // containers too.
        let (derived, from) = match &boot_id {
            Some(boot) => (derived_machine_id(boot), "boot: the host is another one after the next boot"),
            None => (derived_machine_id(node.as_str()), "node: its agents count as hosts of their own"),
        };
        tracing::warn!(
            file = %machine_id_file.display(), machine_id = derived,
            "no machine-id; derived one from this host's {from}"
        );
        derived
    });
    Ok(Identity { node, machine_id, boot_id })
}

fn node_id(path: &Path) -> Result<NodeId, IdentityError> {
    match fs::read_to_string(path) {
        Ok(text) => {
            text.trim().parse().map_err(|source| IdentityError::Invalid { path: path.to_owned(), source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let node = NodeId::random();
            write_atomically(path, &format!("{node}\n"))
                .map_err(|source| IdentityError::Io { path: path.to_owned(), source })?;
            Ok(node)
        }
        Err(source) => Err(IdentityError::Io { path: path.to_owned(), source }),
    }
}

/// The file stands whole under its name, or not at all, whatever is cut off when.
fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn machine_id(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let id = text.trim();
    // systemd writes "uninitialized" into images that have not booted yet.
    let valid = (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    valid.then(|| id.to_owned())
}

fn derived_machine_id(from: &str) -> String {
    Hash::of(format!("wattmill machine-id {from}").as_bytes()).to_string().chars().take(32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_made_once_and_kept() {
        let state = tempfile::tempdir().unwrap();
        let machine = state.path().join("machine-id");
        fs::write(&machine, "3d1219c7c4c5404aaa1f6d2a48adfda4\n").unwrap();
        let first = load(state.path(), &machine, Path::new("/nonexistent")).unwrap();
        let second = load(state.path(), &machine, Path::new("/nonexistent")).unwrap();
        assert_eq!(first, second);
        assert_eq!(first.machine_id, "3d1219c7c4c5404aaa1f6d2a48adfda4");
        assert_eq!(first.boot_id, None);
        assert!(!state.path().join("node-id.new").exists());
    }

    #[test]
    fn agents_of_a_host_without_machine_id_agree_on_one() {
        let root = tempfile::tempdir().unwrap();
        let random = root.path().join("sys/kernel/random");
        fs::create_dir_all(&random).unwrap();
        fs::write(random.join("boot_id"), "6d2a48ad-0000-4000-8000-3d1219c7c4c5\n").unwrap();
        let agent = |name: &str| {
            let state = root.path().join(name);
            fs::create_dir_all(&state).unwrap();
            load(&state, Path::new("/nonexistent"), root.path()).unwrap()
        };
        let (one, two) = (agent("one"), agent("two"));
        assert!(one.node != two.node && one.machine_id == two.machine_id && one.machine_id.len() == 32);
        fs::write(random.join("boot_id"), "another\n").unwrap();
        assert_ne!(agent("one").machine_id, one.machine_id);
    }

    #[test]
    fn a_host_without_machine_id_keeps_a_derived_one() {
        let state = tempfile::tempdir().unwrap();
        let machine = state.path().join("machine-id");
        for text in ["", "uninitialized\n", "\n"] {
            fs::write(&machine, text).unwrap();
            let identity = load(state.path(), &machine, Path::new("/nonexistent")).unwrap();
            assert_eq!(identity.machine_id, derived_machine_id(identity.node.as_str()), "{text:?}");
            assert_eq!(identity.machine_id.len(), 32);
        }
    }

    #[test]
    fn a_foreign_file_is_not_overwritten() {
        let state = tempfile::tempdir().unwrap();
        fs::write(state.path().join("node-id"), "something else").unwrap();
        let error = load(state.path(), Path::new("/nonexistent"), Path::new("/nonexistent")).unwrap_err();
        assert!(error.to_string().contains("node-id"), "{error}");
        assert_eq!(fs::read_to_string(state.path().join("node-id")).unwrap(), "something else");
    }
}

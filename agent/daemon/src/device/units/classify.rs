//! Which unit a cgroup is part of, by its path alone.
//!
//! Pure. Invariant: a path is part of one unit at most. That is the outermost job, pod or container on it; where
//! there is none, the outermost unit of systemd's; and else its outermost cgroup. What lies inside belongs to it:
//! a container in a job is the job's. Names can be printed and are bounded, whatever somebody called a cgroup.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::{Unit, UnitKind};

/// Longest name in bytes. Systemd's may have 255: they are cut, and told apart by a checksum.
pub const MAX_NAME_BYTES: usize = 128;
/// What the checksum of a name that was cut takes: `~` and eight digits.
const CHECKSUM_BYTES: usize = 9;
/// Hexadecimal digits of a container's identity, as runtimes write it.
const CONTAINER_ID: std::ops::RangeInclusive<usize> = 12..=64;
/// Hexadecimal digits of an identity that stands alone: shorter ones may be anything.
const BARE_CONTAINER_ID: usize = 64;
/// Longest identity of a pod: a UUID has 36 characters, a static pod's hash 32.
const MAX_POD_ID: usize = 64;
/// What runtimes write before a container's identity, in a scope or in a cgroup that they made themselves.
const RUNTIMES: [&str; 7] =
    ["docker-", "cri-containerd-", "crio-", "libpod-", "nerdctl-", "containerd-", "podman-"];
/// Suffixes of systemd's units that have processes. Slices only hold other units.
const SYSTEMD: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];
/// Parents of OpenPBS's and Torque's jobs: the hook's under cgroup v1, under v2, and older ones.
const PBS_PARENTS: [&[&str]; 5] = [
    &["pbs_jobs.service", "jobid"],
    &["pbs_jobs.service", "jobs"],
    &["pbspro.service", "jobid"],
    &["pbspro"],
    &["torque"],
];

/// The kinds that are told apart.
pub type Kinds = BTreeSet<UnitKind>;

/// The unit that the cgroup at `path` is part of, and how many components of the path are its own: those of the
/// cgroup that holds all of it. `None` for the root, for what lies outside the namespace (`/..`), and where no kind
/// of `kinds` fits.
pub fn classify(path: &[u8], kinds: &Kinds) -> Option<(Unit, usize)> {
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
    if parts.iter().any(|part| *part == b"..") {
        return None;
    }
    // Names that mean something are ASCII: what is not text fits none.
    let texts: Vec<&str> = parts.iter().map(|part| std::str::from_utf8(part).unwrap_or("")).collect();
    let unit = |kind, name: &[u8]| Unit { kind, name: printable(name) };
    for end in 1..=texts.len() {
        if let Some((kind, name)) = workload(&texts[..end], kinds) {
            return Some((unit(kind, name.as_bytes()), end));
        }
    }
    let systemd =
        |text: &&str| SYSTEMD.iter().any(|suffix| text.len() > suffix.len() && text.ends_with(suffix));
    if let Some(at) = texts.iter().position(systemd).filter(|_| kinds.contains(&UnitKind::Systemd)) {
        return Some((unit(UnitKind::Systemd, parts[at]), at + 1));
    }
    let first = parts.first().filter(|_| kinds.contains(&UnitKind::Cgroup))?;
    Some((unit(UnitKind::Cgroup, &[b"/", *first].concat()), 1))
}

/// The job, pod or container whose cgroup is the last of `path`.
fn workload(path: &[&str], kinds: &Kinds) -> Option<(UnitKind, String)> {
    let (last, parents) = path.split_last()?;
    UnitKind::ALL.into_iter().filter(|kind| kinds.contains(kind)).find_map(|kind| {
        let name = match kind {
            UnitKind::Slurm => slurm(last, parents),
            UnitKind::Pbs => pbs(last, parents),
            UnitKind::Pod => pod(last, parents),
            UnitKind::Container => container(last, parents),
            UnitKind::Systemd | UnitKind::Cgroup => None,
        };
        Some((kind, name?))
    })
}

/// v2: `…/slurmstepd.scope/job_5` or, with several slurmd on a host, `…/NODE_slurmstepd.scope/job_5`. v1:
/// `/slurm/uid_7/job_5` or `/slurm_NODE/uid_7/job_5`.
fn slurm(last: &str, parents: &[&str]) -> Option<String> {
    let id = last.strip_prefix("job_").filter(|id| !id.is_empty())?;
    let of_scope = |parent: &str| parent == "slurmstepd.scope" || parent.ends_with("_slurmstepd.scope");
    let of_v1 = |slurm: &str| slurm == "slurm" || slurm.starts_with("slurm_");
    let fits = match parents {
        [.., parent] if of_scope(parent) => true,
        [.., slurm, uid] => of_v1(slurm) && uid.starts_with("uid_"),
        _ => false,
    };
    fits.then(|| id.to_owned())
}

fn pbs(last: &str, parents: &[&str]) -> Option<String> {
    if parents.last() == Some(&"pbspro.slice") {
        let name = last.strip_prefix("pbspro-")?.strip_suffix(".slice")?;
        return Some(unescape(name));
    }
    PBS_PARENTS.iter().any(|above| parents.ends_with(above)).then(|| last.to_owned())
}

/// systemd's driver: `kubepods-burstable-podUID.slice`, its dashes as underscores. cgroupfs: `/kubepods/…/podUID`.
/// containerd that was told of one and drives the other: `kubepods-podUID.slice:cri-containerd:ID`.
fn pod(last: &str, parents: &[&str]) -> Option<String> {
    let of_kubepods = |part: &str| part.contains("kubepods");
    let slice = last.split_once(".slice").map(|(name, _)| name).filter(|name| of_kubepods(name));
    let id = match slice {
        Some(name) => name.rsplit_once("-pod")?.1,
        None => last.strip_prefix("pod").filter(|_| parents.iter().any(|part| of_kubepods(part)))?,
    };
    let id = id.replace('_', "-");
    let fits =
        (1..=MAX_POD_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    fits.then_some(id)
}

fn container(last: &str, parents: &[&str]) -> Option<String> {
    let parent = parents.last().copied().unwrap_or_default();
    let scope = last.strip_suffix(".scope");
    let body = scope.unwrap_or(last);
    if let Some(id) = RUNTIMES.iter().find_map(|runtime| body.strip_prefix(runtime)).filter(|id| is_id(id)) {
        return Some(id.to_owned());
    }
    if let Some((_, id)) = last.rsplit_once(':').filter(|(_, id)| is_id(id)) {
        return Some(id.to_owned());
    }
    if body.len() == BARE_CONTAINER_ID && is_id(body) {
        return Some(body.to_owned());
    }
    let lxc =
        last.strip_prefix("lxc.payload.").or((parent == "lxc" || parent == "lxc.payload").then_some(last));
    if let Some(name) = lxc.filter(|name| !name.is_empty()) {
        return Some(name.to_owned());
    }
    // Registered with systemd-machined: nspawn's, LXC's and libvirt's, virtual machines too.
    let machine =
        scope.filter(|_| parent == "machine.slice").and_then(|scope| scope.strip_prefix("machine-"));
    let nspawn = || last.strip_prefix("systemd-nspawn@")?.strip_suffix(".service");
    let libvirt = || {
        let name = last.strip_suffix(".libvirt-qemu").or_else(|| last.strip_suffix(".libvirt-lxc"));
        name.filter(|_| parent == "machine")
    };
    machine.or_else(nspawn).or_else(libvirt).filter(|name| !name.is_empty()).map(unescape)
}

fn is_id(text: &str) -> bool {
    CONTAINER_ID.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Undoes systemd's escapes, `\x2d` for a dash. What would not be text stays escaped.
fn unescape(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    let mut rest = name;
    while let Some((before, after)) = rest.split_once("\\x") {
        text.push_str(before);
        let byte = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(u8::is_ascii);
        match byte {
            Some(byte) => text.push(char::from(byte)),
            None => text.push_str("\\x"),
        }
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    text + rest
}

/// A name that can be shown and kept: control characters, those that turn the direction of text, and bytes that are
/// no text as `\xNN`; [`MAX_NAME_BYTES`] at most.
pub fn printable(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for char in chunk.valid().chars() {
            if char.is_control() || is_format(char) {
                escape(char.encode_utf8(&mut [0; 4]).as_bytes(), &mut text);
            } else {
                text.push(char);
            }
        }
        escape(chunk.invalid(), &mut text);
    }
    if text.len() <= MAX_NAME_BYTES {
        return text;
    }
    let mut end = MAX_NAME_BYTES - CHECKSUM_BYTES;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    format!("{text}~{:08x}", crc32fast::hash(name))
}

fn escape(bytes: &[u8], text: &mut String) {
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "\\x{byte:02x}");
    }
}

/// Characters without a width of their own that change how others are shown.
fn is_format(char: char) -> bool {
    matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::UnitKind::{Cgroup, Container, Pbs, Pod, Slurm, Systemd};
    use super::*;

    const ID: &str = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d";
    const POD: &str = "72f7f152-440c-66ac-9084-e0fc1d8a910c";

    fn every() -> Kinds {
        UnitKind::ALL.into_iter().collect()
    }

    fn of(path: &str, kinds: &[UnitKind]) -> Option<(UnitKind, String, usize)> {
        let found = classify(path.as_bytes(), &kinds.iter().copied().collect());
        found.map(|(unit, parts)| (unit.kind, unit.name, parts))
    }

    /// Paths as `/proc/PID/cgroup` shows them; `ID` and `POD` stand for identities, `POD_` for one with underscores.
    /// With each the unit, and how many components are its own.
    const PATHS: [(&str, UnitKind, &str, usize); 49] = [
        // systemd
        ("/init.scope", Systemd, "init.scope", 1),
        ("/system.slice/nginx.service", Systemd, "nginx.service", 2),
        ("/system.slice/system-getty.slice/getty@tty1.service", Systemd, "getty@tty1.service", 3),
        ("/system.slice/dev-hugepages.mount", Systemd, "dev-hugepages.mount", 2),
        ("/user.slice/user-1000.slice/session-3.scope", Systemd, "session-3.scope", 3),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service",
            Systemd,
            "user@1000.service",
            3,
        ),
        ("/system.slice/wattmill-agent.service", Systemd, "wattmill-agent.service", 2),
        (
            "/system.slice/system-wattmill\\x2dworker.slice/wattmill-worker@1.service",
            Systemd,
            "wattmill-worker@1.service",
            3,
        ),
        ("/system.slice/containerd.service", Systemd, "containerd.service", 2),
        ("/system.slice/libpod-conmon-ID.scope", Systemd, "libpod-conmon-ID.scope", 2),
        ("/user.slice", Cgroup, "/user.slice", 1),
        // Containers
        ("/system.slice/docker-ID.scope", Container, "ID", 2),
        ("/system.slice/docker-ID.scope/init.scope", Container, "ID", 2),
        ("/docker/ID", Container, "ID", 2),
        ("/docker/ID/system.slice/nginx.service", Container, "ID", 2),
        ("/ID", Container, "ID", 1),
        ("/machine.slice/libpod-ID.scope/container", Container, "ID", 2),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
            Container,
            "ID",
            5,
        ),
        ("/libpod_parent/libpod-ID", Container, "ID", 2),
        ("/system.slice/nerdctl-ID.scope", Container, "ID", 2),
        ("/default/ID", Container, "ID", 2),
        ("/lxc.payload.web1/system.slice/ssh.service", Container, "web1", 1),
        ("/lxc/101/ns/init.scope", Container, "101", 2),
        ("/lxc.monitor.web1", Cgroup, "/lxc.monitor.web1", 1),
        ("/machine.slice/machine-debian.scope/payload", Container, "debian", 2),
        ("/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/emulator", Container, "qemu-1-vm", 2),
        ("/machine.slice/systemd-nspawn@web.service/payload", Container, "web", 2),
        ("/machine/qemu-1-vm.libvirt-qemu/vcpu0", Container, "qemu-1-vm", 2),
        // Pods
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podPOD_.slice/cri-containerd-ID.scope",
            Pod,
            "POD",
            3,
        ),
        ("/kubepods.slice/kubepods-podPOD_.slice/crio-ID.scope", Pod, "POD", 2),
        ("/kubepods/besteffort/podPOD/ID", Pod, "POD", 3),
        ("/kubepods/podPOD/ID", Pod, "POD", 2),
        (
            "/kubepods/burstable/pod2a102854b4969b2ce98dc329c86b4fb2",
            Pod,
            "2a102854b4969b2ce98dc329c86b4fb2",
            3,
        ),
        (
            "/system.slice/containerd.service/kubepods-burstable-podPOD_.slice:cri-containerd:ID",
            Pod,
            "POD",
            3,
        ),
        (
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podPOD_.slice/cri-containerd-ID.scope",
            Pod,
            "POD",
            3,
        ),
        ("/docker/ID/kubelet/kubepods/podPOD/ID", Container, "ID", 2),
        ("/kubepods.slice", Cgroup, "/kubepods.slice", 1),
        // Slurm
        ("/system.slice/slurmstepd.scope/job_1392969/step_0/user/task_0", Slurm, "1392969", 3),
        ("/system.slice/n1_slurmstepd.scope/job_42/step_batch/user/task_special", Slurm, "42", 3),
        ("/system.slice/slurmstepd.scope/system", Systemd, "slurmstepd.scope", 2),
        ("/slurm/uid_1000/job_123/step_0/task_0", Slurm, "123", 3),
        ("/slurm_n1/uid_1000/job_123/step_extern", Slurm, "123", 3),
        ("/system.slice/slurmstepd.scope/job_7/step_0/user/docker/ID", Slurm, "7", 3),
        ("/slurm/uid_1000", Cgroup, "/slurm", 1),
        // PBS
        ("/pbs_jobs.service/jobid/12345.server", Pbs, "12345.server", 3),
        ("/pbs_jobs.service/jobs/12345.server/tasks", Pbs, "12345.server", 3),
        ("/pbspro.slice/pbspro-12345.head\\x2d1.slice", Pbs, "12345.head-1", 2),
        ("/pbspro/12[3].server", Pbs, "12[3].server", 2),
        ("/pbs_jobs.service/jobid", Systemd, "pbs_jobs.service", 1),
    ];

    fn real(text: &str) -> String {
        text.replace("POD_", &POD.replace('-', "_")).replace("POD", POD).replace("ID", ID)
    }

    #[test]
    fn paths_of_the_world() {
        for (path, kind, name, parts) in PATHS {
            let found = of(&real(path), &UnitKind::ALL);
            assert_eq!(found, Some((kind, real(name), parts)), "{path}");
        }
        assert_eq!(of("/", &UnitKind::ALL), None, "the root holds everything");
        assert_eq!(of("/../system.slice/a.service", &UnitKind::ALL), None, "another namespace's");
    }

    #[test]
    fn kinds_that_are_not_wanted_are_of_what_holds_them() {
        let pod = real("/kubepods/podPOD/ID");
        assert_eq!(of(&pod, &[Container]), Some((Container, ID.to_owned(), 3)));
        assert_eq!(of(&pod, &[Systemd, Slurm]), None);
        assert_eq!(of(&pod, &[Cgroup]), Some((Cgroup, "/kubepods".to_owned(), 1)));
        let docker = real("/system.slice/docker-ID.scope");
        assert_eq!(of(&docker, &[Systemd]), Some((Systemd, real("docker-ID.scope"), 2)));
        let job = "/system.slice/slurmstepd.scope/job_5/step_0";
        assert_eq!(of(job, &[Systemd]), Some((Systemd, "slurmstepd.scope".to_owned(), 2)));
        assert_eq!(of(job, &[Container]), None);
    }

    #[test]
    fn names_that_only_look_alike_are_none() {
        for path in ["/job_5", "/uid_5/job_5", "/a/job_", "/podcast", "/x/pod-1", "/docker/abc", "/deadbeef"]
        {
            let found = of(path, &[Slurm, Pbs, Pod, Container, Systemd]);
            assert_eq!(found, None, "{path}");
        }
        assert_eq!(of("/.service", &[Systemd]), None);
    }

    #[test]
    fn hostile_names_are_escaped_and_bounded() {
        let name = |bytes: &[u8]| classify(bytes, &every()).unwrap().0.name;
        assert_eq!(name(b"/a\nb\"c.service"), "a\\x0ab\"c.service");
        assert_eq!(name(b"/\xff\xfe"), "/\\xff\\xfe");
        assert_eq!(name("/evil\u{202e}.service".as_bytes()), "evil\\xe2\\x80\\xae.service");
        assert_eq!(name("/größe.service".as_bytes()), "größe.service");
        let long = |last: char| name(format!("/{}{last}.service", "ü".repeat(300)).as_bytes());
        assert!(long('a').len() <= MAX_NAME_BYTES && long('a') != long('b'), "{}", long('a'));
        assert_eq!(unescape("a\\x2db\\xzz\\xff\\x2"), "a-b\\xzz\\xff\\x2");
    }

    proptest! {
        #[test]
        fn any_path_is_of_one_unit(path in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some((unit, parts)) = classify(&path, &every()) {
                prop_assert!(parts >= 1 && unit.name.len() <= MAX_NAME_BYTES);
                prop_assert!(!unit.name.chars().any(char::is_control));
            }
        }

        #[test]
        fn what_lies_inside_a_unit_is_the_same_units(path in 0..PATHS.len(), inside in 0..PATHS.len()) {
            let (path, kind, name, parts) = PATHS[path];
            let is_workload = !matches!(kind, Systemd | Cgroup);
            let nested = real(path) + &real(PATHS[inside].0);
            if is_workload {
                prop_assert_eq!(of(&nested, &UnitKind::ALL), Some((kind, real(name), parts)));
            }
        }
    }
}

//! GPUs of AMD and Intel among the kernel's DRM devices, and what each is.
//!
//! Invariant: a card is known by what is its own (AMD's `unique_id`), else by where it sits; never by its number.
//! A card of NVIDIA's is NVML's, and an integrated one without a meter of its own is none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::gpu_metrics::{MAX_TABLE_BYTES, Table};
use crate::device::ReadError;
use crate::device::sysfs::{self, Uevent};

/// Most DRM devices that are looked at: a partitioned MI300 shows 64 for eight boards.
const MAX_CARDS: usize = 512;
/// Begin of the identity of an AMD GPU that has one of its own.
pub const AMD_PREFIX: &str = "AMD-";
/// Begin of the identity of a GPU that is known by where it sits.
pub const PCI_PREFIX: &str = "PCI-";
/// MI300A, by its PCI ID: CPU and GPU in one package, with the tables and sensors of an accelerator.
const MI300A: &str = "1002:74A0";

/// By which driver, and so from which files, a card is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Driver {
    Amdgpu,
    I915,
    Xe,
}

impl Driver {
    fn named(name: &str) -> Option<Self> {
        match name {
            "amdgpu" => Some(Self::Amdgpu),
            "i915" => Some(Self::I915),
            "xe" => Some(Self::Xe),
            _ => None,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Amdgpu => "amdgpu",
            Self::I915 => "i915",
            Self::Xe => "xe",
        }
    }
}

/// A GPU that has a meter.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Card {
    /// `AMD-…` or `PCI-…`.
    pub(super) uuid: String,
    pub(super) driver: Driver,
    /// The driver with its version.
    pub(super) driver_version: String,
    /// What it is called, or its PCI ID.
    pub(super) model: String,
    /// PCI address.
    pub(super) pci: String,
    /// `cardN`.
    pub(super) index: String,
    /// Folder of the DRM device.
    pub(super) drm: PathBuf,
    /// Folder of the PCI device.
    pub(super) device: PathBuf,
    /// Folder of its sensors.
    pub(super) hwmon: PathBuf,
    /// Whether its power is that of a package with a CPU in it.
    pub(super) is_package: bool,
}

/// A card that is not metered here, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Passed {
    /// PCI address.
    pub pci: String,
    /// Why.
    pub why: &'static str,
}

/// What a look at the DRM devices found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) cards: Vec<Card>,
    pub(super) passed: Vec<Passed>,
    /// Why cards may be missing.
    pub(super) error: Option<ReadError>,
}

/// Cards under `sysfs_root`, in the order of their addresses. `shared` are identities that several cards were
/// seen to have: it is remembered, so that none goes on as another when that is lost.
pub(super) fn list(sysfs_root: &Path, shared: &mut BTreeSet<String>) -> Found {
    let folder = sysfs_root.join("class/drm");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::default(),
        Err(error) => return Found { error: Some(ReadError::io(&folder, &error)), ..Found::default() },
    };
    let names = entries.filter_map(Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| is_card(name)).take(MAX_CARDS).collect();
    names.sort_unstable();
    let mut found = Found::default();
    for name in names {
        match look(&folder.join(&name), name) {
            Ok(Look::Card(card)) => found.cards.push(*card),
            Ok(Look::Passed(passed)) => found.passed.push(passed),
            Ok(Look::Nothing) => {}
            // It disappeared while it was looked at.
            Err(error) if error.reason == "missing" => {}
            Err(error) => found.error = Some(error),
        }
    }
    found.cards.sort_by(|a, b| a.pci.cmp(&b.pci));
    tell_apart(&mut found.cards, shared);
    found
}

/// `card0`, but not its connectors (`card0-DP-1`) and render nodes (`renderD128`).
fn is_card(name: &str) -> bool {
    name.strip_prefix("card").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

enum Look {
    Card(Box<Card>),
    Passed(Passed),
    Nothing,
}

fn look(drm: &Path, index: String) -> Result<Look, ReadError> {
    let device = drm.join("device");
    let uevent = Uevent::read(&device).map_err(|error| ReadError::io(&device.join("uevent"), &error))?;
    // Partitions of a GPU and virtual displays are no PCI devices.
    let Some(pci) = uevent.get("PCI_SLOT_NAME").filter(|pci| is_address(pci)) else {
        return Ok(Look::Nothing);
    };
    let passed = |why| Ok(Look::Passed(Passed { pci: pci.to_owned(), why }));
    let driver = match uevent.get("DRIVER") {
        Some("nvidia" | "nouveau") => return passed("NVIDIA's: NVML meters it"),
        driver => driver.and_then(Driver::named),
    };
    // The display of a BMC, or a GPU that nobody drives.
    let Some(driver) = driver else { return Ok(Look::Nothing) };
    let Some(hwmon) = hwmon(&device, driver) else {
        return passed(match driver {
            Driver::Amdgpu => "amdgpu shows no sensors for it",
            Driver::I915 | Driver::Xe => {
                "no sensors: an integrated GPU, inside the CPU package that RAPL meters"
            }
        });
    };
    let id = uevent.get("PCI_ID").unwrap_or("unknown").to_ascii_uppercase();
    if !has_meter(&hwmon, driver) {
        return passed("its driver shows neither power nor energy");
    }
    let card = Card {
        uuid: identity(&device, driver, pci),
        driver,
        driver_version: driver_version(&device, driver),
        model: model(&device, &id, driver),
        pci: pci.to_owned(),
        index,
        drm: drm.to_owned(),
        is_package: driver == Driver::Amdgpu && is_package(&device, &hwmon, &id),
        device,
        hwmon,
    };
    Ok(Look::Card(Box::new(card)))
}

/// `0000:c1:00.0`, the domain of 4 digits or more.
fn is_address(text: &str) -> bool {
    (12..=16).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b':' || b == b'.')
}

/// The folder of the driver's own sensors: a card may carry others, such as a fan's.
fn hwmon(device: &Path, driver: Driver) -> Option<PathBuf> {
    let folders = fs::read_dir(device.join("hwmon")).into_iter().flatten().filter_map(Result::ok);
    let mut folders: Vec<PathBuf> = folders.map(|entry| entry.path()).collect();
    folders.sort_unstable();
    let is_its =
        |folder: &PathBuf| sysfs::text(&folder.join("name")).is_ok_and(|name| name.trim() == driver.as_str());
    folders.into_iter().find(is_its)
}

fn has_meter(hwmon: &Path, driver: Driver) -> bool {
    let names: &[&str] = match driver {
        Driver::Amdgpu => &["power1_average", "power1_input"],
        Driver::I915 | Driver::Xe => &["energy1_input", "energy2_input"],
    };
    names.iter().any(|name| hwmon.join(name).exists())
}

/// The card's own number where it has one: of 16 hex digits, and not blank.
fn identity(device: &Path, driver: Driver, pci: &str) -> String {
    let own = (driver == Driver::Amdgpu).then(|| sysfs::text(&device.join("unique_id")).ok()).flatten();
    let own = own.map(|id| id.trim().trim_start_matches("0x").to_ascii_lowercase());
    let is_one = |id: &String| {
        (8..=32).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_hexdigit())
            && !id.bytes().all(|b| b == b'0')
            && !id.bytes().all(|b| b == b'f')
    };
    match own.filter(is_one) {
        Some(id) => format!("{AMD_PREFIX}{id}"),
        None => format!("{PCI_PREFIX}{pci}"),
    }
}

/// The two dies of one module may show one number: each is then known by its place too.
fn tell_apart(cards: &mut [Card], shared: &mut BTreeSet<String>) {
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    for card in cards.iter() {
        *seen.entry(&card.uuid).or_default() += 1;
    }
    shared.extend(seen.into_iter().filter(|(_, times)| *times > 1).map(|(uuid, _)| uuid.to_owned()));
    for card in cards.iter_mut().filter(|card| shared.contains(&card.uuid)) {
        card.uuid = format!("{}@{}", card.uuid, card.pci);
    }
}

/// The version of a driver that was built beside the kernel, else the kernel's.
fn driver_version(device: &Path, driver: Driver) -> String {
    match sysfs::text(&device.join("driver/module/version")) {
        Ok(version) if !version.trim().is_empty() => format!("{} {}", driver.as_str(), version.trim()),
        _ => {
            let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
            format!("{} of Linux {kernel}", driver.as_str())
        }
    }
}

fn model(device: &Path, id: &str, driver: Driver) -> String {
    let product = sysfs::text(&device.join("product_name")).unwrap_or_default();
    let product = product.trim();
    let vendor = if driver == Driver::Amdgpu { "AMD" } else { "Intel" };
    match product.chars().any(char::is_control) || product.is_empty() {
        true => format!("{vendor} {id}"),
        false => product.to_owned(),
    }
}

/// Whether a card's power is that of a package with a CPU in it: only APUs have a rail `vddnb` and tables of
/// layout 2 or 3, but for the MI300A.
fn is_package(device: &Path, hwmon: &Path, id: &str) -> bool {
    let rail = sysfs::text(&hwmon.join("in1_label")).is_ok_and(|label| label.trim() == "vddnb");
    rail || id == MI300A
        || sysfs::bytes(&device.join("gpu_metrics"), MAX_TABLE_BYTES)
            .is_ok_and(|bytes| Table::new(&bytes).is_some_and(|table| table.is_of_apu()))
}

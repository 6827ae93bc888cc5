//! Power and energy sensors of boards and power supplies: ACPI's power meter, PMBus supplies, shunts (ina2xx),
//! and whatever else shows such channels under hwmon.
//!
//! Invariant: each is known by its chip, where that sits and the channel's label, and counts for no scope: they
//! contain or overlap what else is measured. A value that cannot be is an error by its reason, and 0 is none.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::METERED_ELSEWHERE;
use crate::clock;
use crate::counter::Limits;
use crate::device::sensor::{MAX_SENSOR_WATTS, Sensor, SensorId, sound_watts};
use crate::device::{Answer, ReadError, Reading, io_reason, sysfs};

/// How often chips are looked for again: drivers load after the agent, supplies are swapped.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Most chips that are looked at.
const MAX_CHIPS: usize = 256;
/// Most sensors, so that a shelf of supplies cannot flood the series of a host.
const MAX_SENSORS: usize = 64;
/// Most channels that are looked for of a kind: they are numbered from 1.
const MAX_CHANNELS: u32 = 64;
/// Most files of a chip that are looked at: one of 64 channels of each kind has some 2,000.
const MAX_FILES: usize = 4_096;

/// A channel of a chip.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Channel {
    id: SensorId,
    power: Option<PathBuf>,
    energy: Option<PathBuf>,
}

/// The backend.
pub struct Board {
    folder: PathBuf,
    interval: Duration,
    channels: Vec<Channel>,
    /// Sensors that were there, gone ones included: their sums stand still.
    sensors: BTreeMap<SensorId, Sensor>,
    looked_at: Option<Duration>,
    /// Why the newest look may have missed some.
    error: Option<ReadError>,
    /// Sensors whose last reading failed, and why.
    failing: BTreeMap<SensorId, &'static str>,
}

impl Board {
    /// Sensors under `sysfs_root`, which are read every `interval`.
    pub fn new(sysfs_root: &Path, interval: Duration) -> Self {
        Self {
            folder: sysfs_root.join("class/hwmon"),
            interval,
            channels: Vec::new(),
            sensors: BTreeMap::new(),
            looked_at: None,
            error: None,
            failing: BTreeMap::new(),
        }
    }

    /// `interval`; without any sensor, a look is never late by more than half of its time.
    pub(in crate::device) fn pace(&self, interval: Duration) -> Duration {
        if self.channels.is_empty() { LOOK_AGAIN / 2 } else { interval }
    }

    pub(in crate::device) fn read(&mut self) -> Answer {
        self.read_at(&clock::monotonic)
    }

    fn read_at(&mut self, clock: &dyn Fn() -> Duration) -> Answer {
        let now = clock();
        if self.looked_at.is_none_or(|at| now.saturating_sub(at) >= LOOK_AGAIN) {
            self.looked_at = Some(now);
            self.look(now);
        }
        if self.channels.is_empty() {
            return self.error.clone().map_or(Answer::Absent, Answer::Failed);
        }
        let mut failed = BTreeMap::new();
        for channel in &self.channels {
            let sensor =
                self.sensors.entry(channel.id.clone()).or_insert_with(|| Sensor::new(channel.id.clone()));
            if let Err(error) = read_channel(channel, sensor, clock, self.interval) {
                failed.insert(channel.id.clone(), error);
            }
        }
        let mut failures: Vec<&'static str> = failed.values().map(|error| error.reason).collect();
        failures.extend(self.error.iter().map(|error| error.reason));
        self.note(&failed);
        Answer::Reading(Reading {
            energy: self.sensors.values().flat_map(Sensor::energy).collect(),
            sensors: self.sensors.values().map(Sensor::reading).collect(),
            failures,
            ..Reading::default()
        })
    }

    fn look(&mut self, now: Duration) {
        let (channels, error) = list(&self.folder);
        let has = |channels: &[Channel], id: &SensorId| channels.iter().any(|channel| channel.id == *id);
        for Channel { id, .. } in channels.iter().filter(|c| !has(&self.channels, &c.id)) {
            tracing::info!(chip = id.chip, sensor = id.sensor, "sensor found");
        }
        for Channel { id, .. } in self.channels.iter().filter(|c| !has(&channels, &c.id)) {
            tracing::warn!(chip = id.chip, sensor = id.sensor, "sensor gone: its energy stands still");
            if let Some(sensor) = self.sensors.get_mut(id) {
                sensor.note_power(None, now, self.interval);
            }
        }
        (self.channels, self.error) = (channels, error);
    }

    /// Says once which sensors fail, and which are back.
    fn note(&mut self, failed: &BTreeMap<SensorId, ReadError>) {
        for (id, error) in failed {
            if self.failing.get(id) != Some(&error.reason) {
                tracing::warn!(chip = id.chip, sensor = id.sensor, reason = error.reason, "{error}");
            }
        }
        for id in self.failing.keys().filter(|id| !failed.contains_key(*id)) {
            tracing::info!(chip = id.chip, sensor = id.sensor, "the sensor can be read again");
        }
        self.failing = failed.iter().map(|(id, error)| (id.clone(), error.reason)).collect();
    }
}

fn read_channel(
    channel: &Channel,
    sensor: &mut Sensor,
    clock: &dyn Fn() -> Duration,
    interval: Duration,
) -> Result<(), ReadError> {
    let mut result = Ok(());
    if let Some(file) = &channel.energy {
        match sysfs::number(file) {
            Ok(microjoules) => {
                let limits = Limits { modulus: None, max_per_second: MAX_SENSOR_WATTS * 1e6 };
                sensor.note_energy(microjoules, clock(), limits);
            }
            Err(error) => result = Err(unreadable(file, &error)),
        }
    }
    if let Some(file) = &channel.power {
        let watts = sysfs::signed(file)
            .map_err(|error| unreadable(file, &error))
            .and_then(|microwatts| sound(file, microwatts));
        sensor.note_power(watts.as_ref().ok().copied().flatten(), clock(), interval);
        result = result.and(watts.map(drop));
    }
    result
}

fn sound(file: &Path, microwatts: i64) -> Result<Option<f64>, ReadError> {
    sound_watts(microwatts as f64 / 1e6)
        .map_err(|reason| ReadError::new(reason, format!("{}: {microwatts} µW is no power", file.display())))
}

fn unreadable(file: &Path, error: &io::Error) -> ReadError {
    let what = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; let the agent's group read it (chgrp wattmill, chmod g+r, by a udev rule)"
        }
        _ => "",
    };
    ReadError::new(io_reason(error), format!("{}: {error}{what}", file.display()))
}

/// Names of the sensors under `sysfs_root` that can be read, and why others cannot.
pub fn discover(sysfs_root: &Path) -> (Vec<String>, Vec<ReadError>) {
    let (channels, error) = list(&sysfs_root.join("class/hwmon"));
    let mut names = Vec::new();
    let mut errors: Vec<ReadError> = error.into_iter().collect();
    for channel in channels {
        let mut sensor = Sensor::new(channel.id.clone());
        match read_channel(&channel, &mut sensor, &|| Duration::ZERO, Duration::ZERO) {
            Ok(()) => names.push(channel.id.device()),
            Err(error) => errors.push(error),
        }
    }
    (names, errors)
}

/// Channels of the chips in a folder, and why some may be missing.
fn list(folder: &Path) -> (Vec<Channel>, Option<ReadError>) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (Vec::new(), None),
        Err(error) => return (Vec::new(), Some(ReadError::io(folder, &error))),
    };
    let mut error = None;
    let mut chips = Vec::new();
    for entry in entries.filter_map(Result::ok).take(MAX_CHIPS) {
        match chip(&entry.path()) {
            Ok(chip) => chips.extend(chip),
            // It disappeared while it was looked at, or has no name and no channels.
            Err(e) if e.reason == "missing" => {}
            Err(e) => error = Some(e),
        }
    }
    chips.sort_unstable();
    let mut seen = BTreeSet::new();
    let mut channels: Vec<Channel> = Vec::new();
    for (name, folder) in chips {
        // Two chips of one name at one place, such as a device with two hwmon folders.
        let mut own = name.clone();
        let mut number = 1;
        while !seen.insert(own.clone()) {
            number += 1;
            own = format!("{name}#{number}");
        }
        channels.extend(self::channels(&folder, &own));
    }
    if channels.len() > MAX_SENSORS {
        let message = format!("{} sensors; the first {MAX_SENSORS} are read", channels.len());
        error = Some(ReadError::new("too_many", message));
        channels.truncate(MAX_SENSORS);
    }
    (channels, error)
}

/// A chip's name and where it sits, unless others meter what it shows.
fn chip(folder: &Path) -> Result<Option<(String, PathBuf)>, ReadError> {
    let file = folder.join("name");
    let name = sysfs::text(&file).map_err(|error| ReadError::io(&file, &error))?;
    let name = name.trim();
    if METERED_ELSEWHERE.iter().any(|(chip, _)| *chip == name) {
        return Ok(None);
    }
    let chip = match place(&folder.join("device")) {
        Some(place) => format!("{name}@{place}"),
        None => name.to_owned(),
    };
    Ok(Some((chip, folder.to_owned())))
}

/// Where a chip sits: its device's name on its bus. A HID device is numbered anew each time that it is plugged
/// in (`0003:1B1C:1C0A.0004`): the port that it is plugged into stays.
fn place(device: &Path) -> Option<String> {
    let path = fs::canonicalize(device).ok()?;
    let is_hid = |name: &str| {
        name.split_once('.').is_some_and(|(ids, number)| {
            ids.split(':').count() == 3 && number.len() == 4 && number.bytes().all(|b| b.is_ascii_hexdigit())
        })
    };
    let name = path.file_name()?.to_string_lossy().into_owned();
    if is_hid(&name) { Some(path.parent()?.file_name()?.to_string_lossy().into_owned()) } else { Some(name) }
}

/// Power and energy channels of a chip. Of a power's mean and its instant the mean: it misses nothing between two
/// readings. A power and an energy of one label are one sensor, known in two ways.
fn channels(folder: &Path, chip: &str) -> Vec<Channel> {
    // Read once: to ask for each of 192 files that may be there takes far longer than to be told which are.
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).take(MAX_FILES);
    let files: BTreeSet<OsString> = entries.map(|entry| entry.file_name()).collect();
    let mut channels: Vec<Channel> = Vec::new();
    for number in 1..=MAX_CHANNELS {
        let power = ["average", "input"].map(|what| format!("power{number}_{what}"));
        if let Some(file) = power.iter().find(|file| files.contains(OsStr::new(file))) {
            let id = name(folder, chip, "power", number, &channels, |channel| channel.power.is_some());
            channels.push(Channel { id, power: Some(folder.join(file)), energy: None });
        }
    }
    for number in 1..=MAX_CHANNELS {
        let file = format!("energy{number}_input");
        if files.contains(OsStr::new(&file)) {
            let file = folder.join(file);
            let id = name(folder, chip, "energy", number, &channels, |channel| channel.energy.is_some());
            match channels.iter_mut().find(|channel| channel.id == id) {
                Some(channel) => channel.energy = Some(file),
                None => channels.push(Channel { id, power: None, energy: Some(file) }),
            }
        }
    }
    channels
}

/// A channel's label, or where it has none, or shares it with another of its kind, its name in the folder.
fn name(
    folder: &Path,
    chip: &str,
    kind: &str,
    number: u32,
    others: &[Channel],
    is_of_kind: impl Fn(&Channel) -> bool,
) -> SensorId {
    let plain = format!("{kind}{number}");
    let label = sysfs::text(&folder.join(format!("{plain}_label"))).unwrap_or_default();
    let taken = |id: &SensorId| others.iter().any(|other| other.id == *id && is_of_kind(other));
    let labelled = SensorId::new(chip, &label);
    match label.trim().is_empty() || taken(&labelled) {
        false => labelled,
        // A label may be any text, another channel's plain name too.
        true if label.trim().is_empty() && !taken(&SensorId::new(chip, &plain)) => {
            SensorId::new(chip, &plain)
        }
        true => SensorId::new(chip, &format!("{}@{plain}", label.trim())),
    }
}

#[cfg(test)]
mod tests;

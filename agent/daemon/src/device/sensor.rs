//! Meters of more, or of other things, than the node's scopes: board sensors, power supplies, the whole node.
//!
//! Invariant: what they measure contains or overlaps what else is measured, so that they count for no scope and
//! are never added to anything. Power is integrated where it is read, and over a time without readings nothing is
//! assumed.

use std::time::Duration;

use wattmill_protocol::Source;

use super::integrate::Integrator;
use super::{Class, EnergyReading, Epoch, MeterId};
use crate::counter::Limits;

/// Most watts that any of them may show: several full racks.
pub(super) const MAX_SENSOR_WATTS: f64 = 100_000.0;
/// Power is integrated over this many missed readings at most.
const MAX_MISSED: u32 = 3;
/// Longest part of a name.
const MAX_NAME_BYTES: usize = 96;

/// Whose: the chip or service that measures, and which of its sensors.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct SensorId {
    /// The value of the `chip` label.
    pub chip: String,
    /// The value of the `sensor` label.
    pub sensor: String,
}

impl SensorId {
    /// Of names that foreign hands may have written.
    pub(super) fn new(chip: &str, sensor: &str) -> Self {
        // One character parts the two in the ledger.
        Self { chip: clean(chip).replace('/', "_"), sensor: clean(sensor) }
    }

    /// Its name in the ledger.
    pub fn device(&self) -> String {
        format!("{}/{}", self.chip, self.sensor)
    }

    /// Back from [`Self::device`].
    pub fn of_device(device: &str) -> Self {
        let (chip, sensor) = device.split_once('/').unwrap_or((device, ""));
        Self { chip: chip.to_owned(), sensor: sensor.to_owned() }
    }
}

/// Printable, and no longer than a label should be.
fn clean(name: &str) -> String {
    let printable = name.trim().chars().map(|c| if c.is_control() { '_' } else { c });
    let mut length = 0;
    let within = |c: &char| {
        length += c.len_utf8();
        length <= MAX_NAME_BYTES
    };
    let name: String = printable.take_while(within).collect();
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

/// What a sensor said last.
#[derive(Clone, PartialEq, Debug)]
pub struct SensorReading {
    /// Whose.
    pub id: SensorId,
    /// Power; `None` where it said none.
    pub watts: Option<f64>,
}

/// A sensor, and the energy that became of its power.
#[derive(Clone, Debug)]
pub(super) struct Sensor {
    pub(super) id: SensorId,
    watts: Option<f64>,
    integrator: Integrator,
    /// Its own counter in microjoules, when it was read, and what is known of it.
    counter: Option<(u64, Duration, Limits)>,
}

impl Sensor {
    pub(super) fn new(id: SensorId) -> Self {
        Self { id, watts: None, integrator: Integrator::default(), counter: None }
    }

    /// Takes a reading of its power, which may have failed, when it is read every `interval`.
    pub(super) fn note_power(&mut self, watts: Option<f64>, at: Duration, interval: Duration) {
        self.watts = watts;
        // In milliwatts; at most 100 kW.
        let milliwatts = watts.map(|watts| (watts * 1e3).round() as u64);
        self.integrator.note(milliwatts, at, interval * MAX_MISSED);
    }

    /// Takes a reading of its energy counter.
    pub(super) fn note_energy(&mut self, microjoules: u64, at: Duration, limits: Limits) {
        self.counter = Some((microjoules, at, limits));
    }

    /// What it said last; `None` where it has no power, or never said.
    pub(super) fn reading(&self) -> SensorReading {
        SensorReading { id: self.id.clone(), watts: self.watts }
    }

    /// Its energy as it is known now.
    pub(super) fn energy(&self) -> impl Iterator<Item = EnergyReading> {
        let reading = |source, raw, at, limits, epoch| EnergyReading {
            meter: MeterId { class: Class::Sensor, device: self.id.device(), source },
            scope: None,
            raw,
            microjoules_per_count: 1,
            limits,
            epoch,
            at,
            unread: 0,
        };
        let counter =
            self.counter.map(|(raw, at, limits)| reading(Source::Counter, raw, at, limits, Epoch::Hardware));
        let unlimited = Limits { modulus: None, max_per_second: f64::INFINITY };
        let integrated = self.integrator.last_at().map(|at| EnergyReading {
            unread: self.integrator.unread(),
            ..reading(Source::Integrated, self.integrator.microjoules(), at, unlimited, Epoch::Process)
        });
        [counter, integrated].into_iter().flatten()
    }
}

/// Power in watts, or why it is none: `Ok(None)` where a sensor says nothing by saying 0.
pub(super) fn sound_watts(watts: f64) -> Result<Option<f64>, &'static str> {
    match watts {
        w if w.is_nan() => Err("invalid"),
        w if w < 0.0 => Err("negative"),
        w if w > MAX_SENSOR_WATTS => Err("implausible"),
        0.0 => Ok(None),
        w => Ok(Some(w)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_foreign_hands_make_one_name_and_come_back() {
        let id = SensorId::new("pmbus@3-0058/x", " pin\n1 ");
        assert_eq!((id.chip.as_str(), id.sensor.as_str()), ("pmbus@3-0058_x", "pin_1"));
        assert_eq!(SensorId::of_device(&id.device()), id);
        let id = SensorId::new("redfish", "1/Self");
        assert_eq!(SensorId::of_device(&id.device()), id);
        let long = SensorId::new(&"ä".repeat(500), "");
        assert_eq!((long.chip.len(), long.sensor.as_str()), (MAX_NAME_BYTES, "unnamed"));
    }

    #[test]
    fn power_that_cannot_be_is_none() {
        for (watts, expected) in [
            (0.0, Ok(None)),
            (-1.0, Err("negative")),
            (f64::NAN, Err("invalid")),
            (f64::INFINITY, Err("implausible")),
            (1e6, Err("implausible")),
            (231.5, Ok(Some(231.5))),
        ] {
            assert_eq!(sound_watts(watts), expected, "{watts}");
        }
    }

    #[test]
    fn a_sensor_counts_for_no_scope_and_keeps_its_sum_while_it_fails() {
        let seconds = Duration::from_secs;
        let mut sensor = Sensor::new(SensorId::new("psu", "pin"));
        assert_eq!(sensor.energy().count(), 0);
        for (at, watts) in
            [(10, Some(100.0)), (20, Some(200.0)), (30, None), (40, Some(100.0)), (50, Some(100.0))]
        {
            sensor.note_power(watts, seconds(at), seconds(10));
        }
        let energy: Vec<_> = sensor.energy().collect();
        assert_eq!(energy.len(), 1);
        assert_eq!((energy[0].raw, energy[0].unread, energy[0].scope), (2_500_000_000, 1, None));
        sensor.note_power(Some(100.0), seconds(81), seconds(10));
        assert_eq!(
            sensor.energy().next().map(|e| (e.raw, e.unread)),
            Some((2_500_000_000, 2)),
            "31 s are too long"
        );
    }
}

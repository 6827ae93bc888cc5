//! Sensors that count for no scope, in the catalogue's terms.
//!
//! Invariant: a sensor that does not answer keeps its energy, which stands still, and has no power.

use std::collections::BTreeMap;

use wattmill_protocol::Source;
use wattmill_protocol::catalogue as cat;

use super::{Points, Snapshot, joules};
use crate::device::Class;
use crate::device::sensor::SensorId;

pub(super) fn add(points: &mut Points<'_>, snapshot: &Snapshot) {
    let said = snapshot.sensors.iter().filter_map(|sensor| Some((sensor.id.clone(), sensor.watts?)));
    let mut watts: BTreeMap<SensorId, f64> = said.collect();
    for (meter, sum) in snapshot.meters.iter().filter(|(meter, _)| meter.class == Class::Sensor) {
        let id = SensorId::of_device(&meter.device);
        let labels = [id.chip.as_str(), id.sensor.as_str(), meter.source.as_str()];
        points.add(&cat::SENSOR_ENERGY_JOULES, &labels, joules(sum.microjoules));
        // One that counts energy and shows no power.
        if let (Source::Counter, Some(mean)) = (meter.source, sum.watts) {
            watts.entry(id).or_insert(mean);
        }
    }
    for (SensorId { chip, sensor }, watts) in &watts {
        points.add(&cat::SENSOR_POWER_WATTS, &[chip, sensor], *watts);
    }
}

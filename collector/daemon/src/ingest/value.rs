//! Which values of data points are taken.
//!
//! Invariant: what comes out is finite, and not negative where nothing can be; joules of counters come
//! out as integer microjoules.
//!
//! The catalogue's unit of energy is the joule, pushed as a double: exact to the microjoule below 2³² J
//! (five days of 10 kW), and off by a double's last digits beyond, which does not add up, as increases
//! telescope. A sender that wants exactness without end pushes integers with the
//! unit `uJ` instead.

use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Raw;
use opentelemetry_proto::tonic::metrics::v1::{DataPointFlags, NumberDataPoint};
use wattmill_protocol::catalogue::{GPU_ENERGY_DIVERGENCE, Kind, Metric};

use crate::state::{Reason, Value};

/// The largest counter of microjoules that is taken: 9.2e12 J, a node of 10 kW for 29 years.
const MAX_MICROJOULES: u64 = 1 << 63;

/// What drivers and libraries say instead of "not available", on the scale of any unit: the largest
/// integers, and DCGM's blanks of 64 bits, which are the same once they are doubles.
const WIDE_SENTINELS: [f64; 2] = [u64::MAX as f64, i64::MAX as f64];

/// Such values that bytes and FLOPs could well have: the largest integers of 32 bits, and DCGM's blanks
/// (blank, not found, not supported, not permitted) of 32 bits and as doubles.
const NARROW_SENTINELS: [f64; 10] = [
    4_294_967_295.0,
    2_147_483_647.0,
    2_147_483_632.0,
    2_147_483_633.0,
    2_147_483_634.0,
    2_147_483_635.0,
    140_737_488_355_328.0,
    140_737_488_355_329.0,
    140_737_488_355_330.0,
    140_737_488_355_331.0,
];

/// The value of `point`, pushed in `unit`, for `metric`.
pub(super) fn value(metric: &'static Metric, unit: &str, point: &NumberDataPoint) -> Result<Value, Reason> {
    let counted_energy = metric.kind == Kind::Counter && metric.unit == "J";
    let in_micro = counted_energy && unit == "uJ";
    if !(unit.is_empty() || unit == metric.otlp.as_ref().map_or(metric.unit, |otlp| otlp.unit) || in_micro) {
        return Err(Reason::WrongForm);
    }
    let raw = match point.value {
        Some(raw) if point.flags & DataPointFlags::NoRecordedValueMask as u32 == 0 => raw,
        _ => return Err(Reason::NotFinite),
    };
    let number = match raw {
        Raw::AsInt(integer) => integer as f64,
        Raw::AsDouble(double) => double,
    };
    if !number.is_finite() {
        return Err(Reason::NotFinite);
    }
    if number < 0.0 && !may_be_negative(metric) {
        return Err(Reason::Negative);
    }
    if is_sentinel(metric, number) {
        return Err(Reason::Sentinel);
    }
    match raw {
        _ if !counted_energy => Ok(Value::Number(number)),
        Raw::AsInt(integer) if in_micro => {
            u64::try_from(integer).map(Value::Microjoules).map_err(|_| Reason::Negative)
        }
        _ => microjoules(if in_micro { number } else { number * 1e6 }),
    }
}

fn microjoules(amount: f64) -> Result<Value, Reason> {
    let amount = amount.round();
    if amount < MAX_MICROJOULES as f64 {
        Ok(Value::Microjoules(amount as u64))
    } else {
        Err(Reason::OutOfRange)
    }
}

fn may_be_negative(metric: &'static Metric) -> bool {
    metric.kind == Kind::Gauge && (metric.unit == "Cel" || std::ptr::eq(metric, &GPU_ENERGY_DIVERGENCE))
}

fn is_sentinel(metric: &'static Metric, number: f64) -> bool {
    let narrow = matches!(metric.unit, "W" | "J" | "Cel" | "Hz") || metric.name.ends_with("_ratio");
    WIDE_SENTINELS.contains(&number) || (narrow && NARROW_SENTINELS.contains(&number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wattmill_protocol::catalogue as metrics;

    use super::*;

    fn double(metric: &'static Metric, unit: &str, number: f64) -> Result<Value, Reason> {
        value(metric, unit, &NumberDataPoint { value: Some(Raw::AsDouble(number)), ..Default::default() })
    }

    fn integer(metric: &'static Metric, unit: &str, number: i64) -> Result<Value, Reason> {
        value(metric, unit, &NumberDataPoint { value: Some(Raw::AsInt(number)), ..Default::default() })
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let energy = &metrics::NODE_ENERGY_JOULES;
        for (value, expected) in [
            (double(energy, "J", f64::NAN), Err(Reason::NotFinite)),
            (double(energy, "J", f64::INFINITY), Err(Reason::NotFinite)),
            (double(energy, "J", -1.0), Err(Reason::Negative)),
            (double(energy, "J", 1e13), Err(Reason::OutOfRange)),
            (double(energy, "kJ", 1.0), Err(Reason::WrongForm)),
            (double(energy, "J", 1.5), Ok(Value::Microjoules(1_500_000))),
            (double(energy, "", 1.5), Ok(Value::Microjoules(1_500_000))),
            (integer(energy, "J", 3), Ok(Value::Microjoules(3_000_000))),
            (integer(energy, "uJ", (1 << 60) + 1), Ok(Value::Microjoules((1 << 60) + 1))),
            (integer(energy, "uJ", -1), Err(Reason::Negative)),
            (integer(energy, "uJ", 0x7fff_ffff_ffff_fff0), Err(Reason::Sentinel)),
            (double(&metrics::GPU_POWER_WATTS, "W", 4_294_967_295.0), Err(Reason::Sentinel)),
            (double(&metrics::GPU_POWER_WATTS, "W", 140_737_488_355_330.0), Err(Reason::Sentinel)),
            (integer(&metrics::GPU_MEMORY_USED, "By", -1), Err(Reason::Negative)),
            (double(&metrics::GPU_MEMORY_USED, "By", u64::MAX as f64), Err(Reason::Sentinel)),
            (double(&metrics::GPU_MEMORY_USED, "By", 4_294_967_295.0), Ok(Value::Number(4_294_967_295.0))),
            (double(&metrics::GPU_TEMPERATURE, "Cel", -3.0), Ok(Value::Number(-3.0))),
            (double(&GPU_ENERGY_DIVERGENCE, "1", -0.1), Ok(Value::Number(-0.1))),
            (integer(&metrics::GPU_UP, "1", 1), Ok(Value::Number(1.0))),
        ] {
            assert_eq!(value, expected);
        }
        let none = NumberDataPoint { flags: 1, value: Some(Raw::AsInt(1)), ..Default::default() };
        assert_eq!(value(energy, "J", &none), Err(Reason::NotFinite));
        assert_eq!(value(energy, "J", &NumberDataPoint::default()), Err(Reason::NotFinite));
    }

    proptest! {
        #[test]
        fn joules_as_doubles_are_exact_to_the_microjoule(microjoules in 0u64..1_000_000 << 32) {
            let value = double(&metrics::NODE_ENERGY_JOULES, "J", microjoules as f64 / 1e6);
            prop_assert!(value == Ok(Value::Microjoules(microjoules)) || value == Err(Reason::Sentinel));
        }
    }
}

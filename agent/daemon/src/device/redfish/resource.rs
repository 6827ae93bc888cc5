//! Redfish's resources, as far as they say something of power.
//!
//! Pure. Invariant: whatever a BMC answers, no link leads to another host or out of its tree, and a figure is one
//! that can be, or none.

use serde_json::Value;

use super::super::sensor::sound_watts;

/// Most chassis of a BMC that are asked: a node and its sleds, switches and drawers.
pub(super) const MAX_CHASSIS: usize = 16;
/// Most power controls of one chassis.
const MAX_CONTROLS: usize = 16;
/// Longest link.
const MAX_LINK_BYTES: usize = 256;
/// Begin of every link.
const ROOT: &str = "/redfish/v1/";
/// Most energy that is believed: a node at 100 kW for eleven years.
const MAX_KWH: f64 = 1e10;
/// A kilowatt-hour is 3.6e12 µJ.
pub(super) const MICROJOULES_PER_KWH: f64 = 3.6e12;

/// What a resource says of one sensor.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Figures {
    /// Its name.
    pub(super) sensor: String,
    /// Power now.
    pub(super) watts: Option<f64>,
    /// Energy so far in microjoules, where it counts that.
    pub(super) microjoules: Option<u64>,
}

/// Links of a collection's members.
pub(super) fn members(collection: &Value) -> Vec<String> {
    let members = collection.get("Members").and_then(Value::as_array).into_iter().flatten();
    members.filter_map(|member| link(Some(member))).take(MAX_CHASSIS).collect()
}

/// A chassis' name, and where it tells of its power: newer services under `EnvironmentMetrics`, older ones under
/// `Power`.
pub(super) fn chassis(chassis: &Value) -> (String, Option<String>, Option<String>) {
    let id = chassis.get("Id").and_then(Value::as_str).unwrap_or("chassis");
    (id.to_owned(), link(chassis.get("EnvironmentMetrics")), link(chassis.get("Power")))
}

/// Where a resource is found, unless that leads elsewhere.
fn link(of: Option<&Value>) -> Option<String> {
    let link = of?.get("@odata.id")?.as_str()?;
    let sound = link.starts_with(ROOT)
        && link.len() <= MAX_LINK_BYTES
        && !link.split('/').any(|part| part == "..")
        && link.bytes().all(|b| b.is_ascii_graphic() && !b"\\@?#".contains(&b));
    sound.then(|| link.to_owned())
}

/// What `EnvironmentMetrics` says of a chassis; nothing where it measures neither power nor energy.
pub(super) fn environment(resource: &Value, chassis: &str) -> Result<Vec<Figures>, &'static str> {
    let watts = watts(resource.pointer("/PowerWatts/Reading"))?;
    let kwh = resource.pointer("/EnergykWh/Reading").and_then(Value::as_f64);
    let microjoules = match kwh {
        None => None,
        Some(kwh) if (0.0..=MAX_KWH).contains(&kwh) => Some((kwh * MICROJOULES_PER_KWH) as u64),
        Some(_) => return Err("implausible"),
    };
    let figures = Figures { sensor: chassis.to_owned(), watts, microjoules };
    Ok(if watts.is_none() && microjoules.is_none() { Vec::new() } else { vec![figures] })
}

/// What `Power` says of a chassis: one figure for each power control.
pub(super) fn power(resource: &Value, chassis: &str) -> Result<Vec<Figures>, &'static str> {
    let controls = resource.get("PowerControl").and_then(Value::as_array).into_iter().flatten();
    let mut figures = Vec::new();
    for (number, control) in controls.take(MAX_CONTROLS).enumerate() {
        let Some(watts) = watts(control.get("PowerConsumedWatts"))? else { continue };
        let member = control.get("MemberId").and_then(Value::as_str).map(str::to_owned);
        let member = member.filter(|id| !id.is_empty()).unwrap_or_else(|| number.to_string());
        figures.push(Figures {
            sensor: format!("{chassis}/{member}"),
            watts: Some(watts),
            microjoules: None,
        });
    }
    Ok(figures)
}

fn watts(value: Option<&Value>) -> Result<Option<f64>, &'static str> {
    value.and_then(Value::as_f64).map_or(Ok(None), sound_watts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn power_controls_are_told_apart() {
        let resource = json!({ "PowerControl": [
            { "MemberId": "0", "Name": "System Power Control", "PowerConsumedWatts": 344 },
            { "PowerConsumedWatts": 12.5 },
            { "MemberId": "2", "PowerConsumedWatts": null },
            { "MemberId": "3", "PowerConsumedWatts": 0 },
            { "MemberId": "4" },
        ]});
        let figures = power(&resource, "1").unwrap();
        let shown: Vec<_> = figures.iter().map(|f| (f.sensor.as_str(), f.watts)).collect();
        assert_eq!(shown, [("1/0", Some(344.0)), ("1/1", Some(12.5))]);
    }

    #[test]
    fn environment_metrics_have_power_and_energy() {
        let resource = json!({ "PowerWatts": { "Reading": 374 }, "EnergykWh": { "Reading": 325_675.25 } });
        let figures = &environment(&resource, "Self").unwrap()[0];
        assert_eq!((figures.watts, figures.microjoules), (Some(374.0), Some(1_172_430_900_000_000_000)));
        for empty in
            [json!({}), json!({ "PowerWatts": {} }), json!({ "PowerWatts": { "Reading": null } }), json!([1])]
        {
            assert_eq!(environment(&empty, "Self"), Ok(vec![]), "{empty}");
        }
        for (wrong, reason) in [
            (json!({ "PowerWatts": { "Reading": -3 } }), "negative"),
            (json!({ "PowerWatts": { "Reading": 1e9 } }), "implausible"),
            (json!({ "EnergykWh": { "Reading": -1 } }), "implausible"),
        ] {
            assert_eq!(environment(&wrong, "Self"), Err(reason));
        }
    }

    #[test]
    fn links_lead_nowhere_else() {
        let at = |link: &str| json!({ "Members": [{ "@odata.id": link }] });
        assert_eq!(members(&at("/redfish/v1/Chassis/1")), ["/redfish/v1/Chassis/1"]);
        for wrong in [
            "https://evil.example/redfish/v1/Chassis/1",
            "//evil.example/redfish/v1/",
            "/etc/passwd",
            "/redfish/v1/../../secret",
            "/redfish/v1/Chassis/1 HTTP/1.1\r\nX: y",
            "/redfish/v1/@evil",
            "/redfish/v1/?q",
            &format!("/redfish/v1/{}", "a".repeat(500)),
        ] {
            assert_eq!(members(&at(wrong)), [""; 0], "{wrong}");
        }
        let many: Vec<_> =
            (0..99).map(|i| json!({ "@odata.id": format!("/redfish/v1/Chassis/{i}") })).collect();
        assert_eq!(members(&json!({ "Members": many })).len(), MAX_CHASSIS);
    }

    proptest! {
        #[test]
        fn no_number_becomes_a_figure_that_cannot_be(number in any::<f64>(), kwh in any::<f64>()) {
            let environment = environment(
                &json!({ "PowerWatts": { "Reading": number }, "EnergykWh": { "Reading": kwh } }),
                "1",
            );
            for figures in environment.into_iter().flatten() {
                prop_assert!(figures.watts.is_none_or(|watts| watts > 0.0 && watts <= 100_000.0));
            }
        }
    }
}

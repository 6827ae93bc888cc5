//! What draws power on a node, as one page of its agent tells it.
//!
//! Invariant: what overlaps something else stands in `overlapping`, and nothing is summed over it. Joules of different
//! sources are never summed but where [`Row::source`] names them all.

use std::collections::BTreeMap;

use serde::Serialize;
use wattmill_protocol::catalogue as cat;

use super::page::{Page, Series};
use super::since::Since;

/// `kind` of the units without a series of their own, and of those whose series ended.
pub(super) const SUMMED_KINDS: [&str; 2] = ["rest", "departed"];

/// Something that draws power, or a sum.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Row {
    /// `zone`, `gpu`, `module`, `sensor`, `scope`, `consumer` or the kind of a unit.
    pub(crate) kind: String,
    /// Which: a zone's name, a GPU's UUID, a unit's name.
    pub(crate) id: String,
    /// Mean power of the agent's last window.
    pub(crate) watts: Option<f64>,
    /// Joules since it is watched.
    pub(crate) watched_joules: f64,
    /// Joules since the agent's ledger began.
    pub(crate) joules: f64,
    /// How they are known: `counter`, `integrated`, `estimate`, or several with `+`.
    pub(crate) source: String,
    /// A GPU's figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gpu: Option<Gpu>,
}

/// What is known of a GPU beside its energy.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Gpu {
    /// Its number of now, which may change; empty where it was never seen.
    pub(crate) index: String,
    /// Its model, empty where it was never seen.
    pub(crate) model: String,
    /// Whether it answers.
    pub(crate) up: bool,
    /// Why it does not.
    pub(crate) lost_reason: Option<String>,
    /// The newest Xid of a GPU that is lost.
    pub(crate) lost_xid: Option<String>,
    /// What the driver wants done to it.
    pub(crate) recovery_action: Option<String>,
    /// Share of time in which it computes.
    pub(crate) utilization_ratio: Option<f64>,
    /// Its power limit.
    pub(crate) limit_watts: Option<f64>,
    /// Programs on it that are not Wattmill's.
    pub(crate) foreign_processes: Option<f64>,
}

/// A node at one moment.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Sample {
    /// The node's name.
    pub(crate) node: String,
    /// Version of its agent.
    pub(crate) agent_version: String,
    /// Readers of devices that fail or hang.
    pub(crate) backends_down: Vec<String>,
    /// What may be summed within a source: CPU packages, memory, GPUs.
    pub(crate) devices: Vec<Row>,
    /// What contains, or is contained in, something else.
    pub(crate) overlapping: Vec<Row>,
    /// The node's sums by scope and source.
    pub(crate) scopes: Vec<Row>,
    /// Whose the joules are. Watts are the node's, split as the joules since the sample before.
    pub(crate) consumers: Vec<Row>,
    /// Services, containers, pods and jobs, the hungriest first; then the rest.
    pub(crate) units: Vec<Row>,
}

impl Sample {
    /// What a page tells, beside what `since` remembers of the pages before.
    pub(crate) fn new(page: &Page, since: &mut Since) -> Self {
        let label = |metric: &cat::Metric, name| {
            page.all(metric.name).next().map_or_else(String::new, |series| series.label(name).to_owned())
        };
        let down = page.all(cat::AGENT_BACKEND_UP.name).filter(|series| series.value == 0.0);
        let (mut devices, mut overlapping) = zones(page, since);
        devices.extend(gpus(page, since));
        overlapping.extend(modules(page, since));
        overlapping.extend(sensors(page, since));
        let scopes = scopes(page, since);
        let consumers = consumers(page, &scopes, since);
        let sample = Self {
            node: label(&cat::NODE_INFO, "name"),
            agent_version: label(&cat::AGENT_BUILD_INFO, "version"),
            backends_down: down.map(|series| series.label("backend").to_owned()).collect(),
            devices,
            overlapping,
            scopes,
            consumers,
            units: units(page, since),
        };
        since.turn();
        sample
    }
}

/// CPU zones: those that count, and those that contain or lie in them.
fn zones(page: &Page, since: &mut Since) -> (Vec<Row>, Vec<Row>) {
    let watts = |series: &Series| {
        let mut power = page.all(cat::CPU_POWER_WATTS.name);
        let same = |p: &&Series| ["zone", "source"].iter().all(|l| p.label(l) == series.label(l));
        power.find(same).map(|power| power.value)
    };
    let energy = page.all(cat::CPU_ENERGY_JOULES.name);
    let rows: Vec<Row> = energy.map(|s| row(since, "zone", s.label("zone"), s, watts(s))).collect();
    rows.into_iter().partition(counts)
}

/// Whether a zone is one of those that make up the scopes: packages and memory, or the estimate of the host.
fn counts(zone: &Row) -> bool {
    let own = zone.id.rsplit('/').next().unwrap_or_default();
    own.starts_with("package-") || own.starts_with("dram") || zone.source == "estimate"
}

fn gpus(page: &Page, since: &mut Since) -> Vec<Row> {
    let gpus = page.all(cat::GPU_UP.name);
    gpus.map(|up| {
        let uuid = up.label("uuid");
        // Both sources measure the same joules: the counter's are those that count. One that failed stands still,
        // and the integral counts then.
        let sources = page.all(cat::GPU_ENERGY_JOULES.name).filter(|series| series.label("uuid") == uuid);
        let key = |series: &Series| Since::key("gpu", uuid, series.label("source"));
        let (mut energy, mut others): (Option<&Series>, Vec<&Series>) = (None, Vec::new());
        for series in sources {
            let rank = |series: &Series| {
                (since.still(&key(series), series.value), series.label("source") != "counter")
            };
            match energy {
                Some(best) if rank(best) <= rank(series) => others.push(series),
                best => {
                    others.extend(best);
                    energy = Some(series);
                }
            }
        }
        for other in others.into_iter().filter(|other| other.value.is_finite()) {
            since.joules(&key(other), other.value);
        }
        let watts = page.value(cat::GPU_POWER_WATTS.name, "uuid", uuid);
        let mut row = match energy {
            Some(energy) => row(since, "gpu", uuid, energy, watts),
            None => Row::bare("gpu", uuid, watts),
        };
        row.gpu = Some(gpu(page, up, uuid));
        row
    })
    .collect()
}

fn gpu(page: &Page, up: &Series, uuid: &str) -> Gpu {
    let value = |metric: &cat::Metric| page.value(metric.name, "uuid", uuid);
    let text = |metric: &cat::Metric, label| {
        let text = page.with(metric.name, "uuid", uuid)?.label(label);
        (!text.is_empty() && text != "none").then(|| text.to_owned())
    };
    Gpu {
        index: text(&cat::GPU_INFO, "index").unwrap_or_default(),
        model: text(&cat::GPU_INFO, "model").unwrap_or_default(),
        up: up.value != 0.0,
        lost_reason: text(&cat::GPU_LOST_INFO, "reason"),
        lost_xid: text(&cat::GPU_LOST_INFO, "xid"),
        recovery_action: text(&cat::GPU_RECOVERY_ACTION_INFO, "action"),
        utilization_ratio: value(&cat::GPU_UTILIZATION),
        limit_watts: value(&cat::GPU_POWER_LIMIT),
        foreign_processes: value(&cat::GPU_FOREIGN_PROCESSES),
    }
}

fn modules(page: &Page, since: &mut Since) -> Vec<Row> {
    let energy = page.all(cat::GPU_MODULE_ENERGY_JOULES.name);
    let watts = |uuid: &str| {
        let mut power = page.all(cat::GPU_POWER_INSTANT.name);
        power.find(|p| p.label("uuid") == uuid && p.label("scope") == "module").map(|power| power.value)
    };
    energy.map(|s| row(since, "module", s.label("uuid"), s, watts(s.label("uuid")))).collect()
}

/// Sensors of the board and of the whole node: their energy where it is counted, or their power alone.
fn sensors(page: &Page, since: &mut Since) -> Vec<Row> {
    let id = |series: &Series| format!("{} {}", series.label("chip"), series.label("sensor"));
    let power = page.all(cat::SENSOR_POWER_WATTS.name);
    let mut power: BTreeMap<String, f64> = power.map(|series| (id(series), series.value)).collect();
    let energy = page.all(cat::SENSOR_ENERGY_JOULES.name);
    let mut rows: Vec<Row> = energy
        .map(|series| {
            let id = id(series);
            row(since, "sensor", &id, series, power.remove(&id))
        })
        .collect();
    rows.extend(power.into_iter().map(|(id, watts)| Row::bare("sensor", &id, Some(watts))));
    rows
}

fn scopes(page: &Page, since: &mut Since) -> Vec<Row> {
    let watts = |series: &Series| {
        let mut power = page.all(cat::NODE_POWER_WATTS.name);
        let same = |p: &&Series| ["scope", "source"].iter().all(|l| p.label(l) == series.label(l));
        power.find(same).map(|power| power.value)
    };
    let energy = page.all(cat::NODE_ENERGY_JOULES.name);
    energy.map(|series| row(since, "scope", series.label("scope"), series, watts(series))).collect()
}

/// Consumers have joules and no watts: windows pass while a page is asked for, so that joules over the time between
/// two pages would jump. The node's own watts, split as its joules were, do not.
fn consumers(page: &Page, scopes: &[Row], since: &mut Since) -> Vec<Row> {
    let energy: Vec<&Series> = page.all(cat::NODE_ATTRIBUTED_ENERGY_JOULES.name).collect();
    let steps: Vec<(String, Option<f64>)> = energy
        .iter()
        .map(|series| {
            let source = series.label("source");
            let key = Since::key("consumer", series.label("consumer"), source);
            (source.to_owned(), since.step(&key, series.value))
        })
        .collect();
    let watts = |source: &str, step: Option<f64>| {
        let of_source = scopes.iter().filter(|scope| scope.source == source);
        let node: f64 = of_source.map(|scope| scope.watts).sum::<Option<f64>>()?;
        let total: f64 = steps.iter().filter(|(s, _)| s == source).filter_map(|(_, step)| *step).sum();
        (total > 0.0).then_some(())?;
        Some(node * step? / total)
    };
    let rows = energy.iter().zip(&steps);
    rows.map(|(series, (source, step))| {
        row(since, "consumer", series.label("consumer"), series, watts(source, *step))
    })
    .collect()
}

/// Units with the sum of their scopes, which do not overlap.
fn units(page: &Page, since: &mut Since) -> Vec<Row> {
    let mut rows: BTreeMap<(String, String), Row> = BTreeMap::new();
    for series in page.all(cat::UNIT_ENERGY_JOULES.name) {
        let (kind, name, scope) = (series.label("kind"), series.label("name"), series.label("scope"));
        let key = Since::key(kind, &format!("{name}\n{scope}"), series.label("source"));
        let joules = if series.value.is_finite() { series.value } else { 0.0 };
        let watched = since.unit_joules(&key, joules);
        let unit = (kind.to_owned(), name.to_owned());
        let row = rows.entry(unit).or_insert_with(|| Row::bare(kind, name, None));
        row.joules += joules;
        row.watched_joules += watched;
        // What never was is no source of a sum.
        if joules > 0.0 {
            row.add_source(series.label("source"));
        }
    }
    for power in page.all(cat::UNIT_POWER_WATTS.name).filter(|power| power.value.is_finite()) {
        let unit = (power.label("kind").to_owned(), power.label("name").to_owned());
        if let Some(row) = rows.get_mut(&unit) {
            row.watts = Some(row.watts.unwrap_or(0.0) + power.value);
        }
    }
    let mut rows: Vec<Row> = rows.into_values().collect();
    let summed = |row: &Row| SUMMED_KINDS.iter().position(|kind| *kind == row.kind).map(|at| at + 1);
    rows.sort_by(|a, b| {
        let watts = |row: &Row| row.watts.unwrap_or(-1.0);
        let hungry = watts(b).total_cmp(&watts(a)).then(b.joules.total_cmp(&a.joules));
        summed(a).cmp(&summed(b)).then(hungry)
    });
    rows
}

fn row(since: &mut Since, kind: &str, id: &str, energy: &Series, watts: Option<f64>) -> Row {
    let source = energy.label("source");
    let joules = if energy.value.is_finite() { energy.value } else { 0.0 };
    Row {
        joules,
        watched_joules: since.joules(&Since::key(kind, id, source), joules),
        source: source.to_owned(),
        ..Row::bare(kind, id, watts)
    }
}

impl Row {
    /// One of which no energy is known.
    pub(super) fn bare(kind: &str, id: &str, watts: Option<f64>) -> Self {
        let (kind, id) = (kind.to_owned(), id.to_owned());
        let watts = watts.filter(|watts| watts.is_finite());
        Self { kind, id, watts, watched_joules: 0.0, joules: 0.0, source: String::new(), gpu: None }
    }

    /// Names a source of its joules, once.
    pub(super) fn add_source(&mut self, source: &str) {
        if !self.source.split('+').any(|s| s == source) {
            let plus = if self.source.is_empty() { "" } else { "+" };
            self.source = format!("{}{plus}{source}", self.source);
        }
    }
}

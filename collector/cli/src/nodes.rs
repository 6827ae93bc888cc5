//! `wattmill nodes`.

use serde::Serialize;
use wattmill_protocol::{Energy, Source, v1};

use crate::Common;
use crate::client::{Client, Error};
use crate::show::{self, say};

/// A node as JSON shows it.
#[derive(Serialize)]
struct NodeJson<'a> {
    id: &'a str,
    name: &'a str,
    machine_id: &'a str,
    connected: bool,
    excluded: &'a str,
    decision: &'a str,
    power_watts: Option<f64>,
    energy: Vec<EnergyJson<'a>>,
    samples_per_second: Option<f64>,
    running: u32,
    useful_flops: f64,
    peak_flops: Option<f64>,
    numerics: &'a str,
    cpus: &'a [u32],
    host_fraction: f64,
    telemetry_age_seconds: Option<f64>,
    version: &'a str,
    gpus: Vec<GpuJson<'a>>,
}

#[derive(Serialize)]
struct EnergyJson<'a> {
    scope: &'a str,
    source: &'a str,
    joules: f64,
}

#[derive(Serialize)]
struct GpuJson<'a> {
    uuid: &'a str,
    up: bool,
    power_watts: Option<f64>,
    energy_joules: Option<f64>,
    utilization_ratio: Option<f64>,
    foreign_processes: Option<u32>,
}

/// Lists the nodes.
pub(crate) async fn list(common: &Common) -> Result<(), Error> {
    let mut client = Client::connect(&common.collector).await?;
    let nodes = client.ask(async |control| control.list_nodes(v1::ListNodesRequest {}).await).await?.nodes;
    if common.json {
        let nodes: Vec<NodeJson<'_>> = nodes.iter().map(json).collect();
        say!("{}", serde_json::to_string_pretty(&nodes).map_err(|e| Error::Answer(e.to_string()))?)?;
    } else if nodes.is_empty() {
        say!("no nodes: start wattmill-agent with collector = \"{}\"", common.collector)?;
    } else {
        say!("{}", table(&nodes))?;
    }
    Ok(())
}

/// Retires a node.
pub(crate) async fn retire(common: &Common, node: String) -> Result<(), Error> {
    let mut client = Client::connect(&common.collector).await?;
    let request = v1::RetireNodeRequest { node: node.clone() };
    client.ask(async |control| control.retire_node(request).await).await?;
    if common.json {
        say!("{}", serde_json::json!({ "node": node, "retired": true }))?;
    } else {
        say!("node {node} retired")?;
    }
    Ok(())
}

/// Energy of a node, all scopes.
pub(crate) fn energy(node: &v1::NodeView) -> Energy {
    let part = |e: &v1::ScopedEnergy| {
        Source::from_label(&e.source).map_or(Energy::ZERO, |source| Energy::of(source, e.microjoules))
    };
    node.energy.iter().map(part).sum()
}

/// The nodes as a table.
pub(crate) fn table(nodes: &[v1::NodeView]) -> String {
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .map(|node| {
            let why = if node.excluded.is_empty() { &node.decision } else { &node.excluded };
            vec![
                show::text(&node.name),
                if node.connected { "connected" } else { "disconnected" }.to_owned(),
                show::maybe(node.power_watts, |w| show::scaled(w, "W")),
                show::joules(Some(energy(node).into())),
                show::maybe(node.samples_per_second, |r| show::scaled(r, "samples/s")),
                node.running.to_string(),
                show::maybe(node.peak_flops, |f| show::scaled(f, "FLOP/s")),
                show::maybe(node.telemetry_age_seconds, |s| format!("{s:.1} s")),
                show::text(why),
            ]
        })
        .collect();
    show::table(&["NAME", "STATE", "POWER", "ENERGY", "RATE", "LEASES", "PEAK", "TELEMETRY", "PLAN"], &rows)
}

/// A node as JSON shows it.
pub(crate) fn as_json(node: &v1::NodeView) -> impl Serialize + '_ {
    json(node)
}

fn json(node: &v1::NodeView) -> NodeJson<'_> {
    NodeJson {
        id: &node.id,
        name: &node.name,
        machine_id: &node.machine_id,
        connected: node.connected,
        excluded: &node.excluded,
        decision: &node.decision,
        power_watts: node.power_watts,
        energy: node
            .energy
            .iter()
            .map(|e| EnergyJson { scope: &e.scope, source: &e.source, joules: e.microjoules as f64 / 1e6 })
            .collect(),
        samples_per_second: node.samples_per_second,
        running: node.running,
        useful_flops: node.useful_flops,
        peak_flops: node.peak_flops,
        numerics: &node.numerics,
        cpus: &node.cpus,
        host_fraction: f64::from(node.host_fraction_ppm) / 1e6,
        telemetry_age_seconds: node.telemetry_age_seconds,
        version: &node.version,
        gpus: node
            .gpus
            .iter()
            .map(|gpu| GpuJson {
                uuid: &gpu.uuid,
                up: gpu.up,
                power_watts: gpu.power_watts,
                energy_joules: gpu.energy_joules,
                utilization_ratio: gpu.utilization_ratio,
                foreign_processes: gpu.foreign_processes,
            })
            .collect(),
    }
}

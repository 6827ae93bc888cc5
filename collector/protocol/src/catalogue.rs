//! Every metric that Wattmill exposes: name, unit, help, labels, and its OpenTelemetry form.
//!
//! Code, documentation, dashboards and the mapping rules for stores that receive OTLP all come from
//! here. Names and units follow Prometheus (base units, `_total` for counters); the OTLP side follows
//! OpenTelemetry's hardware and system conventions of [`SEMANTIC_CONVENTIONS`], with `wattmill.` where
//! they have no word.

/// Schema of the OpenTelemetry semantic conventions whose names the [`Otlp`] forms use.
pub const SEMANTIC_CONVENTIONS: &str = "https://opentelemetry.io/schemas/1.37.0";

/// Whether a value only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Cumulative: only grows, but for a restart of what it counts.
    Counter,
    /// Moves both ways.
    Gauge,
}

/// Which program exposes a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exporter {
    /// `wattmill-agent`.
    Agent,
    /// `wattmill-collector`.
    Collector,
}

/// One metric.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Prometheus name, with its unit.
    pub name: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// Unit in UCUM, as OpenTelemetry wants it.
    pub unit: &'static str,
    /// Label names, in order.
    pub labels: &'static [&'static str],
    /// What it says, for HELP and the documentation.
    pub help: &'static str,
    /// Who exposes it.
    pub exporter: Exporter,
    /// How it is pushed; `None` where it is only scraped.
    pub otlp: Option<Otlp>,
}

/// A metric's form in OpenTelemetry.
#[derive(Debug, PartialEq, Eq)]
pub struct Otlp {
    /// Instrument name.
    pub name: &'static str,
    /// Unit in UCUM.
    pub unit: &'static str,
    /// Attributes that every point carries and that tell this metric from others of the same name.
    pub fixed: &'static [(&'static str, &'static str)],
    /// Attribute for each Prometheus label, in order.
    pub attributes: &'static [&'static str],
}

/// Describes a GPU; always 1. Join on uuid: the index of a GPU may change.
pub static GPU_INFO: Metric = Metric {
    name: "wattmill_gpu_info",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["uuid", "index", "model", "driver", "pci"],
    help: "Describes a GPU; always 1. Join on uuid: the index of a GPU may change.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.gpu.info",
        unit: "1",
        fixed: &[],
        attributes: &["hw.id", "wattmill.gpu.index", "hw.model", "hw.driver_version", "wattmill.gpu.pci"],
    }),
};

/// Describes this node; always 1.
pub static NODE_INFO: Metric = Metric {
    name: "wattmill_node_info",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["node", "name", "machine_id", "cpu_model", "numerics", "version"],
    help: "Describes this node; always 1.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.node.info",
        unit: "1",
        fixed: &[],
        attributes: &[
            "wattmill.node.id",
            "wattmill.node.name",
            "host.id",
            "host.cpu.model.name",
            "wattmill.numerics",
            "service.version",
        ],
    }),
};

/// 1 while the GPU answers, 0 while it is lost; its counters then stand still.
pub static GPU_UP: Metric = Metric {
    name: "wattmill_gpu_up",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["uuid"],
    help: "1 while the GPU answers, 0 while it is lost; its counters then stand still.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp { name: "hw.status", unit: "1", fixed: &[("hw.type", "gpu")], attributes: &["hw.id"] }),
};

/// Mean power of the GPU over the last metering window.
pub static GPU_POWER_WATTS: Metric = Metric {
    name: "wattmill_gpu_power_watts",
    kind: Kind::Gauge,
    unit: "W",
    labels: &["uuid"],
    help: "Mean power of the GPU over the last metering window.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp { name: "hw.power", unit: "W", fixed: &[("hw.type", "gpu")], attributes: &["hw.id"] }),
};

/// Energy of the GPU since this node first saw it, by how it is known. The sources measure the same joules: never sum them.
pub static GPU_ENERGY_JOULES: Metric = Metric {
    name: "wattmill_gpu_energy_joules_total",
    kind: Kind::Counter,
    unit: "J",
    labels: &["uuid", "source"],
    help: "Energy of the GPU since this node first saw it, by how it is known. The sources measure the same joules: never sum them.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "hw.energy",
        unit: "J",
        fixed: &[("hw.type", "gpu")],
        attributes: &["hw.id", "wattmill.source"],
    }),
};

/// (Integrated power - counter) / counter over the last minute.
pub static GPU_ENERGY_DIVERGENCE: Metric = Metric {
    name: "wattmill_gpu_energy_divergence_ratio",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["uuid"],
    help: "(Integrated power - counter) / counter over the last minute.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.gpu.energy.divergence",
        unit: "1",
        fixed: &[],
        attributes: &["hw.id"],
    }),
};

/// Half-width of an interval around the GPU's energy of the last minute that holds the true energy in at least 99 % of cases, as a share of that energy. Absent where no accuracy is known.
pub static GPU_ENERGY_UNCERTAINTY: Metric = Metric {
    name: "wattmill_gpu_energy_uncertainty_ratio",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["uuid", "source"],
    help: "Half-width of an interval around the GPU's energy of the last minute that holds the true energy in at least 99 % of cases, as a share of that energy. Absent where no accuracy is known.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.gpu.energy.uncertainty",
        unit: "1",
        fixed: &[],
        attributes: &["hw.id", "wattmill.source"],
    }),
};

/// Share of time in which a kernel ran on the GPU.
pub static GPU_UTILIZATION: Metric = Metric {
    name: "wattmill_gpu_utilization_ratio",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["uuid"],
    help: "Share of time in which a kernel ran on the GPU.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "hw.gpu.utilization",
        unit: "1",
        fixed: &[("hw.gpu.task", "general")],
        attributes: &["hw.id"],
    }),
};

/// Memory in use on the GPU.
pub static GPU_MEMORY_USED: Metric = Metric {
    name: "wattmill_gpu_memory_used_bytes",
    kind: Kind::Gauge,
    unit: "By",
    labels: &["uuid"],
    help: "Memory in use on the GPU.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp { name: "hw.gpu.memory.usage", unit: "By", fixed: &[], attributes: &["hw.id"] }),
};

/// Memory of the GPU.
pub static GPU_MEMORY_SIZE: Metric = Metric {
    name: "wattmill_gpu_memory_size_bytes",
    kind: Kind::Gauge,
    unit: "By",
    labels: &["uuid"],
    help: "Memory of the GPU.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp { name: "hw.gpu.memory.limit", unit: "By", fixed: &[], attributes: &["hw.id"] }),
};

/// Temperature of the GPU's core.
pub static GPU_TEMPERATURE: Metric = Metric {
    name: "wattmill_gpu_temperature_celsius",
    kind: Kind::Gauge,
    unit: "Cel",
    labels: &["uuid"],
    help: "Temperature of the GPU's core.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "hw.temperature",
        unit: "Cel",
        fixed: &[("hw.type", "gpu")],
        attributes: &["hw.id"],
    }),
};

/// Clock of the GPU's multiprocessors.
pub static GPU_SM_CLOCK: Metric = Metric {
    name: "wattmill_gpu_sm_clock_hertz",
    kind: Kind::Gauge,
    unit: "Hz",
    labels: &["uuid"],
    help: "Clock of the GPU's multiprocessors.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp { name: "wattmill.gpu.sm_clock", unit: "Hz", fixed: &[], attributes: &["hw.id"] }),
};

/// Power limit in force on the GPU.
pub static GPU_POWER_LIMIT: Metric = Metric {
    name: "wattmill_gpu_power_limit_watts",
    kind: Kind::Gauge,
    unit: "W",
    labels: &["uuid"],
    help: "Power limit in force on the GPU.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp { name: "wattmill.gpu.power_limit", unit: "W", fixed: &[], attributes: &["hw.id"] }),
};

/// Power at the sensor's newest sample. A module contains its GPU, a GPU its memory: never sum scopes.
pub static GPU_POWER_INSTANT: Metric = Metric {
    name: "wattmill_gpu_power_instant_watts",
    kind: Kind::Gauge,
    unit: "W",
    labels: &["uuid", "scope"],
    help: "Power at the sensor's newest sample. A module contains its GPU, a GPU its memory: never sum scopes.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.gpu.power.instant",
        unit: "W",
        fixed: &[],
        attributes: &["hw.id", "wattmill.scope"],
    }),
};

/// Mean power over a time that the driver chooses, NVIDIA's the last second. A module contains its GPU, a GPU its memory: never sum scopes.
pub static GPU_POWER_AVERAGE: Metric = Metric {
    name: "wattmill_gpu_power_average_watts",
    kind: Kind::Gauge,
    unit: "W",
    labels: &["uuid", "scope"],
    help: "Mean power over a time that the driver chooses, NVIDIA's the last second. A module contains its GPU, a GPU its memory: never sum scopes.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.gpu.power.average",
        unit: "W",
        fixed: &[],
        attributes: &["hw.id", "wattmill.scope"],
    }),
};

/// Energy of the module that holds the GPU and a CPU, since this node first saw it. It contains the GPU's: never sum them.
pub static GPU_MODULE_ENERGY_JOULES: Metric = Metric {
    name: "wattmill_gpu_module_energy_joules_total",
    kind: Kind::Counter,
    unit: "J",
    labels: &["uuid", "source"],
    help: "Energy of the module that holds the GPU and a CPU, since this node first saw it. It contains the GPU's: never sum them.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.gpu.module.energy",
        unit: "J",
        fixed: &[],
        attributes: &["hw.id", "wattmill.source"],
    }),
};

/// Power by a sensor of a board, a power supply or the whole node. They contain or overlap each other and all else: never sum them.
pub static SENSOR_POWER_WATTS: Metric = Metric {
    name: "wattmill_sensor_power_watts",
    kind: Kind::Gauge,
    unit: "W",
    labels: &["chip", "sensor"],
    help: "Power by a sensor of a board, a power supply or the whole node. They contain or overlap each other and all else: never sum them.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.sensor.power",
        unit: "W",
        fixed: &[],
        attributes: &["wattmill.sensor.chip", "wattmill.sensor.name"],
    }),
};

/// Energy by a sensor of a board, a power supply or the whole node, since this node first saw it. They contain or overlap each other and all else: never sum them.
pub static SENSOR_ENERGY_JOULES: Metric = Metric {
    name: "wattmill_sensor_energy_joules_total",
    kind: Kind::Counter,
    unit: "J",
    labels: &["chip", "sensor", "source"],
    help: "Energy by a sensor of a board, a power supply or the whole node, since this node first saw it. They contain or overlap each other and all else: never sum them.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.sensor.energy",
        unit: "J",
        fixed: &[],
        attributes: &["wattmill.sensor.chip", "wattmill.sensor.name", "wattmill.source"],
    }),
};

/// Power limit of the GPU after a driver load.
pub static GPU_POWER_LIMIT_DEFAULT: Metric = Metric {
    name: "wattmill_gpu_power_limit_default_watts",
    kind: Kind::Gauge,
    unit: "W",
    labels: &["uuid"],
    help: "Power limit of the GPU after a driver load.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.gpu.power_limit.default",
        unit: "W",
        fixed: &[],
        attributes: &["hw.id"],
    }),
};

/// Least power limit that the GPU can be set to.
pub static GPU_POWER_LIMIT_MIN: Metric = Metric {
    name: "wattmill_gpu_power_limit_min_watts",
    kind: Kind::Gauge,
    unit: "W",
    labels: &["uuid"],
    help: "Least power limit that the GPU can be set to.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp { name: "wattmill.gpu.power_limit.min", unit: "W", fixed: &[], attributes: &["hw.id"] }),
};

/// Largest power limit that the GPU can be set to.
pub static GPU_POWER_LIMIT_MAX: Metric = Metric {
    name: "wattmill_gpu_power_limit_max_watts",
    kind: Kind::Gauge,
    unit: "W",
    labels: &["uuid"],
    help: "Largest power limit that the GPU can be set to.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp { name: "wattmill.gpu.power_limit.max", unit: "W", fixed: &[], attributes: &["hw.id"] }),
};

/// Time in which the GPU's clocks were lowered, by reason. Reasons may hold at once: never sum them.
pub static GPU_THROTTLE_SECONDS: Metric = Metric {
    name: "wattmill_gpu_throttle_seconds_total",
    kind: Kind::Counter,
    unit: "s",
    labels: &["uuid", "reason"],
    help: "Time in which the GPU's clocks were lowered, by reason. Reasons may hold at once: never sum them.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.gpu.throttle",
        unit: "s",
        fixed: &[],
        attributes: &["hw.id", "wattmill.reason"],
    }),
};

/// Bytes that the GPU received over PCIe.
pub static GPU_PCIE_RECEIVE: Metric = Metric {
    name: "wattmill_gpu_pcie_receive_bytes_total",
    kind: Kind::Counter,
    unit: "By",
    labels: &["uuid"],
    help: "Bytes that the GPU received over PCIe.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "hw.gpu.io",
        unit: "By",
        fixed: &[("network.io.direction", "receive")],
        attributes: &["hw.id"],
    }),
};

/// Bytes that the GPU sent over PCIe.
pub static GPU_PCIE_TRANSMIT: Metric = Metric {
    name: "wattmill_gpu_pcie_transmit_bytes_total",
    kind: Kind::Counter,
    unit: "By",
    labels: &["uuid"],
    help: "Bytes that the GPU sent over PCIe.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "hw.gpu.io",
        unit: "By",
        fixed: &[("network.io.direction", "transmit")],
        attributes: &["hw.id"],
    }),
};

/// Errors of the GPU that the driver reported, by Xid.
pub static GPU_XID_ERRORS: Metric = Metric {
    name: "wattmill_gpu_xid_errors_total",
    kind: Kind::Counter,
    unit: "1",
    labels: &["uuid", "xid"],
    help: "Errors of the GPU that the driver reported, by Xid.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "hw.errors",
        unit: "1",
        fixed: &[("hw.type", "gpu"), ("error.type", "xid")],
        attributes: &["hw.id", "wattmill.gpu.xid"],
    }),
};

/// Double-bit memory errors that the GPU reported.
pub static GPU_ECC_ERRORS: Metric = Metric {
    name: "wattmill_gpu_ecc_double_bit_errors_total",
    kind: Kind::Counter,
    unit: "1",
    labels: &["uuid"],
    help: "Double-bit memory errors that the GPU reported.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "hw.errors",
        unit: "1",
        fixed: &[("hw.type", "gpu"), ("error.type", "double_bit_ecc")],
        attributes: &["hw.id"],
    }),
};

/// Why a GPU does not answer, and the newest Xid since it last came back; always 1, and absent while it answers.
pub static GPU_LOST_INFO: Metric = Metric {
    name: "wattmill_gpu_lost_info",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["uuid", "reason", "xid"],
    help: "Why a GPU does not answer, and the newest Xid since it last came back; always 1, and absent while it answers.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.gpu.lost",
        unit: "1",
        fixed: &[],
        attributes: &["hw.id", "error.type", "wattmill.gpu.xid"],
    }),
};

/// What the driver wants done to have a sound GPU again; always 1.
pub static GPU_RECOVERY_ACTION_INFO: Metric = Metric {
    name: "wattmill_gpu_recovery_action_info",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["uuid", "action"],
    help: "What the driver wants done to have a sound GPU again; always 1.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.gpu.recovery_action",
        unit: "1",
        fixed: &[],
        attributes: &["hw.id", "wattmill.gpu.action"],
    }),
};

/// Processes that compute on the GPU and are not Wattmill's. Such a GPU is busy, and is left alone.
pub static GPU_FOREIGN_PROCESSES: Metric = Metric {
    name: "wattmill_gpu_foreign_processes",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["uuid"],
    help: "Processes that compute on the GPU and are not Wattmill's. Such a GPU is busy, and is left alone.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.gpu.foreign_processes",
        unit: "1",
        fixed: &[],
        attributes: &["hw.id"],
    }),
};

/// An instance of a partitioned GPU; always 1. Power and energy are the whole GPU's.
pub static GPU_MIG_INFO: Metric = Metric {
    name: "wattmill_gpu_mig_info",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["uuid", "mig", "gpu_instance", "compute_instance", "slices"],
    help: "An instance of a partitioned GPU; always 1. Power and energy are the whole GPU's.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.gpu.mig.info",
        unit: "1",
        fixed: &[],
        attributes: &[
            "hw.id",
            "wattmill.gpu.mig.id",
            "wattmill.gpu.mig.gpu_instance",
            "wattmill.gpu.mig.compute_instance",
            "wattmill.gpu.mig.slices",
        ],
    }),
};

/// Memory of an instance of a partitioned GPU.
pub static GPU_MIG_MEMORY_SIZE: Metric = Metric {
    name: "wattmill_gpu_mig_memory_size_bytes",
    kind: Kind::Gauge,
    unit: "By",
    labels: &["uuid", "mig"],
    help: "Memory of an instance of a partitioned GPU.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.gpu.mig.memory.limit",
        unit: "By",
        fixed: &[],
        attributes: &["hw.id", "wattmill.gpu.mig.id"],
    }),
};

/// Mean power of a CPU or DRAM zone of the whole host over the last metering window. Zones contain each other: never sum zones.
pub static CPU_POWER_WATTS: Metric = Metric {
    name: "wattmill_cpu_power_watts",
    kind: Kind::Gauge,
    unit: "W",
    labels: &["zone", "source"],
    help: "Mean power of a CPU or DRAM zone of the whole host over the last metering window. Zones contain each other: never sum zones.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "hw.power",
        unit: "W",
        fixed: &[("hw.type", "cpu")],
        attributes: &["hw.id", "wattmill.source"],
    }),
};

/// Energy of a CPU or DRAM zone of the whole host since this node first saw it. Zones contain each other: never sum zones.
pub static CPU_ENERGY_JOULES: Metric = Metric {
    name: "wattmill_cpu_energy_joules_total",
    kind: Kind::Counter,
    unit: "J",
    labels: &["zone", "source"],
    help: "Energy of a CPU or DRAM zone of the whole host since this node first saw it. Zones contain each other: never sum zones.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "hw.energy",
        unit: "J",
        fixed: &[("hw.type", "cpu")],
        attributes: &["hw.id", "wattmill.source"],
    }),
};

/// Energy that this node accounts for: scopes do not overlap and may be summed. A node that shares its host counts its share only.
pub static NODE_ENERGY_JOULES: Metric = Metric {
    name: "wattmill_node_energy_joules_total",
    kind: Kind::Counter,
    unit: "J",
    labels: &["scope", "source"],
    help: "Energy that this node accounts for: scopes do not overlap and may be summed. A node that shares its host counts its share only.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "hw.host.energy",
        unit: "J",
        fixed: &[],
        attributes: &["wattmill.scope", "wattmill.source"],
    }),
};

/// Mean power behind wattmill_node_energy_joules_total over the last metering window.
pub static NODE_POWER_WATTS: Metric = Metric {
    name: "wattmill_node_power_watts",
    kind: Kind::Gauge,
    unit: "W",
    labels: &["scope", "source"],
    help: "Mean power behind wattmill_node_energy_joules_total over the last metering window.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "hw.host.power",
        unit: "W",
        fixed: &[],
        attributes: &["wattmill.scope", "wattmill.source"],
    }),
};

/// Where the node's energy went: shards, units (where attribution is on), other processes, idle. The consumers sum exactly to wattmill_node_energy_joules_total.
pub static NODE_ATTRIBUTED_ENERGY_JOULES: Metric = Metric {
    name: "wattmill_node_attributed_energy_joules_total",
    kind: Kind::Counter,
    unit: "J",
    labels: &["consumer", "source"],
    help: "Where the node's energy went: shards, units (where attribution is on), other processes, idle. The consumers sum exactly to wattmill_node_energy_joules_total.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.node.attributed_energy",
        unit: "J",
        fixed: &[],
        attributes: &["wattmill.consumer", "wattmill.source"],
    }),
};

/// Energy of a service, container, pod or job since it has a series; of those without one (kind rest), and of series that ended (kind departed). All sum exactly to the consumer units; leave departed out of rates.
pub static UNIT_ENERGY_JOULES: Metric = Metric {
    name: "wattmill_unit_energy_joules_total",
    kind: Kind::Counter,
    unit: "J",
    labels: &["kind", "name", "scope", "source"],
    help: "Energy of a service, container, pod or job since it has a series; of those without one (kind rest), and of series that ended (kind departed). All sum exactly to the consumer units; leave departed out of rates.",
    exporter: Exporter::Agent,
    otlp: None,
};

/// Mean power behind wattmill_unit_energy_joules_total over the last metering window.
pub static UNIT_POWER_WATTS: Metric = Metric {
    name: "wattmill_unit_power_watts",
    kind: Kind::Gauge,
    unit: "W",
    labels: &["kind", "name", "scope", "source"],
    help: "Mean power behind wattmill_unit_energy_joules_total over the last metering window.",
    exporter: Exporter::Agent,
    otlp: None,
};

/// Share of the host's CPU time that was not idle, over the last metering window.
pub static HOST_CPU_UTILIZATION: Metric = Metric {
    name: "wattmill_host_cpu_utilization_ratio",
    kind: Kind::Gauge,
    unit: "1",
    labels: &[],
    help: "Share of the host's CPU time that was not idle, over the last metering window.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp { name: "system.cpu.utilization", unit: "1", fixed: &[], attributes: &[] }),
};

/// Time that the host's CPUs spent in each mode. Time of guests stands in user and nice.
pub static HOST_CPU_SECONDS: Metric = Metric {
    name: "wattmill_host_cpu_seconds_total",
    kind: Kind::Counter,
    unit: "s",
    labels: &["mode"],
    help: "Time that the host's CPUs spent in each mode. Time of guests stands in user and nice.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp { name: "system.cpu.time", unit: "s", fixed: &[], attributes: &["cpu.mode"] }),
};

/// Time in which some or all (full) tasks of the host waited for a resource: pressure stall information.
pub static HOST_PRESSURE_SECONDS: Metric = Metric {
    name: "wattmill_host_pressure_stalled_seconds_total",
    kind: Kind::Counter,
    unit: "s",
    labels: &["resource", "share"],
    help: "Time in which some or all (full) tasks of the host waited for a resource: pressure stall information.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.host.pressure.stalled",
        unit: "s",
        fixed: &[],
        attributes: &["wattmill.resource", "wattmill.share"],
    }),
};

/// Memory of the host that is not available to new programs.
pub static HOST_MEMORY_USED: Metric = Metric {
    name: "wattmill_host_memory_used_bytes",
    kind: Kind::Gauge,
    unit: "By",
    labels: &[],
    help: "Memory of the host that is not available to new programs.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "system.memory.usage",
        unit: "By",
        fixed: &[("system.memory.state", "used")],
        attributes: &[],
    }),
};

/// Memory of the host.
pub static HOST_MEMORY_SIZE: Metric = Metric {
    name: "wattmill_host_memory_size_bytes",
    kind: Kind::Gauge,
    unit: "By",
    labels: &[],
    help: "Memory of the host.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp { name: "system.memory.limit", unit: "By", fixed: &[], attributes: &[] }),
};

/// Bytes read from a block device of the host.
pub static HOST_DISK_READ: Metric = Metric {
    name: "wattmill_host_disk_read_bytes_total",
    kind: Kind::Counter,
    unit: "By",
    labels: &["device"],
    help: "Bytes read from a block device of the host.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "system.disk.io",
        unit: "By",
        fixed: &[("disk.io.direction", "read")],
        attributes: &["system.device"],
    }),
};

/// Bytes written to a block device of the host.
pub static HOST_DISK_WRITTEN: Metric = Metric {
    name: "wattmill_host_disk_written_bytes_total",
    kind: Kind::Counter,
    unit: "By",
    labels: &["device"],
    help: "Bytes written to a block device of the host.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "system.disk.io",
        unit: "By",
        fixed: &[("disk.io.direction", "write")],
        attributes: &["system.device"],
    }),
};

/// Bytes received by a network interface of the host.
pub static HOST_NETWORK_RECEIVE: Metric = Metric {
    name: "wattmill_host_network_receive_bytes_total",
    kind: Kind::Counter,
    unit: "By",
    labels: &["interface"],
    help: "Bytes received by a network interface of the host.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "system.network.io",
        unit: "By",
        fixed: &[("network.io.direction", "receive")],
        attributes: &["network.interface.name"],
    }),
};

/// Bytes sent by a network interface of the host.
pub static HOST_NETWORK_TRANSMIT: Metric = Metric {
    name: "wattmill_host_network_transmit_bytes_total",
    kind: Kind::Counter,
    unit: "By",
    labels: &["interface"],
    help: "Bytes sent by a network interface of the host.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "system.network.io",
        unit: "By",
        fixed: &[("network.io.direction", "transmit")],
        attributes: &["network.interface.name"],
    }),
};

/// Bytes/s that the host's storage can move, as configured. A host that declares it is a storage node.
pub static HOST_STORAGE_BANDWIDTH: Metric = Metric {
    name: "wattmill_host_storage_bandwidth_bytes_per_second",
    kind: Kind::Gauge,
    unit: "By/s",
    labels: &["op"],
    help: "Bytes/s that the host's storage can move, as configured. A host that declares it is a storage node.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.host.storage.bandwidth",
        unit: "By/s",
        fixed: &[],
        attributes: &["disk.io.direction"],
    }),
};

/// Bytes/s that the host's network can move one way, as configured, or the sum of its links' speeds.
pub static HOST_NETWORK_BANDWIDTH: Metric = Metric {
    name: "wattmill_host_network_bandwidth_bytes_per_second",
    kind: Kind::Gauge,
    unit: "By/s",
    labels: &[],
    help: "Bytes/s that the host's network can move one way, as configured, or the sum of its links' speeds.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp { name: "hw.network.bandwidth.limit", unit: "By/s", fixed: &[], attributes: &[] }),
};

/// Bytes used on a filesystem of the host.
pub static HOST_FILESYSTEM_USED: Metric = Metric {
    name: "wattmill_host_filesystem_used_bytes",
    kind: Kind::Gauge,
    unit: "By",
    labels: &["mountpoint"],
    help: "Bytes used on a filesystem of the host.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "system.filesystem.usage",
        unit: "By",
        fixed: &[("system.filesystem.state", "used")],
        attributes: &["system.filesystem.mountpoint"],
    }),
};

/// Size of a filesystem of the host.
pub static HOST_FILESYSTEM_SIZE: Metric = Metric {
    name: "wattmill_host_filesystem_size_bytes",
    kind: Kind::Gauge,
    unit: "By",
    labels: &["mountpoint"],
    help: "Size of a filesystem of the host.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "system.filesystem.limit",
        unit: "By",
        fixed: &[],
        attributes: &["system.filesystem.mountpoint"],
    }),
};

/// Model FLOPs of committed work: what the model's mathematics needs, without recomputation or waste.
pub static USEFUL_FLOPS: Metric = Metric {
    name: "wattmill_useful_flops_total",
    kind: Kind::Counter,
    unit: "1",
    labels: &["precision"],
    help: "Model FLOPs of committed work: what the model's mathematics needs, without recomputation or waste.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.useful_flops",
        unit: "1",
        fixed: &[],
        attributes: &["wattmill.precision"],
    }),
};

/// Dense peak FLOP/s of a compute device of this node, measured by a probe or configured.
pub static DEVICE_PEAK_FLOPS: Metric = Metric {
    name: "wattmill_device_peak_flops",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["device", "precision"],
    help: "Dense peak FLOP/s of a compute device of this node, measured by a probe or configured.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.device.peak_flops",
        unit: "1",
        fixed: &[],
        attributes: &["hw.id", "wattmill.precision"],
    }),
};

/// How long the newest reading of a backend took.
pub static AGENT_SAMPLE_DURATION: Metric = Metric {
    name: "wattmill_agent_sample_duration_seconds",
    kind: Kind::Gauge,
    unit: "s",
    labels: &["backend"],
    help: "How long the newest reading of a backend took.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.agent.sample.duration",
        unit: "s",
        fixed: &[],
        attributes: &["wattmill.backend"],
    }),
};

/// 1 while a backend answers in time, 0 while it hangs or fails.
pub static AGENT_BACKEND_UP: Metric = Metric {
    name: "wattmill_agent_backend_up",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["backend"],
    help: "1 while a backend answers in time, 0 while it hangs or fails.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.agent.backend.up",
        unit: "1",
        fixed: &[],
        attributes: &["wattmill.backend"],
    }),
};

/// Failed readings.
pub static AGENT_SAMPLE_ERRORS: Metric = Metric {
    name: "wattmill_agent_sample_errors_total",
    kind: Kind::Counter,
    unit: "1",
    labels: &["backend", "reason"],
    help: "Failed readings.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.agent.sample.errors",
        unit: "1",
        fixed: &[],
        attributes: &["wattmill.backend", "error.type"],
    }),
};

/// Times when a device's energy went unseen: its joules are missing, never invented.
pub static AGENT_GAPS: Metric = Metric {
    name: "wattmill_agent_gaps_total",
    kind: Kind::Counter,
    unit: "1",
    labels: &["device", "reason"],
    help: "Times when a device's energy went unseen: its joules are missing, never invented.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.agent.gaps",
        unit: "1",
        fixed: &[],
        attributes: &["hw.id", "wattmill.reason"],
    }),
};

/// Telemetry frames that wait on disk for the collector.
pub static AGENT_SPOOL_FRAMES: Metric = Metric {
    name: "wattmill_agent_spool_frames",
    kind: Kind::Gauge,
    unit: "1",
    labels: &[],
    help: "Telemetry frames that wait on disk for the collector.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp { name: "wattmill.agent.spool.frames", unit: "1", fixed: &[], attributes: &[] }),
};

/// Telemetry frames dropped because the spool was full or could not be written, or the collector refused them for good.
pub static AGENT_SPOOL_DROPPED: Metric = Metric {
    name: "wattmill_agent_spool_dropped_total",
    kind: Kind::Counter,
    unit: "1",
    labels: &[],
    help: "Telemetry frames dropped because the spool was full or could not be written, or the collector refused them for good.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp { name: "wattmill.agent.spool.dropped", unit: "1", fixed: &[], attributes: &[] }),
};

/// Failed writes of the energy ledger; metering goes on from memory meanwhile.
pub static AGENT_LEDGER_ERRORS: Metric = Metric {
    name: "wattmill_agent_ledger_errors_total",
    kind: Kind::Counter,
    unit: "1",
    labels: &["reason"],
    help: "Failed writes of the energy ledger; metering goes on from memory meanwhile.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp {
        name: "wattmill.agent.ledger.errors",
        unit: "1",
        fixed: &[],
        attributes: &["error.type"],
    }),
};

/// CPU time that the agent itself has used, its worker not included.
pub static AGENT_CPU_SECONDS: Metric = Metric {
    name: "wattmill_agent_cpu_seconds_total",
    kind: Kind::Counter,
    unit: "s",
    labels: &[],
    help: "CPU time that the agent itself has used, its worker not included.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp { name: "process.cpu.time", unit: "s", fixed: &[], attributes: &[] }),
};

/// Resident memory of the agent itself, pages that it shares with other programs included.
pub static AGENT_RESIDENT_MEMORY: Metric = Metric {
    name: "wattmill_agent_resident_memory_bytes",
    kind: Kind::Gauge,
    unit: "By",
    labels: &[],
    help: "Resident memory of the agent itself, pages that it shares with other programs included.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp { name: "process.memory.usage", unit: "By", fixed: &[], attributes: &[] }),
};

/// Estimated power of the agent itself: its share, by CPU time, of what the node's CPUs and memory drew over the last window. They contain it: never sum.
pub static AGENT_POWER_WATTS: Metric = Metric {
    name: "wattmill_agent_power_watts",
    kind: Kind::Gauge,
    unit: "W",
    labels: &[],
    help: "Estimated power of the agent itself: its share, by CPU time, of what the node's CPUs and memory drew over the last window. They contain it: never sum.",
    exporter: Exporter::Agent,
    otlp: Some(Otlp { name: "wattmill.agent.power", unit: "W", fixed: &[], attributes: &[] }),
};

/// Version of the agent; always 1.
pub static AGENT_BUILD_INFO: Metric = Metric {
    name: "wattmill_agent_build_info",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["version"],
    help: "Version of the agent; always 1.",
    exporter: Exporter::Agent,
    otlp: None,
};

/// Compute utilisation: committed model FLOPs / (dense peak FLOP/s of all compute devices, idle ones too, x time), over the last minute.
pub static CLUSTER_MFU: Metric = Metric {
    name: "wattmill_cluster_mfu_ratio",
    kind: Kind::Gauge,
    unit: "1",
    labels: &[],
    help: "Compute utilisation: committed model FLOPs / (dense peak FLOP/s of all compute devices, idle ones too, x time), over the last minute.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Mean utilisation that the compute devices themselves report.
pub static CLUSTER_DEVICE_UTILIZATION: Metric = Metric {
    name: "wattmill_cluster_device_utilization_ratio",
    kind: Kind::Gauge,
    unit: "1",
    labels: &[],
    help: "Mean utilisation that the compute devices themselves report.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Storage utilisation: bytes used / bytes there are, each host's filesystems counted once.
pub static CLUSTER_STORAGE_CAPACITY: Metric = Metric {
    name: "wattmill_cluster_storage_capacity_ratio",
    kind: Kind::Gauge,
    unit: "1",
    labels: &[],
    help: "Storage utilisation: bytes used / bytes there are, each host's filesystems counted once.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Bytes moved by the disks of storage nodes / (their configured bandwidth x time), over the last minute.
pub static CLUSTER_STORAGE_BANDWIDTH: Metric = Metric {
    name: "wattmill_cluster_storage_bandwidth_ratio",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["op"],
    help: "Bytes moved by the disks of storage nodes / (their configured bandwidth x time), over the last minute.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Compute utilisation x storage utilisation.
pub static CLUSTER_OBJECTIVE: Metric = Metric {
    name: "wattmill_cluster_objective_ratio",
    kind: Kind::Gauge,
    unit: "1",
    labels: &[],
    help: "Compute utilisation x storage utilisation.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Power of all nodes with fresh telemetry.
pub static CLUSTER_POWER: Metric = Metric {
    name: "wattmill_cluster_power_watts",
    kind: Kind::Gauge,
    unit: "W",
    labels: &[],
    help: "Power of all nodes with fresh telemetry.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Energy of all nodes since each joined. Scopes do not overlap.
pub static CLUSTER_ENERGY: Metric = Metric {
    name: "wattmill_cluster_energy_joules_total",
    kind: Kind::Counter,
    unit: "J",
    labels: &["scope", "source"],
    help: "Energy of all nodes since each joined. Scopes do not overlap.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Committed model FLOPs / every joule, idle ones too, over the last minute.
pub static CLUSTER_FLOPS_PER_JOULE: Metric = Metric {
    name: "wattmill_cluster_flops_per_joule",
    kind: Kind::Gauge,
    unit: "1",
    labels: &[],
    help: "Committed model FLOPs / every joule, idle ones too, over the last minute.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Joules of work that was thrown away.
pub static CLUSTER_WASTED: Metric = Metric {
    name: "wattmill_cluster_wasted_joules_total",
    kind: Kind::Counter,
    unit: "J",
    labels: &["reason"],
    help: "Joules of work that was thrown away.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Share of the known nodes whose telemetry is fresh.
pub static CLUSTER_COVERAGE: Metric = Metric {
    name: "wattmill_cluster_telemetry_coverage_ratio",
    kind: Kind::Gauge,
    unit: "1",
    labels: &[],
    help: "Share of the known nodes whose telemetry is fresh.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Work left in all jobs / sum of peaks.
pub static CLUSTER_COMPUTE_BOUND: Metric = Metric {
    name: "wattmill_cluster_compute_lower_bound_seconds",
    kind: Kind::Gauge,
    unit: "s",
    labels: &[],
    help: "Work left in all jobs / sum of peaks.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Bytes of the jobs' data that no node has read yet / min(storage bandwidth, node bandwidth). Absent where one is unknown.
pub static CLUSTER_TRANSFER_BOUND: Metric = Metric {
    name: "wattmill_cluster_transfer_lower_bound_seconds",
    kind: Kind::Gauge,
    unit: "s",
    labels: &[],
    help: "Bytes of the jobs' data that no node has read yet / min(storage bandwidth, node bandwidth). Absent where one is unknown.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// The founding document's eta as written: P*T/(v*N). Not a utilisation; see mfu_ratio.
pub static CLUSTER_SEED_ETA: Metric = Metric {
    name: "wattmill_cluster_seed_eta_literal",
    kind: Kind::Gauge,
    unit: "1",
    labels: &[],
    help: "The founding document's eta as written: P*T/(v*N). Not a utilisation; see mfu_ratio.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// The founding document's sigma as written: D*M*s/(M*S). See storage_capacity_ratio.
pub static CLUSTER_SEED_SIGMA: Metric = Metric {
    name: "wattmill_cluster_seed_sigma_literal",
    kind: Kind::Gauge,
    unit: "1",
    labels: &[],
    help: "The founding document's sigma as written: D*M*s/(M*S). See storage_capacity_ratio.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Known nodes by state: connected, disconnected.
pub static CLUSTER_NODES: Metric = Metric {
    name: "wattmill_cluster_nodes",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["state"],
    help: "Known nodes by state: connected, disconnected.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Power of a node as it was last pushed.
pub static COLLECTOR_NODE_POWER: Metric = Metric {
    name: "wattmill_collector_node_power_watts",
    kind: Kind::Gauge,
    unit: "W",
    labels: &["node", "name"],
    help: "Power of a node as it was last pushed.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Committed rounds / rounds of the job.
pub static JOB_PROGRESS: Metric = Metric {
    name: "wattmill_job_progress_ratio",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["job"],
    help: "Committed rounds / rounds of the job.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Mean training loss of the newest committed round.
pub static JOB_LOSS: Metric = Metric {
    name: "wattmill_job_loss",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["job"],
    help: "Mean training loss of the newest committed round.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Accuracy on held-out rows at the newest evaluation.
pub static JOB_ACCURACY: Metric = Metric {
    name: "wattmill_job_accuracy_ratio",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["job"],
    help: "Accuracy on held-out rows at the newest evaluation.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Samples of committed shards.
pub static JOB_SAMPLES: Metric = Metric {
    name: "wattmill_job_samples_total",
    kind: Kind::Counter,
    unit: "1",
    labels: &["job"],
    help: "Samples of committed shards.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Joules of a job's shards by outcome: committed or wasted.
pub static JOB_ENERGY: Metric = Metric {
    name: "wattmill_job_energy_joules_total",
    kind: Kind::Counter,
    unit: "J",
    labels: &["job", "outcome", "source"],
    help: "Joules of a job's shards by outcome: committed or wasted. Idle joules are not in it.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Committed samples / all joules of the job, wasted ones too.
pub static JOB_SAMPLES_PER_JOULE: Metric = Metric {
    name: "wattmill_job_samples_per_joule",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["job"],
    help: "Committed samples / all joules of the job: its shards', wasted ones too, and its share of what idled while it ran.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Shards of a job's current round by state.
pub static SHARDS: Metric = Metric {
    name: "wattmill_shards",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["job", "state"],
    help: "Shards of a job's current round by state.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Leases that ended without a commit and were given anew.
pub static RESCHEDULES: Metric = Metric {
    name: "wattmill_reschedules_total",
    kind: Kind::Counter,
    unit: "1",
    labels: &["reason"],
    help: "Leases that ended without a commit; their shards are given anew.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Version of the collector; always 1.
pub static COLLECTOR_BUILD_INFO: Metric = Metric {
    name: "wattmill_collector_build_info",
    kind: Kind::Gauge,
    unit: "1",
    labels: &["version"],
    help: "Version of the collector; always 1.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Data points taken in.
pub static COLLECTOR_INGESTED_POINTS: Metric = Metric {
    name: "wattmill_collector_ingested_points_total",
    kind: Kind::Counter,
    unit: "1",
    labels: &[],
    help: "Data points taken in.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Pushes and points that were refused.
pub static COLLECTOR_INGEST_REJECTED: Metric = Metric {
    name: "wattmill_collector_ingest_rejected_total",
    kind: Kind::Counter,
    unit: "1",
    labels: &["reason"],
    help: "Pushes and points that were refused.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Open sessions of nodes.
pub static COLLECTOR_SESSIONS: Metric = Metric {
    name: "wattmill_collector_sessions",
    kind: Kind::Gauge,
    unit: "1",
    labels: &[],
    help: "Open sessions of nodes.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Transactions committed to the store.
pub static COLLECTOR_STORE_COMMITS: Metric = Metric {
    name: "wattmill_collector_store_commits_total",
    kind: Kind::Counter,
    unit: "1",
    labels: &[],
    help: "Transactions committed to the store.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Transactions that failed and were tried again.
pub static COLLECTOR_STORE_ERRORS: Metric = Metric {
    name: "wattmill_collector_store_errors_total",
    kind: Kind::Counter,
    unit: "1",
    labels: &[],
    help: "Transactions that failed and were tried again.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// How long the newest plan took.
pub static COLLECTOR_PLAN_DURATION: Metric = Metric {
    name: "wattmill_collector_plan_duration_seconds",
    kind: Kind::Gauge,
    unit: "s",
    labels: &[],
    help: "How long the newest plan took.",
    exporter: Exporter::Collector,
    otlp: None,
};

/// Every metric, in the order of the documentation.
pub static ALL: &[&Metric] = &[
    &GPU_INFO,
    &NODE_INFO,
    &GPU_UP,
    &GPU_POWER_WATTS,
    &GPU_ENERGY_JOULES,
    &GPU_ENERGY_DIVERGENCE,
    &GPU_ENERGY_UNCERTAINTY,
    &GPU_UTILIZATION,
    &GPU_MEMORY_USED,
    &GPU_MEMORY_SIZE,
    &GPU_TEMPERATURE,
    &GPU_SM_CLOCK,
    &GPU_POWER_LIMIT,
    &GPU_POWER_INSTANT,
    &GPU_POWER_AVERAGE,
    &GPU_MODULE_ENERGY_JOULES,
    &GPU_POWER_LIMIT_DEFAULT,
    &GPU_POWER_LIMIT_MIN,
    &GPU_POWER_LIMIT_MAX,
    &GPU_THROTTLE_SECONDS,
    &GPU_PCIE_RECEIVE,
    &GPU_PCIE_TRANSMIT,
    &GPU_XID_ERRORS,
    &GPU_ECC_ERRORS,
    &GPU_LOST_INFO,
    &GPU_RECOVERY_ACTION_INFO,
    &GPU_FOREIGN_PROCESSES,
    &GPU_MIG_INFO,
    &GPU_MIG_MEMORY_SIZE,
    &CPU_POWER_WATTS,
    &CPU_ENERGY_JOULES,
    &SENSOR_POWER_WATTS,
    &SENSOR_ENERGY_JOULES,
    &NODE_ENERGY_JOULES,
    &NODE_POWER_WATTS,
    &NODE_ATTRIBUTED_ENERGY_JOULES,
    &UNIT_ENERGY_JOULES,
    &UNIT_POWER_WATTS,
    &HOST_CPU_UTILIZATION,
    &HOST_CPU_SECONDS,
    &HOST_PRESSURE_SECONDS,
    &HOST_MEMORY_USED,
    &HOST_MEMORY_SIZE,
    &HOST_DISK_READ,
    &HOST_DISK_WRITTEN,
    &HOST_NETWORK_RECEIVE,
    &HOST_NETWORK_TRANSMIT,
    &HOST_STORAGE_BANDWIDTH,
    &HOST_NETWORK_BANDWIDTH,
    &HOST_FILESYSTEM_USED,
    &HOST_FILESYSTEM_SIZE,
    &USEFUL_FLOPS,
    &DEVICE_PEAK_FLOPS,
    &AGENT_SAMPLE_DURATION,
    &AGENT_BACKEND_UP,
    &AGENT_SAMPLE_ERRORS,
    &AGENT_GAPS,
    &AGENT_SPOOL_FRAMES,
    &AGENT_SPOOL_DROPPED,
    &AGENT_LEDGER_ERRORS,
    &AGENT_CPU_SECONDS,
    &AGENT_RESIDENT_MEMORY,
    &AGENT_POWER_WATTS,
    &AGENT_BUILD_INFO,
    &CLUSTER_MFU,
    &CLUSTER_DEVICE_UTILIZATION,
    &CLUSTER_STORAGE_CAPACITY,
    &CLUSTER_STORAGE_BANDWIDTH,
    &CLUSTER_OBJECTIVE,
    &CLUSTER_POWER,
    &CLUSTER_ENERGY,
    &CLUSTER_FLOPS_PER_JOULE,
    &CLUSTER_WASTED,
    &CLUSTER_COVERAGE,
    &CLUSTER_COMPUTE_BOUND,
    &CLUSTER_TRANSFER_BOUND,
    &CLUSTER_SEED_ETA,
    &CLUSTER_SEED_SIGMA,
    &CLUSTER_NODES,
    &COLLECTOR_NODE_POWER,
    &JOB_PROGRESS,
    &JOB_LOSS,
    &JOB_ACCURACY,
    &JOB_SAMPLES,
    &JOB_ENERGY,
    &JOB_SAMPLES_PER_JOULE,
    &SHARDS,
    &RESCHEDULES,
    &COLLECTOR_BUILD_INFO,
    &COLLECTOR_INGESTED_POINTS,
    &COLLECTOR_INGEST_REJECTED,
    &COLLECTOR_SESSIONS,
    &COLLECTOR_STORE_COMMITS,
    &COLLECTOR_STORE_ERRORS,
    &COLLECTOR_PLAN_DURATION,
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_follow_prometheus() {
        let mut seen = HashSet::new();
        for metric in ALL {
            assert!(seen.insert(metric.name), "{} stands twice", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.name.starts_with("wattmill_"), "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            let unit = match metric.unit {
                "J" => "_joules_total",
                "W" => "_watts",
                "By" => "_bytes",
                "s" => "_seconds",
                "Cel" => "_celsius",
                "Hz" => "_hertz",
                _ => "",
            };
            assert!(metric.name.contains(unit), "{} lacks its unit {unit}", metric.name);
        }
    }

    #[test]
    fn otlp_forms_are_told_apart() {
        let mut seen = HashSet::new();
        for metric in ALL {
            let Some(otlp) = &metric.otlp else { continue };
            assert_eq!(otlp.attributes.len(), metric.labels.len(), "{}", metric.name);
            assert!(seen.insert((otlp.name, otlp.fixed)), "{} shares its OTLP form", metric.name);
        }
    }
}

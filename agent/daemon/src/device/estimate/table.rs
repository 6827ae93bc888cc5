//! Idle and full-load power of a machine without a meter, from measured servers of its CPU's class.
//!
//! `table.csv` is derived by `derive.py` from published SPECpower_ssj2008 results (`docs/estimate.md` has the
//! method and the errors). Figures are watts at the wall for one hardware thread, so a virtual machine is
//! charged for its share of a host by the threads that it sees.

use std::sync::LazyLock;

/// The first row that matches decides; the last one matches everything.
static TABLE: LazyLock<Vec<Row>> = LazyLock::new(|| parse(include_str!("table.csv")));

/// Power of a machine, whose wattage between the two ends follows its CPU utilisation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PowerModel {
    /// Power at CPU utilisation 0, in watts at the wall.
    pub idle_watts: f64,
    /// Power at CPU utilisation 1, in watts at the wall.
    pub full_watts: f64,
    /// Which class of CPU the figures are of, e.g. `amd-epyc-milan`.
    pub class: &'static str,
    /// Measured servers behind the figures; 0 where those of the nearest older class stand in.
    pub servers: u32,
    /// Relative error at half load that nine of ten servers stay within when each is predicted from the others.
    pub relative_uncertainty: f64,
}

struct Row {
    class: &'static str,
    vendor: &'static str,
    patterns: Vec<&'static str>,
    servers: u32,
    idle_watts_per_thread: f64,
    full_watts_per_thread: f64,
    relative_uncertainty: f64,
}

/// The model for a CPU as `/proc/cpuinfo` describes it (`model name`, `vendor_id`) and the number of hardware
/// threads that the machine sees. Always finds one: a name without a model gets the recent servers of its
/// vendor, and an unknown vendor those of both.
///
/// # Panics
/// Never with the table as it is built in: a test reads every row of it.
#[must_use]
pub fn lookup(cpu_model_name: &str, vendor: &str, threads: u32) -> PowerModel {
    let name = normalise(cpu_model_name);
    let maker = format!("{name} {}", vendor.to_lowercase());
    let fits = |row: &&Row| {
        maker.contains(row.vendor) && row.patterns.iter().any(|pattern| matches_a_word(pattern, &name))
    };
    let row = TABLE.iter().find(fits).or(TABLE.last()).expect("the built-in table has rows");
    let threads = f64::from(threads);
    PowerModel {
        idle_watts: row.idle_watts_per_thread * threads,
        full_watts: row.full_watts_per_thread * threads,
        class: row.class,
        servers: row.servers,
        relative_uncertainty: row.relative_uncertainty,
    }
}

/// Power at a CPU utilisation from 0 to 1, in watts. Values outside count as the nearer end, and one that is
/// not a number as 0.
///
/// A line, because the data has two points of each server, idle and full load: there is no curve to fit, and a
/// bend taken from elsewhere would claim a precision that the spread between servers of a class does not have.
#[must_use]
pub fn watts(model: &PowerModel, utilization: f64) -> f64 {
    let utilization = if utilization.is_nan() { 0.0 } else { utilization.clamp(0.0, 1.0) };
    model.idle_watts + (model.full_watts - model.idle_watts) * utilization
}

/// Lower case, no trademark signs, no words that say nothing, single spaces: as `derive.py` does it.
fn normalise(name: &str) -> String {
    let name = name.to_lowercase().replace("(r)", " ").replace("(tm)", " ");
    let telling = name.split_whitespace().filter(|word| !["cpu", "processor"].contains(word));
    telling.collect::<Vec<_>>().join(" ")
}

/// Whether `pattern` matches from the start of some word on: `#` is a digit, `?` a letter or digit, `*` anything.
fn matches_a_word(pattern: &str, name: &str) -> bool {
    let name = name.as_bytes();
    let starts_word = |at: usize| at == 0 || !name[at - 1].is_ascii_alphanumeric();
    (0..=name.len()).any(|at| starts_word(at) && matches_here(pattern.as_bytes(), &name[at..]))
}

fn matches_here(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, _) => true,
        (Some((b'*', rest)), _) => (0..=text.len()).any(|skipped| matches_here(rest, &text[skipped..])),
        (Some(_), None) => false,
        (Some((symbol, rest)), Some((byte, text))) => {
            let fits = match symbol {
                b'#' => byte.is_ascii_digit(),
                b'?' => byte.is_ascii_alphanumeric(),
                literal => literal == byte,
            };
            fits && matches_here(rest, text)
        }
    }
}

/// Rows without the header. One that does not read is left out here and fails a test.
fn parse(table: &'static str) -> Vec<Row> {
    table.lines().skip(1).filter_map(parse_row).collect()
}

fn parse_row(line: &'static str) -> Option<Row> {
    let [class, vendor, patterns, servers, idle, full, _, _, _, _, uncertainty] =
        line.split(',').collect::<Vec<_>>().try_into().ok()?;
    Some(Row {
        class,
        vendor,
        patterns: patterns.split('|').collect(),
        servers: servers.parse().ok()?,
        idle_watts_per_thread: idle.parse().ok()?,
        full_watts_per_thread: full.parse().ok()?,
        relative_uncertainty: uncertainty.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTEL: &str = "GenuineIntel";
    const AMD: &str = "AuthenticAMD";

    fn class(name: &str, vendor: &str) -> &'static str {
        lookup(name, vendor, 8).class
    }

    #[test]
    fn every_row_of_the_table_reads_and_is_sound() {
        assert_eq!(TABLE.len() + 1, include_str!("table.csv").lines().count());
        for row in TABLE.iter() {
            let (idle, full) = (row.idle_watts_per_thread, row.full_watts_per_thread);
            assert!(0.0 < idle && idle < full && full < 100.0, "{}", row.class);
            assert!((0.05..2.0).contains(&row.relative_uncertainty), "{}", row.class);
        }
        let last = TABLE.last().unwrap();
        assert_eq!((last.vendor, last.patterns.as_slice()), ("", ["*"].as_slice()));
    }

    #[test]
    fn names_of_clouds_and_servers_find_their_class() {
        for (name, vendor, expected) in [
            ("AMD EPYC 7763 64-Core Processor", AMD, "amd-epyc-milan"),
            ("AMD EPYC 7R13 Processor", AMD, "amd-epyc-milan"),
            ("AMD EPYC 7B12", AMD, "amd-epyc-rome"),
            ("AMD EPYC 7551P 32-Core Processor", AMD, "amd-epyc-naples"),
            ("AMD EPYC 9654 96-Core Processor", AMD, "amd-epyc-genoa-or-newer"),
            ("AMD EPYC 9R14", AMD, "amd-epyc-genoa-or-newer"),
            ("AMD Opteron(tm) Processor 6276", AMD, "amd-opteron-bulldozer"),
            ("Dual-Core AMD Opteron(tm) Processor 2216 HE", AMD, "amd-opteron-k10"),
            ("Intel(R) Xeon(R) CPU Max 9480", INTEL, "intel-xeon-sapphire-rapids-or-newer"),
            ("Intel(R) Xeon(R) Platinum 8175M CPU @ 2.50GHz", INTEL, "intel-xeon-skylake"),
            ("Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz", INTEL, "intel-xeon-cascade-lake"),
            ("Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz", INTEL, "intel-xeon-ice-lake"),
            ("Intel(R) Xeon(R) Silver 4210 CPU @ 2.20GHz", INTEL, "intel-xeon-cascade-lake"),
            ("Intel(R) Xeon(R) Platinum 8488C", INTEL, "intel-xeon-sapphire-rapids-or-newer"),
            ("INTEL(R) XEON(R) PLATINUM 8592+", INTEL, "intel-xeon-sapphire-rapids-or-newer"),
            ("Intel(R) Xeon(R) CPU E5-2673 v4 @ 2.30GHz", INTEL, "intel-xeon-broadwell"),
            ("Intel(R) Xeon(R) CPU E5-2699 v3 @ 2.30GHz", INTEL, "intel-xeon-haswell"),
            ("Intel(R) Xeon(R) CPU E5-2670 0 @ 2.60GHz", INTEL, "intel-xeon-sandy-bridge"),
            ("Intel(R) Xeon(R) CPU           X5570  @ 2.93GHz", INTEL, "intel-xeon-nehalem"),
            ("Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz", INTEL, "intel-small-2015"),
        ] {
            assert_eq!(class(name, vendor), expected, "{name}");
        }
    }

    #[test]
    fn names_of_hypervisors_find_a_class_or_their_vendor() {
        for (name, vendor, expected) in [
            ("AMD EPYC-Rome Processor", AMD, "amd-epyc-rome"),
            ("AMD EPYC-Milan Processor", AMD, "amd-epyc-milan"),
            ("Intel Xeon Processor (Skylake, IBRS)", INTEL, "intel-xeon-skylake"),
            ("Intel Xeon Processor (Cascadelake)", INTEL, "intel-xeon-cascade-lake"),
            ("Intel Xeon Processor (Icelake)", INTEL, "intel-xeon-ice-lake"),
            ("Intel Xeon Processor (SapphireRapids)", INTEL, "intel-xeon-sapphire-rapids-or-newer"),
            ("Intel Core Processor (Broadwell, no TSX, IBRS)", INTEL, "intel-xeon-broadwell"),
            ("AMD EPYC Processor", AMD, "amd-unnamed"),
            ("AMD EPYC Processor (with IBPB)", AMD, "amd-unnamed"),
            ("Intel(R) Xeon(R) CPU @ 2.20GHz", INTEL, "intel-unnamed"),
            ("QEMU Virtual CPU version 2.5+", AMD, "amd-unnamed"),
            ("Common KVM processor", INTEL, "intel-unnamed"),
            ("Neoverse-N1", "ARM", "unnamed"),
            ("", "", "unnamed"),
        ] {
            assert_eq!(class(name, vendor), expected, "{name}");
        }
    }

    #[test]
    fn a_virtual_machine_is_a_slice_of_its_host_by_threads() {
        let host = lookup("AMD EPYC 7763 64-Core Processor", AMD, 256);
        let guest = lookup("AMD EPYC 7763 64-Core Processor", AMD, 8);
        assert!((guest.full_watts * 32.0 - host.full_watts).abs() < 1e-9);
        assert!((guest.idle_watts * 32.0 - host.idle_watts).abs() < 1e-9);
        assert!((400.0..700.0).contains(&host.full_watts), "two sockets of 280 W: {} W", host.full_watts);
    }

    #[test]
    fn classes_without_servers_say_so() {
        let newest = lookup("AMD EPYC 9654 96-Core Processor", AMD, 2);
        let measured = lookup("AMD EPYC 7763 64-Core Processor", AMD, 2);
        assert_eq!((newest.servers, newest.full_watts), (0, measured.full_watts));
        assert!(newest.relative_uncertainty > measured.relative_uncertainty);
    }

    #[test]
    fn power_is_a_clamped_line() {
        let model = PowerModel {
            idle_watts: 100.0,
            full_watts: 300.0,
            class: "test",
            servers: 1,
            relative_uncertainty: 0.1,
        };
        let expected =
            [(-1.0, 100.0), (0.0, 100.0), (0.25, 150.0), (1.0, 300.0), (7.0, 300.0), (f64::NAN, 100.0)];
        for (utilization, watts_expected) in expected {
            assert_eq!(watts(&model, utilization), watts_expected, "{utilization}");
        }
    }
}

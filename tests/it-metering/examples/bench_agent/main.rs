//! What the agent costs its host, beside node_exporter: `make bench-agent`.
//!
//! Each case runs a whole agent for [`SECONDS`], scraped once a second and pushing to a real collector at each
//! window, on this machine's own `/proc` and `/sys`. The fake NVML lives in the agent's process, so that its
//! cost is in the figures. Cases and peers run one after the other, in rounds; the median of the rounds is
//! shown. The last line is one JSON object.
//!
//! Beside them runs a floor ([`floor`]): a program that does nothing but what cannot be left out.

mod floor;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nvidia_ml::library;
use nvidia_ml::machine::config::{Config, GpuConfig};
use nvidia_ml::machine::waveform::Waveform;
use serde_json::{Value, json};
use wattmill_it_metering::process::{Agent, Collector, Process};
use wattmill_it_metering::{PATIENCE, http, wait_for};

/// Length of a measurement, after the process has warmed up.
const SECONDS: u64 = 60;
/// Before it: start, first windows, caches.
const WARM_UP: Duration = Duration::from_secs(5);
/// Times that each case runs, by default.
const ROUNDS: usize = 1;

/// A configuration of the agent.
#[derive(Clone, Copy)]
struct Case {
    hertz: u64,
    gpus: usize,
}

const CASES: [Case; 4] = [
    Case { hertz: 1, gpus: 8 },
    Case { hertz: 1, gpus: 0 },
    Case { hertz: 10, gpus: 8 },
    Case { hertz: 10, gpus: 0 },
];

/// node_exporter as it comes, and with what the agent shows of a host.
const PEERS: [(&str, &[&str]); 2] = [
    ("node_exporter", &[]),
    (
        "node_exporter, 7 collectors",
        &[
            "--collector.disable-defaults",
            "--collector.cpu",
            "--collector.meminfo",
            "--collector.diskstats",
            "--collector.netdev",
            "--collector.filesystem",
            "--collector.pressure",
            "--collector.rapl",
        ],
    ),
];

/// Figures of a process over a measurement.
#[derive(Clone, Copy, Default)]
struct Cost {
    cpu_ms_per_s: f64,
    rss_mb: f64,
    scrape_p50_ms: f64,
    scrape_p99_ms: f64,
    scrape_bytes: f64,
}

impl Cost {
    fn json(self) -> Value {
        let round = |value: f64| (value * 1e3).round() / 1e3;
        json!({
            "cpu_ms_per_s": round(self.cpu_ms_per_s),
            "rss_mb": round(self.rss_mb),
            "scrape_p50_ms": round(self.scrape_p50_ms),
            "scrape_p99_ms": round(self.scrape_p99_ms),
            "scrape_bytes": self.scrape_bytes,
        })
    }
}

fn main() {
    let floor: Vec<String> = std::env::args().skip(1).take(3).collect();
    if let [command, folder, port] = &floor[..]
        && command == "floor"
    {
        let port = port.parse().expect("a port");
        return floor::run(Path::new(folder), port).expect("the floor runs");
    }
    let seconds = argument("--seconds").unwrap_or(SECONDS);
    let rounds = argument("--rounds").map_or(ROUNDS, |rounds| rounds as usize).max(1);
    let collector = Collector::start();
    let mut costs: BTreeMap<String, Vec<Cost>> = BTreeMap::new();
    let exporter = find("prometheus-node-exporter");
    for round in 1..=rounds {
        for case in CASES {
            let name = format!("{} Hz, {} GPUs", case.hertz, case.gpus);
            eprintln!("round {round} of {rounds}: {name}, {seconds} s");
            costs.entry(name).or_default().push(agent(case, &collector, seconds));
        }
        eprintln!("round {round} of {rounds}: the floor, {seconds} s");
        costs.entry("floor".to_owned()).or_default().push(run_floor(seconds));
        for (name, arguments) in PEERS {
            let Some(exporter) = &exporter else { continue };
            eprintln!("round {round} of {rounds}: {name}, {seconds} s");
            costs.entry(name.to_owned()).or_default().push(peer(exporter, arguments, seconds));
        }
    }
    let medians: BTreeMap<String, Cost> =
        costs.into_iter().map(|(name, costs)| (name, median(&costs))).collect();
    table(&medians);
    if exporter.is_none() {
        eprintln!("node_exporter was not measured: Debian has it as prometheus-node-exporter");
    }
    println!("{}", summary(&medians, seconds, rounds));
}

fn argument(name: &str) -> Option<u64> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name).skip(1);
    arguments.next()?.parse().ok()
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn agent(case: Case, collector: &Collector, seconds: u64) -> Cost {
    let url = format!("http://{}", collector.grpc);
    let agent = Agent::start("bench", |folder| {
        let library = if case.gpus == 0 { String::new() } else { install(folder, case.gpus) };
        format!(
            "collector = {url:?}\nsysfs_root = \"/sys\"\nnvml_library = {library:?}\n\
             metering = {{ interval_ms = {} }}\n",
            1_000 / case.hertz
        )
    });
    agent.until("every GPU is read", |metrics| {
        metrics.text.matches("\nwattmill_gpu_power_watts{").count() == case.gpus
    });
    measure(agent.process.id(), &agent.address, seconds)
}

/// GPUs that work, each at its own pace.
fn install(folder: &Path, gpus: usize) -> String {
    let gpu = |index: usize| GpuConfig {
        waveform: Some(Waveform::Sine {
            low_watts: 100.0,
            high_watts: 650.0,
            period_seconds: 3.0 + index as f64,
        }),
        ..GpuConfig::default()
    };
    let config = Config { gpus: (0..gpus).map(gpu).collect(), ..Config::default() };
    let installed = library::install(folder, &config).expect("the fake library is built");
    installed.library.display().to_string()
}

fn run_floor(seconds: u64) -> Cost {
    let folder = tempfile::tempdir_in("target").expect("a folder beside the agent's");
    let port = floor::receiver().expect("a port");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.arg("floor").arg(folder.path()).arg(port.to_string());
    let mut process = Process::start("floor", &mut command);
    let listening = process.event("listening");
    measure(process.id(), listening["address"].as_str().expect("an address"), seconds)
}

fn peer(program: &Path, arguments: &[&str], seconds: u64) -> Cost {
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let address = format!("127.0.0.1:{port}");
    let mut command = Command::new(program);
    command.arg(format!("--web.listen-address={address}")).args(arguments).stdout(Stdio::null());
    let process = Process::start("node_exporter", &mut command);
    wait_for("node_exporter answers", PATIENCE, || http::try_get(&address, "/metrics"));
    measure(process.id(), &address, seconds)
}

/// Scrapes once a second, and reads what the process used meanwhile.
fn measure(pid: u32, address: &str, seconds: u64) -> Cost {
    let tick = Duration::from_secs(1);
    let mut next = Instant::now() + tick;
    let warm = next + WARM_UP;
    let mut cpu = CpuTime::default();
    let (mut scrapes, mut bytes) = (Vec::new(), 0);
    let mut began = None;
    while scrapes.len() < seconds as usize {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        next += tick;
        let asked = Instant::now();
        let answer = http::get(address, "/metrics");
        let took = asked.elapsed();
        assert_eq!(answer.status, 200, "{}", answer.body);
        let nanos = cpu.read(pid);
        if asked < warm {
            began = Some((Instant::now(), nanos));
        } else {
            scrapes.push(took.as_secs_f64() * 1e3);
            bytes = answer.body.len();
        }
    }
    let (since, before) = began.expect("there is a warm-up");
    let used = cpu.read(pid) - before;
    scrapes.sort_by(f64::total_cmp);
    let quantile = |q: f64| scrapes[((scrapes.len() - 1) as f64 * q).round() as usize];
    Cost {
        cpu_ms_per_s: used as f64 / 1e6 / since.elapsed().as_secs_f64(),
        rss_mb: rss_bytes(pid) as f64 / 1e6,
        scrape_p50_ms: quantile(0.5),
        scrape_p99_ms: quantile(0.99),
        scrape_bytes: bytes as f64,
    }
}

/// CPU nanoseconds of a process: the scheduler's own sum of each thread, for `/proc/PID/stat` counts in ticks of
/// 10 ms. Read each second, a thread that ends loses less than a second of its own.
#[derive(Default)]
struct CpuTime(BTreeMap<String, u64>);

impl CpuTime {
    fn read(&mut self, pid: u32) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
        for task in tasks.filter_map(Result::ok) {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            if let Some(nanos) = text.split(' ').next().and_then(|nanos| nanos.parse().ok()) {
                self.0.insert(task.file_name().to_string_lossy().into_owned(), nanos);
            }
        }
        self.0.values().sum()
    }
}

/// Resident memory, shared pages included, as `ps` shows it.
fn rss_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") * 1024
}

fn median(costs: &[Cost]) -> Cost {
    let of = |figure: fn(&Cost) -> f64| {
        let mut values: Vec<f64> = costs.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Cost {
        cpu_ms_per_s: of(|cost| cost.cpu_ms_per_s),
        rss_mb: of(|cost| cost.rss_mb),
        scrape_p50_ms: of(|cost| cost.scrape_p50_ms),
        scrape_p99_ms: of(|cost| cost.scrape_p99_ms),
        scrape_bytes: of(|cost| cost.scrape_bytes),
    }
}

fn table(costs: &BTreeMap<String, Cost>) {
    println!(
        "{:<28} {:>11} {:>8} {:>14} {:>14} {:>9}",
        "", "CPU ms/s", "RSS MB", "scrape p50 ms", "p99 ms", "bytes"
    );
    for (name, cost) in costs {
        println!(
            "{name:<28} {:>11.3} {:>8.1} {:>14.3} {:>14.3} {:>9}",
            cost.cpu_ms_per_s, cost.rss_mb, cost.scrape_p50_ms, cost.scrape_p99_ms, cost.scrape_bytes
        );
    }
}

/// The figures of the first case stand outside: they are what the agent is judged by.
fn summary(costs: &BTreeMap<String, Cost>, seconds: u64, rounds: usize) -> Value {
    let first = costs["1 Hz, 8 GPUs"];
    let cases: BTreeMap<&str, Value> =
        costs.iter().map(|(name, cost)| (name.as_str(), cost.json())).collect();
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    json!({
        "benchmark": "agent",
        "cpu_ms_per_s": first.json()["cpu_ms_per_s"],
        "rss_mb": first.json()["rss_mb"],
        "scrape_p50_ms": first.json()["scrape_p50_ms"],
        "cases": cases,
        "seconds": seconds,
        "rounds": rounds,
        "commit": output("git", &["rev-parse", "--short", "HEAD"]),
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "date": output("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
    })
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

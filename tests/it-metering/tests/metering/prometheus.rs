//! A real Prometheus scrapes a real cluster that trains.
//!
//! Proves: agents are found through the collector, every query of every panel of the dashboard has an answer,
//! and utilisation computed from the agents' counters agrees with the collector's.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use wattmill_it_metering::process::{Agent, Collector, Process};
use wattmill_it_metering::{PATIENCE, http, tools, wait_for};

/// How long after its start the cluster is asked for its utilisation.
const MEASURED: Duration = Duration::from_secs(18);

/// A port that was free a moment ago: an agent has to be told the port that it advertises.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The CPUs that this test may use, as a share for each of two agents; the same one where there is one.
fn cpus() -> [u32; 2] {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let ranges = list.split(',').map(|range| range.split_once('-').unwrap_or((range, range)));
    let cpus = ranges.flat_map(|(from, to)| from.parse::<u32>().unwrap()..=to.parse::<u32>().unwrap());
    let cpus: Vec<u32> = cpus.collect();
    [cpus[0], cpus[cpus.len() - 1]]
}

fn agent(name: &str, collector: &Collector, cpu: u32) -> Agent {
    let address = format!("127.0.0.1:{}", free_port());
    let url = format!("http://{}", collector.grpc);
    // Half of the host each; nothing but the CPU is measured, by the estimate.
    let keys = format!(
        "listen = {address:?}\nadvertise = {address:?}\ncollector = {url:?}\ncpus = \"{cpu}\"\nhost_fraction = 0.5\n\
         sysfs_root = \"/sys\"\nbandwidth = {{ storage_read = 1e9, network = 1e9 }}\n"
    );
    Agent::start(name, |_| keys)
}

struct Prometheus {
    _process: Process,
    address: String,
    _folder: TempDir,
}

impl Prometheus {
    fn start(program: &Path, collector: &Collector) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("prometheus.yml");
        let target = &collector.http;
        let text = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n\
             scrape_configs:\n\
             - job_name: wattmill-collector\n  honor_labels: true\n  static_configs: [{{targets: ['{target}']}}]\n\
             - job_name: wattmill-agent\n  honor_labels: true\n\
             \x20 http_sd_configs: [{{url: 'http://{target}/sd', refresh_interval: 1s}}]\n"
        );
        fs::write(&config, text).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new(program);
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        let process = Process::start("prometheus", &mut command);
        wait_for("Prometheus is ready", PATIENCE, || {
            http::try_get(&address, "/-/ready").filter(|answer| answer.status == 200)
        });
        Self { _process: process, address, _folder: folder }
    }

    /// The answer's values, with their labels.
    fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let answer = http::get(&self.address, &format!("/api/v1/query?query={}", http::encoded(query)));
        let json: Value = serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{e}: {answer:?}"));
        assert_eq!(json["status"], "success", "{query}: {json}");
        let result = json["data"]["result"].as_array().unwrap();
        let value = |series: &Value| series["value"][1].as_str().unwrap().parse().unwrap();
        result.iter().map(|series| (series["metric"].clone(), value(series))).collect()
    }

    /// The one number that a query has for an answer.
    fn number(&self, query: &str) -> Option<f64> {
        let answer = self.query(query);
        assert!(answer.len() <= 1, "{query}: {answer:?}");
        answer.first().map(|(_, value)| *value)
    }
}

/// Panel and query, as Grafana would send it for a scrape interval of a second and a minute on show.
fn queries() -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dashboards/cluster.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            let query =
                query.replace("$__rate_interval", "15s").replace("$__range", "60s").replace("$job", ".*");
            assert!(!query.contains('$'), "a variable that this test does not know: {query}");
            queries.push((panel["title"].as_str().unwrap().to_owned(), query));
        }
    }
    assert!(queries.len() > 20, "{queries:?}");
    queries
}

/// The shipped job on the data beside the tests, for longer than this test takes.
fn submit(collector: &Collector) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let text = fs::read_to_string(root.join("jobs/digits.toml")).unwrap();
    let data = format!("uri = \"file://{}\"", root.join("tests/fixtures/digits.csv.gz").display());
    let job = text.lines().map(|line| match line.split(" = ").next() {
        Some("uri") => data.clone(),
        Some("epochs") => "epochs = 5000".to_owned(),
        _ => line.to_owned(),
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("digits.toml");
    fs::write(&file, job.collect::<Vec<_>>().join("\n")).unwrap();
    let submitted = collector.ask(&["submit", "--no-wait", &file.to_string_lossy()]);
    submitted["job"].as_str().unwrap().to_owned()
}

#[test]
fn every_panel_has_data_while_a_job_trains() {
    let Some(program) = tools::find("prometheus", "prometheus") else { return };
    let collector = Collector::start();
    let [first, second] = cpus();
    let stays = agent("stays", &collector, first);
    let mut goes = agent("goes", &collector, second);
    let prometheus = Prometheus::start(&program, &collector);
    let job = submit(&collector);

    wait_for("both agents are found and scraped", PATIENCE, || {
        let up = prometheus.query("up{job=\"wattmill-agent\", node!=\"\", name=~\"stays|goes\"} == 1");
        (up.len() == 2).then_some(())
    });
    let info = prometheus.query("wattmill_node_info * on (node, name) group_left up{job=\"wattmill-agent\"}");
    assert_eq!(info.len(), 2, "labels from discovery are those of the agents: {info:?}");

    // The collector's window, which is a minute at most, begins with the agents, and so does the range.
    let age = "max(time() - min_over_time(timestamp(wattmill_useful_flops_total)[2m:1s]))";
    let seconds = wait_for("work is counted for long enough", PATIENCE, || {
        let working = prometheus.query("rate(wattmill_useful_flops_total[5s]) > 0").len() == 2;
        prometheus.number(age).filter(|age| working && *age >= MEASURED.as_secs_f64()).map(f64::ceil)
    });
    let by_agents =
        format!("sum(rate(wattmill_useful_flops_total[{seconds}s])) / sum(wattmill_device_peak_flops)");
    let by_agents = prometheus.number(&by_agents).unwrap();
    let by_collector = prometheus.number("wattmill_cluster_mfu_ratio").unwrap();
    println!("η by the agents' counters {by_agents:.6}, by the collector {by_collector:.6}");
    assert!((by_agents / by_collector - 1.0).abs() < 0.25, "{by_agents} and {by_collector}");

    // An agent crashes, and somebody pushes what nobody can read: the panels for trouble have something to show.
    crash_with_a_lease(&mut goes, &collector);
    let empty = without_data(&prometheus, &collector);
    assert!(empty.is_empty(), "no data for {empty:#?}");
    let node = stays.metrics();
    assert!(node.value("wattmill_useful_flops_total", &[]).is_some_and(|flops| flops > 0.0), "{}", node.text);
    collector.ask(&["job", &job]);
}

/// Kills an agent that holds a lease. It is frozen before, so that it keeps the one that it has or is given.
fn crash_with_a_lease(agent: &mut Agent, collector: &Collector) {
    agent.process.freeze();
    let mut seen = 0;
    wait_for("the frozen agent holds a lease", PATIENCE, || {
        let nodes = collector.ask(&["nodes"]);
        let node = nodes.as_array().unwrap().iter().find(|node| node["name"] == "goes").unwrap();
        // More than once: what is shown may be a moment old.
        seen = if node["running"].as_u64() > Some(0) { seen + 1 } else { 0 };
        (seen >= 20).then_some(())
    });
    agent.process.kill();
}

/// Panels and queries that never had a number for an answer.
fn without_data(prometheus: &Prometheus, collector: &Collector) -> Vec<(String, String)> {
    let mut empty = queries();
    let deadline = Instant::now() + PATIENCE;
    while !empty.is_empty() && Instant::now() < deadline {
        let protobuf = [("Content-Type", "application/x-protobuf")];
        let garbage = http::post(&collector.http, "/v1/metrics", &protobuf, b"?");
        assert_eq!(garbage.status, 400);
        empty.retain(|(_, query)| prometheus.query(query).iter().all(|(_, value)| !value.is_finite()));
    }
    empty
}

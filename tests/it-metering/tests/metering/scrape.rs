//! Scrapers: how they are answered, however many there are, however often they ask, and whatever hangs.
//!
//! Proves: a page is whole, plain or compressed; no counter on it ever falls; a window is the same to all; a device
//! that does not answer holds no scrape up.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::read::GzDecoder;
use nvidia_ml::client::Client;
use nvidia_ml::machine::command::Command as Tell;
use rustix::fs::{FileType, Mode};
use wattmill_it_metering::metrics::Metrics;
use wattmill_it_metering::process::Agent;
use wattmill_it_metering::{PATIENCE, http, wait_for};

const GPU: &str = "GPU-fa4e0000-0000-4000-8000-000000000000";
const ATTRIBUTED: &str = "wattmill_node_attributed_energy_joules_total";
const NODE: &str = "wattmill_node_energy_joules_total";

/// An agent with two GPUs, and what moves them.
fn start(name: &str, keys: &str) -> (Agent, Client) {
    let mut socket = None;
    let agent = Agent::start(name, |folder| {
        let (installed, library) = super::nvml::install(folder, 300.0);
        socket = Some(installed.socket);
        library + keys
    });
    let fake = Client::connect_within(&socket.unwrap(), PATIENCE).unwrap();
    agent
        .until("GPUs are metered", |metrics| metrics.value("wattmill_gpu_up", &[("uuid", GPU)]) == Some(1.0));
    (agent, fake)
}

/// Counters by series.
fn counters(metrics: &Metrics) -> BTreeMap<String, f64> {
    let counters = metrics.series.iter().filter(|series| series.name.ends_with("_total"));
    counters.map(|series| (format!("{}{:?}", series.name, series.labels), series.value)).collect()
}

/// Every counter of the earlier page is on the later one, and no less.
pub(crate) fn assert_grown(earlier: &Metrics, later: &Metrics) {
    let now = counters(later);
    for (series, before) in counters(earlier) {
        assert!(now.get(&series).is_some_and(|now| *now >= before), "{series}: {before} then {now:?}");
    }
}

/// A page to its last byte, whose sums agree with one another.
fn whole(address: &str) -> Metrics {
    let answer = http::get(address, "/metrics");
    assert_eq!(answer.header("content-length"), answer.bytes.len().to_string());
    assert!(answer.status == 200 && answer.body.ends_with('\n'), "{}", answer.body);
    let metrics = Metrics::parse(&answer.body);
    let sums = |name| metrics.microjoules_by(name, "source");
    assert_eq!(sums(ATTRIBUTED), sums(NODE), "of one window: {}", metrics.text);
    metrics
}

#[test]
fn compressed_it_is_the_same_page_of_the_right_type() {
    let agent = Agent::start("gzip", |_| "[metering]\ninterval_ms = 1000\n".to_owned());
    agent.windows(1);
    let gzip = [("Accept-Encoding", "gzip")];
    let (plain, packed) = wait_for("both scrapes are of one window", PATIENCE, || {
        let before = http::get(&agent.address, "/metrics");
        let packed = http::get_with(&agent.address, "/metrics", &gzip);
        (http::get(&agent.address, "/metrics").body == before.body).then_some((before, packed))
    });
    let headers = |answer: &http::Answer| ["content-type", "vary"].map(|name| answer.header(name).to_owned());
    assert_eq!(headers(&plain), ["text/plain; version=0.0.4; charset=utf-8", "accept-encoding"]);
    assert_eq!(headers(&packed), headers(&plain));
    assert_eq!((plain.header("content-encoding"), packed.header("content-encoding")), ("", "gzip"));
    let mut text = String::new();
    GzDecoder::new(&packed.bytes[..]).read_to_string(&mut text).unwrap();
    assert_eq!(text, plain.body);
}

#[test]
fn scrapers_at_once_get_whole_pages_of_the_same_windows() {
    let (agent, _fake) = start("crowd", "[metering]\ninterval_ms = 100\ngpu_interval_ms = 50\n");
    let done = Arc::new(AtomicBool::new(false));
    let crowd: Vec<_> = (0..8)
        .map(|_| {
            let (address, done) = (agent.address.clone(), Arc::clone(&done));
            std::thread::spawn(move || {
                let mut last = whole(&address);
                let mut scrapes = 1;
                while !done.load(Ordering::Relaxed) {
                    let next = whole(&address);
                    assert_grown(&last, &next);
                    (last, scrapes) = (next, scrapes + 1);
                }
                scrapes
            })
        })
        .collect();
    agent.windows(10);
    done.store(true, Ordering::Relaxed);
    let scrapes: Vec<usize> = crowd.into_iter().map(|scraper| scraper.join().unwrap()).collect();
    println!("scrapes: {scrapes:?}");
    assert!(scrapes.iter().all(|scrapes| *scrapes > 1), "{scrapes:?}");
}

/// A scraper that asks ten times in each window, and one that asks once in ten windows.
#[test]
fn how_often_one_asks_changes_nothing_of_what_is_counted() {
    let (agent, _fake) = start("often", "[metering]\ninterval_ms = 200\ngpu_interval_ms = 50\n");
    let mut rare = agent.metrics();
    let (mut equal, mut same, mut windows) = (0, 0, 0);
    let mut last = agent.metrics();
    while windows < 20 {
        let next = agent.metrics();
        assert_grown(&last, &next);
        windows += usize::from(next.text != last.text);
        same += usize::from(next.text == last.text);
        if next.text != last.text && windows % 10 == 0 {
            // Between two pages of the one who asks often, where those are one the very same.
            let now = agent.metrics();
            let after = agent.metrics();
            assert_grown(&rare, &now);
            assert_grown(&next, &now);
            assert_grown(&now, &after);
            assert!(next.text != after.text || now.text == next.text, "one window, two pages");
            equal += usize::from(now.text == next.text);
            rare = now;
        }
        last = next;
    }
    println!("{equal} of 2 scrapes were of a window that was seen before");
    assert!(same > 0, "a scrape by itself changes the page");
}

#[test]
fn a_scrape_waits_for_no_device() {
    let (agent, mut fake) = start("hung", "[metering]\ninterval_ms = 100\ngpu_interval_ms = 50\n");
    let function = "nvmlDeviceGetFieldValues";
    fake.apply(&Tell::Hang { function: function.to_owned() }).unwrap();
    fake.wait_for_calls(function, PATIENCE, |calls| calls.waiting > 0).unwrap();
    let before = agent.metrics();
    let after = agent.windows(5);
    assert_grown(&before, &after);
    let down = agent.until("the library is known to hang", |metrics| {
        metrics.value("wattmill_agent_backend_up", &[("backend", "nvml")]) == Some(0.0)
    });
    let lost = [("uuid", GPU), ("reason", "no_answer")];
    assert_eq!(down.value("wattmill_gpu_lost_info", &lost), Some(1.0), "{}", down.text);
    assert_grown(&after, &down);
    assert!(fake.calls().unwrap()[function].waiting > 0, "all of it while the call had no answer");
    fake.apply(&Tell::Unhang { function: None }).unwrap();
    let up = |metrics: &Metrics| metrics.value("wattmill_gpu_up", &[("uuid", GPU)]) == Some(1.0);
    assert_grown(&down, &agent.until("it is back", up));
}

/// To ask for a filesystem's size is to ask its disk, which may never answer: energy is shared out all the same.
#[test]
fn a_disk_that_hangs_costs_its_own_figures() {
    let agent = Agent::start("disk-hangs", |folder| {
        let proc = folder.join("proc");
        fs::create_dir_all(proc.join("self")).unwrap();
        fs::write(proc.join("stat"), "cpu0 1 0 0 9 0 0 0 0 0 0\nbtime 5\n").unwrap();
        // Opening it waits for a writer, who never comes.
        let mounts = proc.join("self/mountinfo");
        rustix::fs::mknodat(rustix::fs::CWD, &mounts, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        format!("procfs_root = {:?}\n[metering]\ninterval_ms = 100\n", proc.display().to_string())
    });
    let metrics = agent.windows(5);
    let up = |backend| metrics.value("wattmill_agent_backend_up", &[("backend", backend)]);
    assert_eq!((up("host"), up("estimate")), (Some(1.0), Some(1.0)), "{}", metrics.text);
    assert!(metrics.all("wattmill_host_cpu_seconds_total").count() > 0, "{}", metrics.text);
    assert!(metrics.microjoules_by(ATTRIBUTED, "source").values().sum::<u64>() > 0, "{}", metrics.text);
    assert_eq!(up("capacity"), None, "it has said nothing yet: {}", metrics.text);
}

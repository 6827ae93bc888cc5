//! A page to its picture and JSON.

use super::page::Page;
use super::picture::{self, Style};
use super::sample::{Row, Sample};
use super::since::Since;

/// A node with everything: a lost GPU, a module, zones within zones, a sensor, units.
const PAGE: &str = include_str!("fixture.txt");

fn sample(pages: &[&str]) -> Sample {
    let mut since = Since::default();
    let samples = pages.iter().map(|text| Sample::new(&Page::parse(text).unwrap(), &mut since));
    samples.last().unwrap()
}

/// The page two seconds later.
fn later() -> String {
    PAGE.replace("\"package-0\",source=\"counter\"} 1000", "\"package-0\",source=\"counter\"} 1200")
        .replace("consumer=\"shards\",source=\"counter\"} 100", "consumer=\"shards\",source=\"counter\"} 175")
        .replace("consumer=\"units\",source=\"counter\"} 4000", "consumer=\"units\",source=\"counter\"} 4025")
}

fn picture(sample: &Sample, height: usize) -> String {
    let lines = picture::lines(sample, "http://127.0.0.1:9766/metrics", 62.0, height);
    let mark = |style| match style {
        Style::Plain => ' ',
        Style::Head => '#',
        Style::Bad => '!',
        Style::Dim => '.',
    };
    let lines = lines.iter().map(|line| format!("{}{}", mark(line.style), line.text).trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

fn find<'a>(rows: &'a [Row], id: &str) -> &'a Row {
    rows.iter().find(|row| row.id == id).unwrap()
}

#[test]
fn everything_is_shown() {
    insta::assert_snapshot!(picture(&sample(&[PAGE, &later()]), usize::MAX));
}

#[test]
fn json_has_stable_keys() {
    insta::assert_snapshot!(format!("{:#}", serde_json::json!(sample(&[PAGE]))));
}

#[test]
fn what_overlaps_is_apart() {
    let sample = sample(&[PAGE]);
    let ids = |rows: &[Row]| rows.iter().map(|row| row.id.clone()).collect::<Vec<_>>();
    assert_eq!(
        ids(&sample.devices),
        ["package-0", "package-0/dram", "GPU-11111111-aaaa", "GPU-22222222-bbbb"]
    );
    assert_eq!(ids(&sample.overlapping), ["package-0/core", "psys", "GPU-11111111-aaaa", "redfish chassis"]);
    let gpu = find(&sample.devices, "GPU-11111111-aaaa");
    assert_eq!((gpu.joules, gpu.source.as_str()), (5000.0, "counter"), "one source of two, never both");
}

#[test]
fn consumers_split_the_nodes_watts() {
    let first = sample(&[PAGE]);
    assert!(first.consumers.iter().all(|row| row.watts.is_none()), "one page tells no shares");
    let second = sample(&[PAGE, &later()]);
    let watts = |id| find(&second.consumers, id).watts.unwrap();
    let (shards, units, idle) = (watts("shards"), watts("units"), watts("idle"));
    assert!((shards - 741.5 * 0.75).abs() < 1e-9 && (units - 741.5 * 0.25).abs() < 1e-9 && idle == 0.0);
    assert_eq!(find(&second.consumers, "shards").watched_joules, 75.0);
}

#[test]
fn a_screen_that_is_too_low_says_what_is_missing() {
    let sample = sample(&[PAGE]);
    let all = picture(&sample, usize::MAX).lines().count();
    for height in 0..all {
        let shown = picture(&sample, height);
        assert_eq!(shown.lines().count(), height);
        let more = format!("… {} more lines", all + 1 - height);
        assert!(height == 0 || shown.ends_with(&more), "{more}: {shown}");
    }
}

#[test]
fn what_is_hostile_or_of_another_version_is_shown_and_not_obeyed() {
    let page = PAGE
        .replace("agent_build_info{version=\"0.1.0\"}", "agent_build_info{version=\"9.0.0\"}")
        .replace("ssh.service", "\u{1b}[2J\u{202e}")
        .replace("GH200", "\u{7}");
    let shown = picture(&sample(&[&page]), usize::MAX);
    assert!(!shown.contains(['\u{1b}', '\u{202e}', '\u{7}']) && shown.contains("\\u{1b}[2J"), "{shown}");
    assert!(shown.contains("!agent 9.0.0, this tool 0.1.0"), "{shown}");
}

#[test]
fn values_that_are_no_numbers_add_up_to_nothing() {
    let page: String = PAGE
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| format!("{} NaN\n", line.rsplit_once(' ').unwrap().0))
        .collect();
    let sample = sample(&[&page, &page]);
    let rows = [&sample.devices, &sample.overlapping, &sample.scopes, &sample.consumers, &sample.units];
    for row in rows.into_iter().flatten() {
        assert_eq!(
            (row.watts.filter(|w| w.is_nan()), row.joules, row.watched_joules),
            (None, 0.0, 0.0),
            "{row:?}"
        );
    }
    assert!(!picture(&sample, usize::MAX).contains("NaN"));
}

#[test]
fn an_agent_before_its_first_window_says_so() {
    let page: String = PAGE.lines().take(6).map(|line| format!("{line}\n")).collect();
    assert!(picture(&sample(&[&page]), usize::MAX).contains("first window has not closed"));
}

/// Its sum stays on the page, standing still, while the integral counts.
#[test]
fn of_a_gpu_whose_counter_failed_the_integral_is_shown() {
    let page = |counter: f64, integral: f64| {
        format!(
            "wattmill_gpu_up{{uuid=\"G\"}} 1\n\
             wattmill_gpu_energy_joules_total{{uuid=\"G\",source=\"counter\"}} {counter}\n\
             wattmill_gpu_energy_joules_total{{uuid=\"G\",source=\"integrated\"}} {integral}\n"
        )
    };
    let pages = [page(10.0, 11.0), page(20.0, 21.0), page(20.0, 31.0), page(20.0, 41.0)];
    let shown = |number: usize| {
        let pages: Vec<&str> = pages.iter().take(number).map(String::as_str).collect();
        let row = sample(&pages).devices.remove(0);
        (row.source, row.watched_joules)
    };
    assert_eq!([1, 2].map(shown), [("counter".to_owned(), 0.0), ("counter".to_owned(), 10.0)]);
    assert_eq!([3, 4].map(shown), [("integrated".to_owned(), 20.0), ("integrated".to_owned(), 30.0)]);
}

//! Dashboards and alerts use metrics that exist, and are laid out so that everything can be seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use wattmill_protocol::catalogue::{ALL, Kind, Metric};

fn files(folder: &str, extension: &str) -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    let paths = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let wanted = paths.filter(|path| path.extension().is_some_and(|e| e == extension));
    let files: Vec<_> = wanted.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect();
    assert!(!files.is_empty(), "no .{extension} in {}", folder.display());
    files
}

fn dashboards() -> Vec<(PathBuf, Value)> {
    let parsed = files("dashboards", "json").into_iter().map(|(path, text)| {
        let json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (path, json)
    });
    parsed.collect()
}

/// Every panel that shows something, with its title.
fn panels(dashboard: &Value) -> Vec<(&str, &Value)> {
    let panels = dashboard["panels"].as_array().expect("a dashboard has panels");
    panels.iter().map(|panel| (panel["title"].as_str().expect("a panel has a title"), panel)).collect()
}

fn queries(dashboard: &Value) -> Vec<&str> {
    let of_panels = panels(dashboard).into_iter().flat_map(|(_, panel)| {
        panel["targets"].as_array().into_iter().flatten().filter_map(|target| target["expr"].as_str())
    });
    let variables = dashboard["templating"]["list"].as_array().into_iter().flatten();
    of_panels.chain(variables.filter_map(|variable| variable["query"].as_str())).collect()
}

/// The metric names in a text, each with what follows it.
fn metrics(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.match_indices("wattmill_").map(|(start, _)| {
        let rest = &text[start..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        rest.split_at(end)
    })
}

fn catalogue() -> BTreeMap<&'static str, &'static Metric> {
    ALL.iter().map(|metric| (metric.name, *metric)).collect()
}

#[test]
fn every_metric_exists_and_counters_are_not_shown_raw() {
    let catalogue = catalogue();
    for (path, dashboard) in dashboards() {
        for query in queries(&dashboard) {
            for (name, _) in metrics(query) {
                let metric = catalogue.get(name);
                let metric =
                    metric.unwrap_or_else(|| panic!("{}: no metric {name}: {query}", path.display()));
                let grows = ["rate(", "increase("].iter().any(|f| query.contains(&format!("{f}{name}")));
                assert_eq!(grows, metric.kind == Kind::Counter, "{}: {query}", path.display());
            }
        }
    }
    for (path, text) in files("packaging", "yml") {
        for (name, _) in metrics(&text) {
            assert!(catalogue.contains_key(name), "{}: no metric {name}", path.display());
        }
    }
}

#[test]
fn every_label_exists() {
    let catalogue = catalogue();
    for (path, dashboard) in dashboards() {
        for query in queries(&dashboard) {
            let used: Vec<&Metric> =
                metrics(query).filter_map(|(name, _)| catalogue.get(name).copied()).collect();
            let matchers = metrics(query).filter_map(|(_, rest)| rest.strip_prefix('{')?.split('}').next());
            let grouped =
                query.match_indices("by (").filter_map(|(i, by)| query[i + by.len()..].split(')').next());
            let labels = matchers.chain(grouped).flat_map(|list| list.split(','));
            for label in labels.filter_map(|l| l.split(['=', '!', '~']).next()).map(str::trim) {
                let known = used.iter().any(|metric| metric.labels.contains(&label));
                assert!(known, "{}: no label {label:?}: {query}", path.display());
            }
        }
    }
}

#[test]
fn every_panel_says_its_unit_and_its_data_source() {
    for (path, dashboard) in dashboards() {
        for (title, panel) in panels(&dashboard).into_iter().filter(|(_, p)| p["type"] != "row") {
            let place = format!("{}: {title}", path.display());
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{place}: no unit");
            assert_eq!(panel["datasource"]["uid"], "${DS_PROMETHEUS}", "{place}");
            assert!(panel["description"].as_str().is_some_and(|d| !d.is_empty()), "{place}: no description");
        }
    }
}

#[test]
fn panels_fit_the_grid_and_do_not_overlap() {
    for (path, dashboard) in dashboards() {
        let mut cells: BTreeMap<(u64, u64), &str> = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for (title, panel) in panels(&dashboard) {
            let place = format!("{}: {title}", path.display());
            let at = |key: &str| {
                panel["gridPos"][key].as_u64().unwrap_or_else(|| panic!("{place}: gridPos.{key}"))
            };
            let (x, y, width, height) = (at("x"), at("y"), at("w"), at("h"));
            assert!(width > 0 && height > 0 && x + width <= 24, "{place}: outside the 24 columns");
            assert!(ids.insert(panel["id"].as_u64()), "{place}: its id stands twice");
            for cell in (x..x + width).flat_map(|column| (y..y + height).map(move |row| (column, row))) {
                if let Some(other) = cells.insert(cell, title) {
                    panic!("{place}: overlaps {other}");
                }
            }
        }
    }
}

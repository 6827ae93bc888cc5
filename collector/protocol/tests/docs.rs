//! What is written about the contract says what the code does.

#[allow(dead_code, missing_docs)]
#[path = "../examples/metrics.rs"]
mod metrics;

use std::path::{Path, PathBuf};

use wattmill_protocol::job::Job;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_page_of_metrics_is_the_catalogue() {
    let (written, made) = (read("docs/metrics.md"), metrics::page());
    let differing = made.lines().zip(written.lines()).find(|(made, written)| made != written);
    assert!(made == written, "run `make docs` and commit docs/metrics.md: {differing:?}");
}

#[test]
fn the_examples_of_job_files_are_jobs() {
    let page = read("docs/job-file.md");
    let examples: Vec<&str> = page.split("```toml\n").skip(1).filter_map(|e| e.split("```").next()).collect();
    assert!(!examples.is_empty());
    for example in examples {
        Job::from_toml(example).unwrap_or_else(|error| panic!("{error} in\n{example}"));
    }
}

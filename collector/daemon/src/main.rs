//! `wattmill-collector`: the cluster's daemon.

#[allow(dead_code, unused_imports)]
mod ingest;
#[allow(dead_code, unused_imports)]
mod state;

fn main() {}

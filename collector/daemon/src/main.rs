//! `wattmill-collector`: the cluster's daemon.

fn main() {}

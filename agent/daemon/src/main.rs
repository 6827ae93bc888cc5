//! `wattmill-agent`: a host's daemon.

fn main() {}

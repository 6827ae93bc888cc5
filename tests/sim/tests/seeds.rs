//! Many runs, each with its own jobs, nodes and faults.

use wattmill_sim::run;

/// A few seconds of one core.
const SEEDS: u64 = 1_000;

#[test]
fn nothing_is_lost_or_counted_twice() {
    for seed in 0..SEEDS {
        if let Err(failure) = run(seed, false) {
            panic!("{failure}");
        }
    }
}

#[test]
fn a_seed_always_means_the_same_run() {
    for seed in [3, 17, 91] {
        let runs = [(); 2].map(|()| run(seed, false).map_err(|f| f.to_string()));
        assert_eq!(runs[0], runs[1]);
    }
}

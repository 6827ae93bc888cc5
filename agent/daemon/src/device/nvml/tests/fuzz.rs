//! A library that answers anything, in any order.

use super::*;
use crate::device::gpu::MAX_GPU_WATTS;

/// Functions that fail or lie.
const FUNCTIONS: [&str; 16] = [
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetEnforcedPowerLimit",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetProcessUtilization",
    "nvmlDeviceGetMigMode",
    "nvmlGpmSampleGet",
    "nvmlGpmMetricsGet",
];
const ERRORS: [Code; 8] = [
    Code::Unknown,
    Code::NotSupported,
    Code::NoPermission,
    Code::GpuIsLost,
    Code::NotFound,
    Code::InvalidArgument,
    Code::DriverNotLoaded,
    Code::Timeout,
];
const VALUES: [u64; 9] =
    [0, 1, 250_000, 1 << 31, u32::MAX as u64 - 1, u32::MAX as u64, 1 << 40, i64::MAX as u64, u64::MAX];
const FIELDS: [u32; 10] = [185, 186, 197, 198, 74, 76, 269, 270, 271, 230];

/// Numbers that a seed decides.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 33) as usize % bound
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn command(&mut self) -> Command {
        let gpu = GpuRef::Slot(self.below(2));
        let function = self.one_of(&FUNCTIONS).to_owned();
        let error = (self.below(2) == 0).then(|| self.one_of(&ERRORS));
        let value = (self.below(2) == 0).then(|| self.one_of(&VALUES));
        match self.below(10) {
            0 => Command::Fail { function, error },
            1 => Command::Fail { function, error: None },
            2 => Command::Blank { gpu, function, value },
            3 | 4 => Command::Field { gpu, field: self.one_of(&FIELDS), value, error: None },
            5 => Command::Field { gpu, field: self.one_of(&FIELDS), value: None, error },
            6 => Command::Lose {
                gpu,
                mode: self.one_of(&[LossMode::GpuIsLost, LossMode::NotFound]),
                functions: None,
            },
            7 | 8 => Command::Restore { gpu, restart_counters: self.below(2) == 0 },
            _ => Command::Advance { nanoseconds: self.one_of(&[1, 1_000_000, 300_000_000]) },
        }
    }
}

/// What never goes down.
fn sums(reading: &Reading, uuid: &str) -> Vec<u64> {
    let gpu = gpu(reading, uuid);
    let integrated = energy(reading, uuid, Source::Integrated).map_or(0, |energy| energy.raw);
    let throttled = gpu.throttle_seconds.iter().map(|(_, seconds)| (seconds * 1e9) as u64);
    let bytes = [gpu.pcie.received.unwrap_or(0), gpu.pcie.transmitted.unwrap_or(0)];
    throttled.chain(bytes).chain([integrated]).collect()
}

fn assert_sound(reading: &Reading) {
    for gpu in &reading.gpus {
        let watts = [gpu.power.instant, gpu.power.average].into_iter().flat_map(|power| power.labelled());
        let limits = [gpu.limits.enforced, gpu.limits.default];
        for watts in watts.map(|(_, watts)| watts).chain(limits).flatten() {
            assert!((0.0..=MAX_GPU_WATTS).contains(&watts), "{gpu:?}");
        }
        assert!(gpu.utilization.is_none_or(|share| (0.0..=1.0).contains(&share)), "{gpu:?}");
        assert!(gpu.memory.is_none_or(|memory| memory.used_bytes <= memory.size_bytes), "{gpu:?}");
        assert!(gpu.up || gpu.lost.is_some(), "{gpu:?}");
    }
}

/// Changes to the library before it begins anew.
const CHANGES: u32 = 100;

#[test]
fn whatever_it_says_nothing_is_negative_and_no_sum_goes_down() {
    for seed in 0..crate::fuzz::times(2_000).div_ceil(CHANGES) {
        let mut bench = bench_of(&Config { clock: ClockKind::Manual, ..Config::default() });
        let (mut chance, mut last) = (Chance(u64::from(seed)), vec![Vec::new(); 2]);
        for step in 0..CHANGES {
            let command = chance.command();
            apply(&mut bench, &command);
            bench.backend.discovered_at = bench.backend.discovered_at.filter(|_| chance.below(4) > 0);
            // The wait for the next try is over.
            (bench.backend.tried_at, bench.backend.leaving) = (None, None);
            let Answer::Reading(reading) = bench.backend.read(true) else { continue };
            assert_sound(&reading);
            for (before, uuid) in last.iter_mut().zip([FIRST, SECOND]) {
                let now = sums(&reading, uuid);
                let grown = before.iter().zip(&now).all(|(before, now)| now >= before);
                assert!(
                    grown || before.len() != now.len(),
                    "seed {seed}, step {step}, {command:?}: {before:?} {now:?}"
                );
                *before = now;
            }
        }
    }
}

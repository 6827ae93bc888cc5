//! Exit codes of every Wattmill program, after BSD's sysexits(3).

/// Everything went well.
pub const OK: u8 = 0;
/// Something failed while running: a port is taken, a peer cannot be reached, a job failed.
pub const FAILURE: u8 = 1;
/// The command line is wrong (`EX_USAGE`).
pub const USAGE: u8 = 64;
/// A file that was given is wrong: a job, a data set (`EX_DATAERR`).
pub const DATA: u8 = 65;
/// The configuration is wrong (`EX_CONFIG`).
pub const CONFIG: u8 = 78;

//! How every Wattmill program ends: its exit code, after BSD's sysexits(3), and its error on one line.

use std::error::Error;

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

/// An error and its causes on one line. A cause that its effect repeats, as some libraries do, is said once.
pub fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn causes_are_said_once() {
        let error = Layer("a", Some(Box::new(Layer("b: c", Some(Box::new(Layer("c", None)))))));
        assert_eq!(describe(&error), "a: b: c");
    }
}

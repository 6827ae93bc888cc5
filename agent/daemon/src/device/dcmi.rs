//! Power of the whole node by IPMI's DCMI: what a program such as `ipmitool dcmi power reading` prints.
//!
//! A program, rather than the device itself: `/dev/ipmi0` lets whoever opens it do anything to the machine, and
//! the program may as well ask over the network under an account that may read alone. Invariant: off unless
//! configured; counts for no scope, because it contains what else is measured.

use std::io;
use std::time::Duration;

use super::command::{self, Printed};
use super::sensor::{Sensor, SensorId, sound_watts};
use super::{Answer, ReadError, Reading};
use crate::clock;
use crate::config::Dcmi as Config;

/// How long the program may take: a BMC answers within a second, or has others to answer first.
const PATIENCE: Duration = Duration::from_secs(8);
/// Most characters of the program's words that are told to people.
const MAX_WORDS: usize = 200;

/// The backend.
pub struct Dcmi {
    config: Config,
    sensor: Sensor,
}

impl Dcmi {
    /// The node's meter.
    pub fn new(config: &Config) -> Self {
        Self { config: config.clone(), sensor: Sensor::new(SensorId::new("dcmi", "system")) }
    }

    pub(crate) fn read(&mut self) -> Answer {
        let began = clock::monotonic();
        let watts = self.ask();
        // It was asked for and answered between the two.
        let at = began + clock::monotonic().saturating_sub(began) / 2;
        self.sensor.note_power(watts.as_ref().ok().copied(), at, self.config.interval);
        match watts {
            Err(error) => Answer::Failed(error),
            Ok(_) => Answer::Reading(Reading {
                energy: self.sensor.energy().collect(),
                sensors: vec![self.sensor.reading()],
                ..Reading::default()
            }),
        }
    }

    fn ask(&self) -> Result<f64, ReadError> {
        let line = &self.config.command;
        let fails = |reason, what: String| ReadError::new(reason, format!("{line}: {what}"));
        let printed = command::run(line, PATIENCE.min(self.config.interval)).map_err(|error| {
            let reason = match error.kind() {
                io::ErrorKind::TimedOut => "timeout",
                _ => super::io_reason(&error),
            };
            fails(reason, error.to_string())
        })?;
        if let Some(how) = printed.failure() {
            let words = words(&printed.text);
            return Err(fails(reason(&printed), format!("it {how}: {words}")));
        }
        watts(&printed.text).map_err(|(reason, what)| fails(reason, what))
    }
}

/// The value of the `reason` label, by what the known programs say.
fn reason(printed: &Printed) -> &'static str {
    let text = printed.text.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&["permission denied"]) {
        "permission"
    } else if has(&["password", "rakp", "username invalid", "authentication", "privilege"]) {
        "credentials"
    } else if has(&["unable to establish", "connection timeout", "session timeout", "no route"]) {
        "unreachable"
    } else if has(&["could not open device", "no such file", "not found", "driver"]) {
        "missing"
    } else if has(&["invalid command", "not supported", "dcmi request failed"]) {
        "unsupported"
    } else {
        "failed"
    }
}

fn words(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.take(2).collect::<Vec<_>>().join("; ").chars().take(MAX_WORDS).collect()
}

/// Power in watts, as ipmitool, FreeIPMI's ipmi-dcmi and ipmiutil print it.
fn watts(text: &str) -> Result<f64, (&'static str, String)> {
    let mut watts = None;
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim().to_ascii_lowercase());
        match key.as_str() {
            "instantaneous power reading" | "current power" if watts.is_none() => {
                let number = value.strip_suffix("watts").or_else(|| value.strip_suffix('w'));
                watts = number.and_then(|number| number.trim().parse::<f64>().ok());
            }
            // What it then says is not measured: often 0, or the last value for ever.
            "power reading state is" | "power measurement" if !value.starts_with("activ") => {
                return Err(("inactive", "the BMC does not measure power now".to_owned()));
            }
            _ => {}
        }
    }
    let watts = watts.ok_or_else(|| ("invalid", format!("no power in what it printed: {}", words(text))))?;
    match sound_watts(watts) {
        Ok(Some(watts)) => Ok(watts),
        Ok(None) => Err(("blank", "the BMC says 0 W, which no node that runs draws".to_owned())),
        Err(reason) => Err((reason, format!("{watts} W is no power"))),
    }
}

#[cfg(test)]
mod tests;

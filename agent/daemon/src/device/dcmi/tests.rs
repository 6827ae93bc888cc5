//! What the known programs print, and what goes wrong with them.

use super::*;
use crate::config::CommandLine;

/// ipmitool 1.8.
const IPMITOOL: &str = "
    Instantaneous power reading:                   332 Watts
    Minimum during sampling period:                 68 Watts
    Maximum during sampling period:                504 Watts
    Average power reading over sample period:      348 Watts
    IPMI timestamp:                           Thu Feb 15 08:36:01 2024
    Sampling period:                          00000001 Seconds.
    Power reading state is:                   activated


";
/// FreeIPMI's ipmi-dcmi --get-system-power-statistics.
const FREEIPMI: &str = "Current Power                        : 164 Watts
Minimum Power over sampling duration : 45 watts
Maximum Power over sampling duration : 348 watts
Average Power over sampling duration : 163 watts
Time Stamp                           : 03/05/2014 - 12:28:29
Statistics reporting time period     : 1000 milliseconds
Power Measurement                    : Active
";
/// ipmiutil dcmi power.
const IPMIUTIL: &str = "ipmiutil dcmi ver 3.17
-- BMC version 6.10, IPMI version 2.0
DCMI Power Management:          Supported
  Current Power:                   49 Watts
  Min Power over sample duration:  6 Watts
  Power reading state is:          active
  Power Limit:       896 Watts (inactive)
ipmiutil dcmi, completed successfully
";

#[test]
fn each_known_program_is_understood() {
    for (text, expected) in [(IPMITOOL, 332.0), (FREEIPMI, 164.0), (IPMIUTIL, 49.0)] {
        assert_eq!(watts(text), Ok(expected));
    }
}

#[test]
fn what_is_no_power_says_why() {
    let said = |number: &str| IPMITOOL.replacen("332", number, 1);
    for (text, reason) in [
        (said("0"), "blank"),
        (said("-5"), "negative"),
        (said("4294967295"), "implausible"),
        (said("nan"), "invalid"),
        (said("many"), "invalid"),
        (IPMITOOL.replace("activated", "deactivated"), "inactive"),
        (FREEIPMI.replace(": Active", ": Not Available"), "inactive"),
        (String::new(), "invalid"),
        ("Instantaneous power reading: Watts".to_owned(), "invalid"),
    ] {
        assert_eq!(watts(&text).map_err(|(reason, _)| reason), Err(reason), "{text}");
    }
}

fn answer(script: &str) -> Answer {
    let words = ["/bin/sh", "-c", script, "secret-password"].map(str::to_owned);
    let command = CommandLine::new(words.into()).unwrap();
    Dcmi::new(&Config { command, interval: Duration::from_secs(10) }).read()
}

#[test]
fn what_goes_wrong_is_told_by_its_reason_and_without_the_arguments() {
    for (script, reason) in [
        ("echo 'Could not open device at /dev/ipmi0: No such file or directory' >&2; exit 1", "missing"),
        ("echo 'Could not open device at /dev/ipmi0: Permission denied' >&2; exit 1", "permission"),
        (
            "echo 'Error in open session response message : invalid authentication algorithm'; exit 1",
            "credentials",
        ),
        (
            "echo 'RAKP 2 HMAC is invalid'; echo 'Error: Unable to establish IPMI v2 / RMCP+ session'; exit 1",
            "credentials",
        ),
        ("echo 'Error: Unable to establish IPMI v2 / RMCP+ session'; exit 1", "unreachable"),
        ("echo '    DCMI request failed because: Invalid command (c1)'; exit 1", "unsupported"),
        ("exit 1", "failed"),
        ("echo hello", "invalid"),
    ] {
        let Answer::Failed(error) = answer(script) else { panic!("{script}") };
        assert_eq!(error.reason, reason, "{error}");
        assert!(error.message.starts_with("/bin/sh: ") && !error.message.contains("secret"), "{error}");
    }
    let command = CommandLine::new(vec!["/nonexistent/ipmitool".to_owned()]).unwrap();
    let config = Config { command, interval: Duration::from_secs(10) };
    assert!(matches!(Dcmi::new(&config).read(), Answer::Failed(error) if error.reason == "missing"));
}

#[test]
fn power_is_a_sensor_that_counts_for_no_scope() {
    let words = ["/bin/echo", IPMITOOL].map(str::to_owned);
    let command = CommandLine::new(words.into()).unwrap();
    let mut dcmi = Dcmi::new(&Config { command, interval: Duration::from_secs(10) });
    dcmi.read();
    let Answer::Reading(reading) = dcmi.read() else { panic!() };
    assert_eq!(reading.sensors[0].watts, Some(332.0));
    assert_eq!(reading.sensors[0].id.device(), "dcmi/system");
    assert_eq!((reading.energy.len(), reading.energy[0].scope), (1, None));
    assert!(reading.energy[0].raw > 0, "332 W for as long as a program takes to start");
}

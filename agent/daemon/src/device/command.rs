//! A program that is run for what it prints.
//!
//! Invariant: it has a deadline and a bound on what is read; at the deadline it and what it started are killed.
//! Its arguments may hold secrets, and are never shown.

use std::io::{self, PipeReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::config::CommandLine;

/// Most bytes that are read of what it prints.
const MAX_OUTPUT_BYTES: usize = 64 << 10;
/// How often it is looked whether a program has ended that has closed its output: the two come together.
const END_POLL: Duration = Duration::from_millis(2);

/// What a program printed, to standard output and error, and how it ended.
pub(super) struct Printed {
    pub(super) text: String,
    pub(super) status: ExitStatus,
}

/// Runs the program for at most `patience`.
///
/// # Errors
/// It cannot be started, it prints too much, or its time is up.
pub(super) fn run(line: &CommandLine, patience: Duration) -> io::Result<Printed> {
    let deadline = Instant::now() + patience;
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(line.program());
    command.args(line.arguments()).stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    // Its words are parsed, and it is killed with what it started.
    let child = command.env("LC_ALL", "C").process_group(0).spawn()?;
    // The writing ends that the command holds would keep the pipe open.
    drop(command);
    let mut running = Running { child, ended: false };
    let bytes = read(reader, deadline)?;
    let status = running.wait(deadline)?;
    Ok(Printed { text: String::from_utf8_lossy(&bytes).into_owned(), status })
}

/// A program that does not outlive the wait for it.
struct Running {
    child: Child,
    ended: bool,
}

impl Running {
    fn wait(&mut self, deadline: Instant) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.ended = true;
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(late());
            }
            std::thread::sleep(END_POLL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself by now.
            let _ = kill_process_group(pid, Signal::KILL);
        }
        // Killed: it ends at once, and is reaped.
        let _ = self.child.wait();
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it does not end in time")
}

/// What comes out of the pipe until it is closed.
fn read(mut reader: PipeReader, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| late())?;
        let mut fds = [PollFd::new(&reader, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(0) => return Err(late()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            return Ok(bytes);
        }
        bytes.extend_from_slice(&buffer[..read]);
        if bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it prints too much"));
        }
    }
}

impl Printed {
    /// How it ended, where that was no success.
    pub(super) fn failure(&self) -> Option<String> {
        match (self.status.code(), self.status.signal()) {
            (Some(0), _) => None,
            (Some(code), _) => Some(format!("ended with {code}")),
            (None, Some(signal)) => Some(format!("was killed by signal {signal}")),
            (None, None) => Some("did not end well".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, patience: Duration) -> io::Result<Printed> {
        let words = ["/bin/sh", "-c", script].map(str::to_owned);
        run(&CommandLine::new(words.into()).unwrap(), patience)
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn both_outputs_and_the_end_are_told() {
        let printed = sh("echo $LC_ALL; echo b >&2; exit 3", PATIENCE).unwrap();
        assert_eq!((printed.text.as_str(), printed.failure().as_deref()), ("C\nb\n", Some("ended with 3")));
        assert_eq!(sh("true", PATIENCE).unwrap().failure(), None);
        let killed = sh("kill -9 $$", PATIENCE).unwrap();
        assert_eq!(killed.failure().as_deref(), Some("was killed by signal 9"));
        // Its output is closed before it ends.
        assert!(sh("exec >&- 2>&-; exit 4", PATIENCE).unwrap().failure().is_some());
    }

    #[test]
    fn one_that_hangs_is_killed_with_what_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", file.display());
        let began = Instant::now();
        let error = sh(&script, Duration::from_millis(300)).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() < PATIENCE, "it is not waited for");
        let pid: u32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        // Whoever reaps orphans may take a moment: dead is enough.
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        while !(state().is_empty() || state().contains(") Z ")) {
            assert!(began.elapsed() < PATIENCE, "{}", state());
        }
    }

    #[test]
    fn one_that_prints_without_end_is_stopped() {
        let error = sh("while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done", PATIENCE).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}

//! The worker's end: it never outlives the agent that started it.
//!
//! Between tasks the end of the stream says so. During a task nobody reads the stream, so a thread waits
//! for its other end to close; that also serves where systemd, not the agent, is the parent. The kernel's
//! parent-death signal stands behind both. It is sent when the *thread* that started the worker ends, so an
//! agent must start its workers from a thread that stays (a runtime's worker thread does, one of its
//! blocking pool does not).

use std::io;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, set_parent_process_death_signal};
use wattmill_protocol::exit;

/// Makes this process end when the agent does, even in the middle of a task.
///
/// # Errors
/// When the operating system refuses the signal or the thread.
pub(crate) fn end_with_the_agent() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    thread::Builder::new().name("agent-watch".to_owned()).spawn(exit_when_nobody_reads)?;
    Ok(())
}

/// Waits until nobody can read an answer any more, then ends the process. An agent that only closed its
/// sending side still gets its answers.
fn exit_when_nobody_reads() {
    let output = io::stdout();
    let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
    loop {
        // No event is asked for: the ones above are always reported.
        let mut wait = [PollFd::new(&output, PollFlags::empty())];
        match poll(&mut wait, None) {
            Ok(_) if wait[0].revents().intersects(gone) => std::process::exit(i32::from(exit::OK)),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                eprintln!("wattmill-worker: cannot watch for the agent's end during tasks: {error}");
                return;
            }
        }
    }
}

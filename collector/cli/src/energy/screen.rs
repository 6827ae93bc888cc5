//! A terminal that is drawn over and over.
//!
//! Invariant: whatever happens, but SIGKILL, the terminal is left as it was found, with the last picture on it.

use std::io::{self, IsTerminal as _, Read as _, Write as _};

use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use tokio::sync::mpsc;

use super::picture::{Line, Style};

/// Where a terminal does not tell its size.
const SIZE: (usize, usize) = (80, 24);
/// The other screen, which the scrollback has no part in, and no cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// Keys that wait to be seen: one is enough to end.
const KEYS: usize = 8;

/// The terminal on standard output.
pub(super) struct Screen {
    /// Modes of the terminal's input as they were; `None` where keys come from no terminal.
    modes: Option<Termios>,
    colours: bool,
    /// What is shown, without colours.
    shown: String,
}

impl Screen {
    /// Takes the terminal.
    pub(super) fn enter(colours: bool) -> io::Result<Self> {
        let modes = if io::stdin().is_terminal() { termios::tcgetattr(io::stdin()).ok() } else { None };
        let screen = Self { modes, colours, shown: String::new() };
        screen.take()?;
        Ok(screen)
    }

    fn take(&self) -> io::Result<()> {
        if let Some(modes) = &self.modes {
            // Keys come at once and are not shown; Ctrl-C and Ctrl-Z stay signals.
            let mut raw = modes.clone();
            raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        }
        write(ENTER)
    }

    fn give(&self) {
        // A terminal that is gone needs nothing given back.
        let _ = write(LEAVE);
        if let Some(modes) = &self.modes {
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, modes);
        }
    }

    /// Stops as Ctrl-Z asks for, with the terminal given back meanwhile.
    pub(super) fn suspend(&self) -> io::Result<()> {
        self.give();
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::STOP)?;
        self.take()
    }

    /// Columns and lines.
    pub(super) fn size() -> (usize, usize) {
        let size = termios::tcgetwinsize(io::stdout()).ok();
        let size = size.map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)));
        size.filter(|(columns, lines)| *columns > 0 && *lines > 0).unwrap_or(SIZE)
    }

    /// Draws the lines over what was there.
    pub(super) fn draw(&mut self, lines: &[Line]) -> io::Result<()> {
        let (columns, height) = Self::size();
        write(&frame(&lines[..lines.len().min(height)], columns, self.colours))?;
        self.shown = lines.iter().map(|line| format!("{}\n", line.text)).collect();
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.give();
        // It stays to be read; a terminal that is gone shows nothing.
        let _ = write(&self.shown);
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// What draws the lines: from the top, each to its end, and nothing under them. No line is wider than the terminal, which
/// would go on in the next.
fn frame(lines: &[Line], columns: usize, colours: bool) -> String {
    let mut frame = "\x1b[H".to_owned();
    for (index, Line { text, style }) in lines.iter().enumerate() {
        if index > 0 {
            frame.push_str("\r\n");
        }
        let text: String = text.chars().take(columns).collect();
        let code = match style {
            Style::Head => "\x1b[1m",
            Style::Bad => "\x1b[31m",
            Style::Dim => "\x1b[2m",
            Style::Plain => "",
        };
        if colours && !code.is_empty() {
            frame.push_str(&format!("{code}{text}\x1b[0m\x1b[K"));
        } else {
            frame.push_str(&format!("{text}\x1b[K"));
        }
    }
    frame + "\x1b[J"
}

/// Keys as they are pressed. The thread that reads them ends with the program.
pub(super) fn keys() -> mpsc::Receiver<u8> {
    let (sender, receiver) = mpsc::channel(KEYS);
    if io::stdin().is_terminal() {
        std::thread::spawn(move || {
            let mut byte = [0];
            while matches!(io::stdin().read(&mut byte), Ok(1)) && sender.blocking_send(byte[0]).is_ok() {}
        });
    }
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_fits_and_is_plain_without_colours() {
        let lines = [Line::new(Style::Head, "ηηη wide"), Line::new(Style::Bad, "lost")];
        assert_eq!(frame(&lines, 3, false), "\x1b[Hηηη\x1b[K\r\nlos\x1b[K\x1b[J");
        assert_eq!(frame(&lines[1..], 9, true), "\x1b[H\x1b[31mlost\x1b[0m\x1b[K\x1b[J");
    }
}

//! The control socket: one JSON request a line, one JSON answer a line.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::{fs, io, thread};

use crate::abi::driver;
use crate::machine::command::Answer;

/// Longest request, in bytes without its newline.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// Connections at a time; one more is closed at once.
const MAX_CONNECTIONS: usize = 32;

/// Binds `path` and serves it from a thread for as long as the process lives. Where another live process serves
/// the path already, that one keeps it.
pub(crate) fn start(path: &Path) -> Result<(), String> {
    if UnixStream::connect(path).is_ok() {
        return Ok(());
    }
    // A socket that nobody listens on is what an earlier process left behind.
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(format!("{}: {error}", path.display()));
    }
    let listener = UnixListener::bind(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let named = thread::Builder::new().name("nvml-fake".to_owned());
    named.spawn(move || accept(&listener)).map_err(|error| format!("control thread: {error}"))?;
    Ok(())
}

fn accept(listener: &UnixListener) {
    let connections = Arc::new(());
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        if Arc::strong_count(&connections) > MAX_CONNECTIONS {
            continue;
        }
        let counted = Arc::clone(&connections);
        let named = thread::Builder::new().name("nvml-fake-client".to_owned());
        let spawned = named.spawn(move || {
            let _counted = counted;
            // A client that goes away in the middle of an answer ends its own connection only.
            if let Err(error) = serve(&stream) {
                eprintln!("nvml-fake: control connection: {error}");
            }
        });
        if let Err(error) = spawned {
            eprintln!("nvml-fake: control thread: {error}");
        }
    }
}

/// Answers every request of a connection. An oversized one ends it, because its rest cannot be told from the
/// next request.
fn serve(stream: &UnixStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let limit = MAX_REQUEST_BYTES as u64 + 1;
        if (&mut reader).take(limit).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let oversized = line.len() > MAX_REQUEST_BYTES && line.last() != Some(&b'\n');
        let answer = if oversized {
            Answer::Error(format!("a request has at most {MAX_REQUEST_BYTES} bytes"))
        } else {
            match serde_json::from_slice(&line) {
                Ok(command) => driver::apply(command),
                Err(error) => Answer::Error(error.to_string()),
            }
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        let mut writer = stream;
        let sent = writer.write_all(&text);
        driver::wake();
        sent?;
        if oversized {
            return Ok(());
        }
    }
}

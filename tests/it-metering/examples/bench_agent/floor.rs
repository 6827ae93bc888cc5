//! The least that an agent could do: what a window reads, keeps and sends, and nothing else.
//!
//! One thread and no library between it and the system: it reads the files that the agent reads, keeps a ledger
//! of the same size on the medium and a frame in a spool, sends the frame over a connection and hears that it
//! came, and answers scrapes with a page that is ready made. No counter is parsed, no GPU read, no joule counted.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

const WINDOW: Duration = Duration::from_secs(1);
/// Sizes with 8 GPUs.
const LEDGER_BYTES: usize = 3_800;
const FRAME_BYTES: usize = 27_000;
const PAGE_BYTES: usize = 32_000;
/// What the receiver of a frame answers.
const RECEIPT_BYTES: usize = 59;

const FILES: [&str; 7] = [
    "/proc/stat",
    "/proc/meminfo",
    "/proc/diskstats",
    "/proc/net/dev",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
];

/// Takes frames and says that they came; it is part of the bench, so that its cost is not the floor's.
pub(crate) fn receiver() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut frame = vec![0; FRAME_BYTES];
            while stream.read_exact(&mut frame).and_then(|()| stream.write_all(&[0; RECEIPT_BYTES])).is_ok() {
            }
        }
    });
    Ok(port)
}

/// Runs until it is killed: says on which port it is scraped, pushes to port `to`, keeps its files in `folder`.
pub(crate) fn run(folder: &Path, to: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    eprintln!("{}", serde_json::json!({ "message": "listening", "address": listener.local_addr()? }));
    let mut push = TcpStream::connect((Ipv4Addr::LOCALHOST, to))?;
    push.set_nodelay(true)?;
    let ledgers =
        (0..3).map(|i| File::create(folder.join(format!("ledger.{i}")))).collect::<io::Result<Vec<_>>>()?;
    let mut spool = File::create(folder.join("spool"))?;
    let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {PAGE_BYTES}\r\n\r\n");
    let page = [head.as_bytes(), &[b'#'; PAGE_BYTES]].concat();
    let (ledger, frame) = ([b'l'; LEDGER_BYTES], [b'f'; FRAME_BYTES]);
    let mut buffer = vec![0; 64 << 10];
    let mut next = Instant::now() + WINDOW;
    for window in 0.. {
        loop {
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let mut ready = [PollFd::new(&listener, PollFlags::IN), PollFd::new(&push, PollFlags::IN)];
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            poll(&mut ready, Some(&left))?;
            let [scraped, answered] = ready.map(|fd| !fd.revents().is_empty());
            if scraped {
                let (mut stream, _) = listener.accept()?;
                let _ = stream.read(&mut buffer)?;
                stream.write_all(&page)?;
            }
            if answered {
                let _ = push.read(&mut buffer)?;
            }
        }
        next += WINDOW;
        for path in FILES {
            let mut file = File::open(path)?;
            while file.read(&mut buffer)? > 0 {}
        }
        let file = &ledgers[window % ledgers.len()];
        file.write_all_at(&ledger, 0)?;
        file.sync_data()?;
        spool.write_all(&frame)?;
        push.write_all(&frame)?;
    }
    Ok(())
}

//! Findings on addresses: the agent's own, and the collector's.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};

use tonic::codegen::http::Uri;
use wattmill_protocol::catalogue as cat;

use super::{Finding, PATIENCE, Status};
use crate::config::Config;

/// How much of a page is read to see whose it is: an agent's families come by name, and that of its version is among
/// the first.
const PAGE_BYTES: u64 = 1 << 20;

pub(super) fn listen(config: &Config) -> Finding {
    let address = config.listen;
    match TcpListener::bind(address) {
        Ok(_) => Finding::new("listen", Status::Ok, format!("{address} is free for /metrics"), ""),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            if is_agent(address) {
                let detail = format!("{address} serves the /metrics of an agent that runs already");
                return Finding::new("listen", Status::Ok, detail, "");
            }
            let port = address.port();
            let mend = format!(
                "something else than an agent listens there (ss -ltnp 'sport = :{port}' names it): stop it, or set \
                 listen to another address"
            );
            Finding::new("listen", Status::Failed, format!("{address} is in use by another program"), mend)
        }
        Err(error) => Finding::new(
            "listen",
            Status::Failed,
            format!("{address}: {error}"),
            "set listen to an address of this host (ip address lists them) and a port from 1024 up",
        ),
    }
}

pub(super) fn collector(config: &Config) -> Finding {
    let Some(url) = &config.collector else {
        let detail = "none configured: metering only, nothing is pushed";
        return Finding::new(
            "collector",
            Status::Absent,
            detail,
            "set collector = \"http://HOST:4317\" to join one",
        );
    };
    match reach(url) {
        Ok(()) => Finding::new("collector", Status::Ok, format!("{url} can be reached"), ""),
        Err(error) => {
            let mend = "is wattmill-collector running there (systemctl status wattmill-collector), with that address as its \
                        listen_grpc, and let through by firewalls? Until it is reached, what is metered waits in the spool";
            Finding::new("collector", Status::Failed, format!("{url}: {error}"), mend)
        }
    }
}

/// Whether an agent answers at the address.
fn is_agent(address: SocketAddr) -> bool {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let page = || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, address.port()), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut page = Vec::new();
        stream.take(PAGE_BYTES).read_to_end(&mut page)?;
        Ok::<_, std::io::Error>(page)
    };
    // Whatever does not answer as an agent does is none.
    page().is_ok_and(|page| String::from_utf8_lossy(&page).contains(cat::AGENT_BUILD_INFO.name))
}

fn reach(url: &str) -> std::io::Result<()> {
    let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidInput);
    let uri: Uri = url.parse().map_err(|_| invalid())?;
    let host = uri.host().ok_or_else(invalid)?.trim_start_matches('[').trim_end_matches(']');
    let mut last = std::io::Error::other("the name has no address");
    for address in (host, uri.port_u16().ok_or_else(invalid)?).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

//! `wattmill-collector check`: whether the daemon could start here. It makes and changes nothing.

use std::net::SocketAddr;
use std::path::Path;

use rustix::fs::Access;
use wattmill_protocol::exit;

use crate::app::{self, AppError};
use crate::config::Config;
use crate::store::Sqlite;

/// Prints what was found; returns whether the daemon could start, or runs already.
pub(crate) async fn run(config: &Config) -> bool {
    say("configuration", &Ok("ok".to_owned()));
    let mut sound = true;
    let running = matches!(app::lock_existing(&config.state_dir), Err(AppError::Locked { .. }));
    let state = if running {
        Ok(format!("{}: a wattmill-collector runs on it", config.state_dir.display()))
    } else {
        state(config).await
    };
    sound &= say("state", &state);
    for (what, key, address) in
        [("gRPC", "listen_grpc", config.listen_grpc), ("HTTP", "listen_http", config.listen_http)]
    {
        let port = if running {
            Ok(format!("{address}: not tested, since the collector runs"))
        } else {
            port(key, address).await
        };
        sound &= say(what, &port);
    }
    sound
}

fn say(what: &str, found: &Result<String, String>) -> bool {
    match found {
        Ok(found) => println!("{what:<14} {found}"),
        Err(wrong) => println!("{what:<14} FAILED: {wrong}"),
    }
    found.is_ok()
}

async fn state(config: &Config) -> Result<String, String> {
    let folder = &config.state_dir;
    if !folder.exists() {
        let above = folder.ancestors().skip(1).find(|above| above.exists()).unwrap_or(Path::new("/"));
        let place = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        writable(place)?;
        return Ok(format!("{} is not there yet: `run` makes it", folder.display()));
    }
    writable(folder)?;
    let database = app::database(config);
    if !database.exists() {
        return Ok(format!("{} has no database yet: `run` makes it", folder.display()));
    }
    let found = Sqlite::look(&database).await.map_err(|error| exit::describe(&error))?;
    let older = match found.migrations {
        0 => String::new(),
        count => format!(", {count} migrations behind: `run` or `migrate` makes them"),
    };
    Ok(format!(
        "{} (cluster {}{older})",
        folder.display(),
        found.cluster.as_deref().unwrap_or("not named yet")
    ))
}

fn writable(folder: &Path) -> Result<(), String> {
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|errno| {
        format!(
            "this user cannot write in {}: {errno}; check as the service's user (`sudo -u wattmill`), or set \
                 `state_dir`",
            folder.display()
        )
    })
}

async fn port(key: &'static str, address: SocketAddr) -> Result<String, String> {
    match app::listen(address, key).await {
        Ok(_) => Ok(format!("{address} is free")),
        Err(error) => Err(exit::describe(&error)),
    }
}

//! What people and disks get wrong: each mistake ends with its exit code, and words that name it.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use wattmill_it::{AgentConfig, Cluster, Signal, binary, cpus, digits, run, turn};

/// Runs a command that must fail, with this code and these words.
fn fails(command: &mut Command, code: i32, words: &[&str]) {
    let output = run(command);
    assert_eq!(output.code, Some(code), "{command:?}\n{}\n{}", output.stdout, output.stderr);
    for word in words {
        assert!(output.stderr.contains(word), "{command:?} does not say {word:?}:\n{}", output.stderr);
    }
}

/// A program with this configuration.
fn daemon(name: &str, folder: &Path, config: &str) -> Command {
    let file = folder.join(format!("{name}.toml"));
    fs::write(&file, config).unwrap();
    let mut command = Command::new(binary(&format!("wattmill-{name}")));
    command.args(["run", "--config"]).arg(file);
    command
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A collector that is not there is named with its address, by the tool's every command.
#[test]
fn a_collector_that_is_not_there_is_named() {
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{address}");
    for arguments in [&["nodes"][..], &["jobs"], &["watch"], &["job", "x"], &["cancel", "x"]] {
        let mut command = Command::new(binary("wattmill"));
        fails(command.args(arguments).args(["--collector", &url]), 1, &["cannot reach the collector", &url]);
    }
    let mut command = Command::new(binary("wattmill"));
    fails(command.args(["nodes", "--collector", "not a url"]), 64, &["not a url"]);
    fails(Command::new(binary("wattmill")).arg("nodse"), 64, &["nodse"]);
}

/// A port that is taken is named with the key that sets it; so is a key that does not exist, with its line.
#[test]
fn a_taken_port_and_an_unknown_key_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let run = |name, config: &str| daemon(name, folder.path(), &format!("state_dir = {state:?}\n{config}"));
    for (key, other) in [("listen_grpc", "listen_http"), ("listen_http", "listen_grpc")] {
        let config = format!("{key} = {address:?}\n{other} = \"127.0.0.1:0\"");
        fails(&mut run("collector", &config), 1, &[&address, &format!("`{key}`")]);
    }
    assert!(!state.exists(), "a collector that cannot start leaves nothing");
    fails(&mut run("agent", &format!("listen = {address:?}")), 1, &[&address, "`listen`"]);
    for name in ["collector", "agent"] {
        let words = [&format!("{name}.toml:3: unknown field `lisen`") as &str];
        fails(&mut run(name, "[log]\nlisen = 1"), 78, &[&format!("{name}.toml:3: unknown field `lisen`")]);
        fails(&mut run(name, "\nlisen = 1"), 78, &words);
        fails(&mut run(name, "state_dir"), 78, &[&format!("{name}.toml:2: ")]);
        let mut missing = Command::new(binary(&format!("wattmill-{name}")));
        fails(missing.args(["run", "--config", "/nonexistent.toml"]), 78, &["/nonexistent.toml"]);
    }
}

/// `wattmill-collector check` tests the ports and makes nothing; it fails where a port is taken, and not where
/// the collector itself runs. A second collector is refused the state folder.
#[tokio::test]
async fn a_check_makes_nothing_and_a_state_folder_serves_one_collector() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("deep/state");
    let file = folder.path().join("collector.toml");
    let check = |config: &str| {
        fs::write(&file, config).unwrap();
        run(Command::new(binary("wattmill-collector")).args(["check", "--config"]).arg(&file))
    };
    let free = "listen_grpc = \"127.0.0.1:0\"\nlisten_http = \"127.0.0.1:0\"\n";
    let output = check(&format!("state_dir = {state:?}\n{free}"));
    assert_eq!(output.code, Some(0), "{}", output.stdout);
    assert!(!folder.path().join("deep").exists(), "a check makes nothing");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listener = TcpListener::bind(taken).unwrap();
    let config = format!("state_dir = {state:?}\nlisten_grpc = \"127.0.0.1:0\"\nlisten_http = \"{taken}\"\n");
    let output = check(&config);
    assert_eq!(output.code, Some(1), "{}", output.stdout);
    let says = |words: &str| output.stdout.contains(words);
    assert!(says(&taken.to_string()) && says("`listen_http`"), "{}", output.stdout);
    drop(listener);

    let cluster = Cluster::start("").await;
    let state = cluster.folder().join("collector/state");
    let own = format!("state_dir = {state:?}\n{free}");
    fails(
        &mut daemon("collector", folder.path(), &own),
        1,
        &["another wattmill-collector uses", state.to_str().unwrap()],
    );
    let output = check(&own);
    assert_eq!(output.code, Some(0), "{}", output.stdout);
    assert!(output.stdout.contains("a wattmill-collector runs on it"), "{}", output.stdout);
}

/// A database that is none is refused by name, and left as it is.
#[test]
fn a_corrupt_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    fs::create_dir_all(&state).unwrap();
    let file = state.join("collector.db");
    let garbage = "this is no database".repeat(500);
    fs::write(&file, &garbage).unwrap();
    let config =
        format!("state_dir = {state:?}\nlisten_grpc = \"127.0.0.1:0\"\nlisten_http = \"127.0.0.1:0\"");
    fails(&mut daemon("collector", folder.path(), &config), 1, &[file.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&file).unwrap(), garbage);
}

/// A job file that is wrong, and every way in which its data can be wrong: `wattmill submit` exits 65 and
/// names file and line, and the node goes on: the right job finishes at the end.
#[tokio::test]
async fn a_bad_job_or_bad_data_is_named_by_file_and_line() {
    let _turn = turn();
    let mut cluster = Cluster::start("[leases]\nsettle_ms = 3000").await;
    cluster.agent("one", &cpus()[0].to_string(), "").await;
    cluster.ready(1).await;
    let good = digits(cluster.folder()).replace("epochs = 20", "epochs = 1");
    let folder = cluster.folder().to_owned();
    let submit = |name: &str, text: &str| {
        let file = folder.join(name);
        fs::write(&file, text).unwrap();
        let mut command = cluster.tool(&["submit", file.to_str().unwrap(), "--model"]);
        command.arg(folder.join("model.safetensors"));
        command
    };

    let line = 1 + good.lines().position(|line| line.starts_with("epochs")).unwrap();
    let bad = good.replace("epochs = 1", "epochs = \"many\"");
    fails(&mut submit("bad.toml", &bad), 65, &["bad.toml", &line.to_string()]);

    let shipped = format!("file://{}", folder.join("digits.csv.gz").display());
    let row = |label: &str| format!("{}{label}\n", "0,".repeat(64));
    let table = [
        ("columns.csv", Some(row("3") + "1,2,3\n"), "columns.csv, line 2: 3 columns; expected are 65"),
        ("label.csv", Some(row("3") + &row("4") + &row("10")), "label.csv, line 3, column 65: \"10\" is not"),
        ("text.csv", Some(row("3") + &row("x")), "text.csv, line 2, column 65: \"x\" is not"),
        ("empty.csv", Some(String::new()), "empty.csv has no rows"),
        ("cut.csv.gz", Some("no gzip".to_owned()), "cut.csv.gz is not a whole gzip file"),
        ("missing.csv", None, "missing.csv"),
    ];
    for (name, content, words) in table {
        let data = folder.join(name);
        if let Some(content) = content {
            fs::write(&data, content).unwrap();
        }
        let job = good.replace(&shipped, &format!("file://{}", data.display()));
        fails(&mut submit("job.toml", &job), 65, &["failed: ", words]);
    }
    fails(&mut submit("job.toml", &good.replace(&shipped, "gopher://digits.csv")), 65, &["gopher"]);

    let output = run(&mut submit("job.toml", &good));
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(cluster.program("one").is_alive());
}

/// Corrupt files in an agent's state are set aside and named, never deleted; the agent meters on with the
/// same identity. A second agent in the same folder is refused.
#[tokio::test]
async fn an_agents_corrupt_state_is_set_aside() {
    let _turn = turn();
    let mut cluster = Cluster::start("").await;
    let config = "[metering]\ninterval_ms = 200";
    let cpu = cpus()[0].to_string();
    cluster.agent("one", &cpu, config).await;
    cluster.ready(1).await;
    let state = cluster.home("one").join("state");

    let mut second =
        cluster.agent_command("second", &AgentConfig { cpus: cpu.clone(), extra: String::new() });
    let file = cluster.home("second").join("agent.toml");
    let text = fs::read_to_string(&file).unwrap();
    let own = cluster.home("second").join("state");
    fs::write(&file, text.replace(&format!("{own:?}"), &format!("{state:?}"))).unwrap();
    fails(&mut second, 1, &["another wattmill-agent uses", state.to_str().unwrap()]);

    let node = fs::read_to_string(state.join("node-id")).unwrap();
    cluster.program("one").signal(Signal::TERM);
    assert_eq!(cluster.program("one").ended().await.code(), Some(0));
    let ledgers: Vec<PathBuf> = ["ledger.a", "ledger.b", "ledger.c"].map(|name| state.join(name)).into();
    let garbage = |path: &Path| format!("{} holds what nobody wrote there", path.display());
    assert!(ledgers.iter().any(|path| path.exists()));
    for path in &ledgers {
        fs::write(path, garbage(path)).unwrap();
    }
    // The only segment, in which the last frame of telemetry stands.
    let spool = state.join("spool");
    assert_eq!(names(&spool).len(), 1);
    let segment = spool.join(names(&spool).first().unwrap());
    assert!(!fs::read(&segment).unwrap().is_empty());
    fs::write(&segment, garbage(&segment)).unwrap();

    cluster.agent("one", &cpu, config).await;
    for path in ledgers.iter().chain([&segment]) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let folder = path.parent().unwrap();
        let aside = format!("{name}.corrupt-");
        let kept: Vec<String> = names(folder).into_iter().filter(|n| n.starts_with(&aside)).collect();
        assert_eq!(kept.len(), 1, "{name} in {:?}", names(folder));
        assert_eq!(fs::read_to_string(folder.join(&kept[0])).unwrap(), garbage(path));
        cluster.program("one").says(&kept[0]).await;
    }
    let log = cluster.program("one").log();
    for path in ledgers.iter().chain([&segment]) {
        let names = |line: &str| line.contains("\"ERROR\"") && line.contains(path.to_str().unwrap());
        assert!(log.lines().any(names), "{} is not named:\n{log}", path.display());
    }
    assert_eq!(fs::read_to_string(state.join("node-id")).unwrap(), node);
    cluster.ready(1).await;
}

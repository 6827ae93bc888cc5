//! The worker as a process: its first word, its probe, its ends.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not tests to clippy")]

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{PROGRAM, Worker};
use wattmill_kernel::Numerics;
use wattmill_protocol::job::Job;
use wattmill_protocol::v1::{
    EvaluateTask, GradientTask, PrepareTask, ProbeRequest, RunTask, Task, from_worker, task, task_result,
    to_worker,
};

fn probe(threads: u32) -> to_worker::Kind {
    to_worker::Kind::Probe(ProbeRequest { threads })
}

#[test]
fn it_says_hello_and_measures_the_device() {
    let (mut worker, hello) = Worker::start();
    assert_eq!(hello.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(hello.numerics.unwrap().value, Numerics::detect().to_string());
    for threads in [1, 2] {
        worker.send(probe(threads));
        let Some(from_worker::Kind::Probe(reply)) = worker.receive().unwrap().kind else {
            panic!("no reply to a probe")
        };
        assert_eq!(reply.precision, "f32");
        // A core of the last twenty years gives more, none of the next years a thousand times as much.
        assert!((1e8..1e14).contains(&reply.flops_per_second), "{reply:?}");
    }
}

#[test]
fn it_ends_when_the_stream_does() {
    let (mut worker, _) = Worker::start();
    worker.stream.shutdown(Shutdown::Both).unwrap();
    let (status, said) = worker.end();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));
}

#[test]
fn requests_sent_before_the_end_are_answered() {
    let (mut worker, _) = Worker::start();
    worker.send(probe(1));
    worker.stream.shutdown(Shutdown::Write).unwrap();
    assert!(matches!(worker.receive().unwrap().kind, Some(from_worker::Kind::Probe(_))));
    assert_eq!(worker.receive(), None);
    assert_eq!(worker.end().0.code(), Some(0));
}

#[test]
fn pipes_serve_as_well_as_a_socket() {
    let mut child = Command::new(PROGRAM).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&[0, 0, 0, 4, 0x0a, 2, 0x08, 1]).unwrap();
    let mut answers = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut answers).unwrap();
    assert!(answers.ends_with(b"f32"), "hello and the reply to the probe: {answers:?}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn without_a_reader_of_its_answers_it_ends() {
    let mut child = Command::new(PROGRAM).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Kept open here: waiting on the child would close it.
    let requests = child.stdin.take();
    let mut answers = child.stdout.take().unwrap();
    answers.read_exact(&mut [0]).unwrap();
    drop(answers);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    drop(requests);
}

/// A task of 4 TFLOP, which takes a core most of a minute.
fn long_task(worker: &mut Worker, folder: &tempfile::TempDir) -> RunTask {
    let path = folder.path().join("long.csv");
    std::fs::write(&path, "0,0\n".repeat(1_000_000)).unwrap();
    let job = format!(
        r#"
name = "long"
model.layers = [
    {{ units = 2048, activation = "relu" }},
    {{ units = 2048, activation = "relu" }},
    {{ units = 2, activation = "softmax" }},
]
data = {{ uri = "file://{}", features = 1, classes = 2, held_out = {{ every = 2, remainder = 0 }} }}
[training]
epochs = 1
shard_size = 1
shards_per_round = 1
optimizer = {{ name = "sgd", learning_rate = 1.0 }}
"#,
        path.display()
    );
    let job_json = Job::from_toml(&job).unwrap().to_json();
    let prepare = Some(Task { kind: Some(task::Kind::Prepare(PrepareTask {})) });
    let prepare = RunTask { token: 1, job_json, task: prepare, threads: 1, ..RunTask::default() };
    let done = worker.run(prepare.clone());
    let Some(task_result::Kind::Prepare(prepared)) = done.result.unwrap().kind else {
        panic!("not prepared")
    };
    let evaluate = EvaluateTask { parameters_hash: prepared.parameters_hash, first: 0, count: 500_000 };
    let evaluate = Some(Task { kind: Some(task::Kind::Evaluate(evaluate)) });
    RunTask { token: 2, task: evaluate, parameters: done.blob, data_hash: prepared.data_hash, ..prepare }
}

#[test]
fn a_long_task_reports_progress_and_is_given_up_with_its_agent() {
    let folder = tempfile::tempdir().unwrap();
    let (mut worker, _) = Worker::start();
    let task = long_task(&mut worker, &folder);
    worker.send(to_worker::Kind::Run(task));
    let mut done = 0;
    for _ in 0..2 {
        let Some(from_worker::Kind::Progress(progress)) = worker.receive().unwrap().kind else {
            panic!("the task is too short for this test")
        };
        assert_eq!(progress.token, 2);
        assert!(progress.done > done, "{progress:?}");
        done = progress.done;
    }
    let start = Instant::now();
    worker.stream.shutdown(Shutdown::Both).unwrap();
    let (status, said) = worker.end();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));
    assert!(start.elapsed() < Duration::from_secs(5), "it worked on for {:?}", start.elapsed());
}

/// The lease of a gradient that takes long lives by these.
#[test]
fn a_long_gradient_and_a_long_read_report_progress() {
    let folder = tempfile::tempdir().unwrap();
    let (mut worker, _) = Worker::start();
    let RunTask { job_json, parameters, data_hash, task, .. } = long_task(&mut worker, &folder);
    let Some(Task { kind: Some(task::Kind::Evaluate(evaluate)) }) = task else { panic!("{task:?}") };
    // 200 GFLOP, which take a core seconds; another worker has to read the data first.
    let parameters_hash = evaluate.parameters_hash;
    let gradient = GradientTask { parameters_hash, epoch: 0, first: 0, count: 8_000 };
    let task = Some(Task { kind: Some(task::Kind::Gradient(gradient)) });
    let (mut worker, _) = Worker::start();
    worker.send(to_worker::Kind::Run(RunTask {
        token: 3,
        job_json,
        task,
        threads: 1,
        parameters,
        data_hash,
    }));
    let rows = 1_000_000;
    let mut done = 0;
    // Rows that were read, then blocks of the gradient: it grows past all rows.
    while done <= rows + 1 {
        let Some(from_worker::Kind::Progress(progress)) = worker.receive().unwrap().kind else {
            panic!("the task is too short for this test")
        };
        assert!(progress.done > done, "{progress:?}");
        done = progress.done;
    }
}

#[test]
fn a_killed_parent_takes_it_along() {
    // The shell is the agent; the test holds the stream open, so that only the kill can end the worker.
    let script = "exec 3<&0; \"$0\" <&3 3<&- & wait";
    let mut worker = Worker::start_as(Command::new("sh").args(["-c", script, PROGRAM]));
    assert!(matches!(worker.receive().unwrap().kind, Some(from_worker::Kind::Hello(_))));
    worker.child.kill().unwrap();
    assert_eq!(worker.receive(), None, "the stream ends with the last process that has it");
}

#[test]
fn what_is_no_message_ends_it_with_a_reason() {
    let garbage: [u8; 36] = std::array::from_fn(|i| if i < 4 { [0, 0, 0, 32][i] } else { 0xff });
    let table: [(&[u8], &str); 7] = [
        (&[0xff; 4], "a message of 4294967295 bytes is above the limit of 136314880"),
        (b"GET / HTTP/1.1\r\n\r\n", "a message of 1195725856 bytes is above the limit"),
        (&garbage, "a message cannot be decoded: "),
        (&[0, 0, 0, 0], "a request is of no kind that version"),
        (&[0, 0, 0, 2, 0x0a, 0], "cannot measure the device: 0 threads were asked for"),
        (&[0, 0], "the stream ended after 2 of 4 bytes of a message"),
        (&[8, 0, 0, 0, 1], "the stream ended after 1 of 134217728 bytes of a message"),
    ];
    for (bytes, expected) in table {
        let (mut worker, _) = Worker::start();
        worker.stream.write_all(bytes).unwrap();
        if expected.starts_with("the stream ended") {
            worker.stream.shutdown(Shutdown::Write).unwrap();
        }
        let (status, said) = worker.end();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.starts_with("wattmill-worker: ") && said.contains(expected), "{said}");
    }
}

#[test]
fn memory_follows_the_bytes_that_arrive_and_not_their_announcement() {
    // 120 MiB of address space; the largest message, of 130 MiB, is announced.
    let script = "ulimit -v 122880; exec \"$0\"";
    let mut worker = Worker::start_as(Command::new("sh").args(["-c", script, PROGRAM]));
    assert!(worker.receive().is_some());
    worker.stream.write_all(&[8, 32, 0, 0, 0x0a]).unwrap();
    worker.stream.shutdown(Shutdown::Write).unwrap();
    let (status, said) = worker.end();
    assert!(said.contains("the stream ended after 1 of 136314880 bytes of a message"), "{said}");
    assert_eq!(status.code(), Some(1));
}

#[test]
fn the_command_line_says_what_it_is() {
    let run = |argument| Command::new(PROGRAM).arg(argument).stdin(Stdio::null()).output().unwrap();
    let help = run("--help");
    assert_eq!(help.status.code(), Some(0));
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("wattmill-agent starts this program"), "{help}");
    let version = run("--version");
    assert_eq!(version.stdout, format!("wattmill-worker {}\n", env!("CARGO_PKG_VERSION")).as_bytes());
    let wrong = run("--job");
    assert_eq!(wrong.status.code(), Some(64));
    assert!(String::from_utf8(wrong.stderr).unwrap().contains("unexpected argument '--job'"));
}

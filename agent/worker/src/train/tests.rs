//! Tasks against the kernel called directly, and every failure with its kind.

use wattmill_kernel::order;
use wattmill_protocol::v1::{FailureKind, PrepareTask, Task, task, task_result};

use super::*;

/// 4 features, 2 classes; every third row is held out.
struct Fixture {
    _folder: tempfile::TempDir,
    job: Job,
    path: std::path::PathBuf,
}

impl Fixture {
    /// Row `i` has features that follow from `i`, and the label `i mod 2`.
    fn new(rows: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.csv");
        let lines = (0..rows).map(|i| format!("{},{},{},{},{}\n", i % 7, i % 5, i % 3, (i * i) % 11, i % 2));
        std::fs::write(&path, lines.collect::<String>()).unwrap();
        let text = format!(
            r#"
name = "test"
[model]
layers = [{{ units = 8, activation = "relu" }}, {{ units = 2, activation = "softmax" }}]
[data]
uri = "file://{}"
features = 4
classes = 2
scale = 0.1
held_out = {{ every = 3, remainder = 0 }}
[training]
epochs = 2
shard_size = 10
shards_per_round = 1
seed = 9
optimizer = {{ name = "sgd", learning_rate = 0.1 }}
"#,
            path.display()
        );
        Self { _folder: folder, job: Job::from_toml(&text).unwrap(), path }
    }

    fn request(&self, kind: task::Kind) -> RunTask {
        RunTask {
            token: 1,
            job_json: self.job.to_json(),
            task: Some(Task { kind: Some(kind) }),
            threads: 1,
            ..RunTask::default()
        }
    }

    fn parameters(&self, scale: f32) -> Vec<f32> {
        let mut parameters = model(&self.job).unwrap().initialise(5);
        parameters.iter_mut().for_each(|value| *value *= scale);
        parameters
    }

    /// A task with fresh parameters, times `scale`.
    fn request_with(&self, scale: f32, kind: impl FnOnce(Bytes) -> task::Kind) -> RunTask {
        let parameters = parameters::encode(&model(&self.job).unwrap(), &self.parameters(scale)).unwrap();
        RunTask { parameters: parameters.clone(), ..self.request(kind(Hash::of(&parameters).to_bytes())) }
    }
}

fn gradient_task(epoch: u32, first: u64, count: u64) -> impl FnOnce(Bytes) -> task::Kind {
    move |parameters_hash| task::Kind::Gradient(GradientTask { parameters_hash, epoch, first, count })
}

fn evaluate_task(first: u64, count: u64) -> impl FnOnce(Bytes) -> task::Kind {
    move |parameters_hash| task::Kind::Evaluate(EvaluateTask { parameters_hash, first, count })
}

fn run(trainer: &mut Trainer, request: &RunTask) -> Result<Finished, TaskError> {
    trainer.run(request, &Reporter::new(&mut std::io::sink(), request.token))
}

/// The features and labels of file rows, computed as the fixture wrote them.
fn rows_of(indices: impl Iterator<Item = usize>) -> Rows {
    let mut rows = Rows::default();
    for i in indices {
        rows.features.extend([i % 7, i % 5, i % 3, (i * i) % 11].map(|value| value as f32 * 0.1));
        rows.labels.push((i % 2) as u32);
    }
    rows
}

#[test]
fn a_gradient_is_the_kernels_at_the_epochs_positions() {
    let fixture = Fixture::new(60);
    let finished = run(&mut Trainer::default(), &fixture.request_with(1.0, gradient_task(1, 5, 10))).unwrap();
    // Rows 1, 2, 4, 5, 7, … are trained on.
    let training: Vec<_> = (0..60).filter(|i| i % 3 != 0).collect();
    let order = order::permutation(40, 9, 1).unwrap();
    let shard = rows_of(order[5..15].iter().map(|&position| training[position as usize]));
    let mut kernel = Kernel::new(model(&fixture.job).unwrap(), 1).unwrap();
    let mut expected = vec![0.0; kernel.model().parameters()];
    let parameters = fixture.parameters(1.0);
    let batch = Batch { features: &shard.features, labels: &shard.labels };
    let outcome = kernel.gradient(&parameters, batch, &mut expected, &|| ()).unwrap();

    let bytes: Vec<_> = expected.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(finished.blob, bytes);
    assert_eq!(finished.useful_flops, 10 * kernel.model().flops_per_sample());
    let task_result::Kind::Gradient(result) = finished.kind else { panic!("{:?}", finished.kind) };
    assert_eq!(result.gradient_hash, Hash::of(&bytes).to_bytes());
    assert_eq!((result.loss_sum, result.correct, result.samples), (outcome.loss_sum, outcome.correct, 10));
}

#[test]
fn evaluation_in_blocks_gives_the_bits_of_one_call() {
    let fixture = Fixture::new(3 * 5000);
    let finished = run(&mut Trainer::default(), &fixture.request_with(1.0, evaluate_task(7, 4900))).unwrap();
    let held_out = rows_of((0..15_000).filter(|i| i % 3 == 0).skip(7).take(4900));
    let mut kernel = Kernel::new(model(&fixture.job).unwrap(), 1).unwrap();
    let parameters = fixture.parameters(1.0);
    let batch = Batch { features: &held_out.features, labels: &held_out.labels };
    let Outcome { loss_sum, correct, samples } = kernel.evaluate(&parameters, batch, &|| ()).unwrap();
    let expected = EvaluateResult { loss_sum, correct, samples };
    assert_eq!(samples, 4900);
    assert_eq!(finished.kind, task_result::Kind::Evaluate(expected));
    assert_eq!(finished.useful_flops, 4900 * kernel.model().flops_per_sample_forward());
}

#[test]
fn data_is_kept_for_the_job_that_pinned_it_and_read_anew_for_one_that_is_prepared() {
    let fixture = Fixture::new(60);
    let mut trainer = Trainer::default();
    let prepare = fixture.request(task::Kind::Prepare(PrepareTask {}));
    let first = run(&mut trainer, &prepare).unwrap();
    assert!(!first.fetch.is_zero());
    let task_result::Kind::Prepare(pinned) = first.kind else { panic!("{:?}", first.kind) };
    assert_eq!((pinned.training_rows, pinned.held_out_rows), (40, 20));

    std::fs::write(&fixture.path, "1,1,1,1,0\n1,1,1,1,1\n").unwrap();
    let mut train = fixture.request_with(1.0, gradient_task(0, 0, 10));
    train.data_hash = pinned.data_hash.clone();
    assert!(run(&mut trainer, &train).unwrap().fetch.is_zero(), "kept, whatever became of the file");

    let second = run(&mut trainer, &prepare).unwrap();
    let task_result::Kind::Prepare(changed) = second.kind else { panic!("{:?}", second.kind) };
    assert_eq!((changed.training_rows, changed.held_out_rows), (1, 1));
    assert_ne!(changed.data_hash, pinned.data_hash);

    let error = run(&mut trainer, &train).unwrap_err();
    assert!(matches!(error, TaskError::Data(_)), "{error}");
    assert!(error.to_string().contains("changed: its SHA-256 is"), "{error}");
}

#[test]
fn other_options_on_the_same_file_are_other_data() {
    let mut fixture = Fixture::new(60);
    let mut trainer = Trainer::default();
    let first = run(&mut trainer, &fixture.request(task::Kind::Prepare(PrepareTask {}))).unwrap();
    let task_result::Kind::Prepare(first) = first.kind else { panic!("{:?}", first.kind) };
    fixture.job.data.held_out = None;
    let mut request = fixture.request_with(1.0, gradient_task(0, 0, 60));
    request.data_hash = first.data_hash;
    let finished = run(&mut trainer, &request).expect("60 training rows and not 40");
    assert!(!finished.fetch.is_zero());
}

#[test]
fn what_is_kept_changes_no_result() {
    let mut fixtures = [Fixture::new(60), Fixture::new(60), Fixture::new(90)];
    fixtures[1].job.training.seed = 10;
    let mut kept = Trainer::default();
    let mut seen = Vec::new();
    for fixture in &fixtures {
        for epoch in [0, 1, 0] {
            let request = fixture.request_with(1.0, gradient_task(epoch, 0, 10));
            let blob = run(&mut kept, &request).unwrap().blob;
            assert_eq!(blob, run(&mut Trainer::default(), &request).unwrap().blob, "epoch {epoch}");
            seen.push(blob);
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 6, "seed, epoch and rows each choose other samples");
}

/// A change to a good request.
type Mistake = fn(&mut RunTask);

#[test]
fn every_failure_names_its_cause_and_whose_fault_it_is() {
    use FailureKind::{Attempt, BadInput};
    let fixture = Fixture::new(60);
    let good = || fixture.request_with(1.0, gradient_task(0, 0, 10));
    let table: [(Mistake, FailureKind, &str); 10] = [
        (|r| r.job_json = "{".to_owned(), BadInput, "the job is refused: line 1: EOF"),
        (
            |r| r.job_json = r.job_json.replace(":4,", ":2000000,"),
            BadInput,
            "model is refused: the model has 2000000 inputs",
        ),
        (
            |r| r.job_json = r.job_json.replace("\"units\":8", "\"units\":9"),
            BadInput,
            "tensor \"0.weight\" of the parameters is F32 [8, 4]; the job's model has F32 [9, 4]",
        ),
        (
            |r| r.job_json = r.job_json.replace("file:", "s3:"),
            BadInput,
            "unknown URI scheme \"s3\": this worker reads file://",
        ),
        (|r| r.threads = 0, Attempt, "cannot be set up on this node: 0 threads were asked for"),
        (|r| r.task = None, Attempt, "the task is of no kind that worker"),
        (|r| r.task = Some(Task { kind: None }), Attempt, "update this node"),
        (|r| r.parameters = Bytes::from_static(b"damaged"), Attempt, "the parameters that came have SHA-256"),
        (
            |r| r.data_hash = Bytes::from_static(&[7; 32]),
            BadInput,
            "but the job was prepared with 0707070707",
        ),
        (|r| r.data_hash = Bytes::from_static(&[7; 31]), Attempt, "the request's data_hash is wrong: hash"),
    ];
    let mut trainer = Trainer::default();
    for (mistake, kind, expected) in table {
        let mut request = good();
        mistake(&mut request);
        assert_ne!(request, good(), "{expected}");
        let error = run(&mut trainer, &request).expect_err(expected);
        let text = crate::report::chain(&error);
        assert!(text.contains(expected), "{text}");
        assert_eq!(error.kind(), kind, "{text}");
    }
    run(&mut trainer, &good()).expect("no failure spoils the next task");
}

#[test]
fn shards_must_lie_within_the_rows() {
    let fixture = Fixture::new(60);
    let mut trainer = Trainer::default();
    for (request, expected) in [
        (
            fixture.request_with(1.0, gradient_task(0, 31, 10)),
            "wants 10 training rows from 31; the data has 40",
        ),
        (fixture.request_with(1.0, evaluate_task(0, 21)), "wants 21 held-out rows from 0; the data has 20"),
        (
            fixture.request_with(1.0, gradient_task(0, u64::MAX, 2)),
            "wants 2 training rows from 18446744073709551615",
        ),
    ] {
        let error = run(&mut trainer, &request).expect_err(expected);
        assert_eq!(error.kind(), FailureKind::BadInput);
        assert!(error.to_string().contains(expected), "{error}");
    }
    run(&mut trainer, &fixture.request_with(1.0, gradient_task(0, 30, 10))).unwrap();
    run(&mut trainer, &fixture.request_with(1.0, evaluate_task(0, 20))).unwrap();
}

#[test]
fn divergence_is_the_jobs_fault_and_comes_with_advice() {
    let fixture = Fixture::new(60);
    for scale in [f32::NAN, 1e30] {
        for request in [
            fixture.request_with(scale, gradient_task(0, 0, 10)),
            fixture.request_with(scale, evaluate_task(0, 10)),
        ] {
            let error = run(&mut Trainer::default(), &request).unwrap_err();
            assert_eq!(error.kind(), FailureKind::BadInput);
            let text = crate::report::chain(&error);
            assert!(text.contains("lower training.optimizer.learning_rate"), "{text}");
            assert!(text.contains("is not finite"), "{text}");
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let fixture = Fixture::new(600);
    let mut trainer = Trainer::default();
    let mut request = fixture.request_with(1.0, gradient_task(0, 0, 400));
    let one = run(&mut trainer, &request).unwrap();
    request.threads = 2;
    let two = run(&mut trainer, &request).unwrap();
    assert_eq!((one.blob, one.kind), (two.blob, two.kind));
}

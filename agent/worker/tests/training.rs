//! Whole trainings through the real worker, which does all that a job asks of a node; the test is the
//! collector: it adds the gradients up and steps.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not tests to clippy")]

mod support;

use bytes::Bytes;
use support::Worker;
use wattmill_optim::{mean, reduce};
use wattmill_protocol::Hash;
use wattmill_protocol::job::{Job, Optimizer, Schedule};
use wattmill_protocol::v1::{
    Done, EvaluateResult, EvaluateTask, FailureKind, GradientTask, PrepareResult, PrepareTask, RunTask, Task,
    task, task_result,
};

const DIGITS: &[u8] = include_bytes!("../../../tests/fixtures/digits.csv.gz");
const SHIPPED_JOB: &str = include_str!("../../../jobs/digits.toml");
const PACKAGED_DATA: &str = "file:///usr/share/wattmill/digits.csv.gz";

/// The shipped job on the fixture.
fn digits() -> Job {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/digits.csv.gz");
    Job::from_toml(&SHIPPED_JOB.replace(PACKAGED_DATA, &format!("file://{path}"))).unwrap()
}

/// A job in training: its worker, what prepared it, and its parameters as a file.
struct Training {
    worker: Worker,
    job: Job,
    threads: u32,
    prepared: PrepareResult,
    parameters: Bytes,
    token: u64,
}

impl Training {
    fn prepare(job: Job, threads: u32) -> Self {
        let worker = Worker::start().0;
        let (prepared, parameters) = (PrepareResult::default(), Bytes::new());
        let mut training = Self { worker, job, threads, prepared, parameters, token: 0 };
        let done = training.run(task::Kind::Prepare(PrepareTask {}));
        let result = done.result.unwrap();
        let Some(task_result::Kind::Prepare(prepared)) = result.kind else { panic!("{result:?}") };
        assert_eq!(Hash::of(&done.blob).to_bytes(), prepared.parameters_hash);
        training.prepared = prepared;
        training.parameters = done.blob;
        training
    }

    fn run(&mut self, kind: task::Kind) -> Done {
        self.token += 1;
        self.worker.run(RunTask {
            token: self.token,
            job_json: self.job.to_json(),
            task: Some(Task { kind: Some(kind) }),
            threads: self.threads,
            parameters: self.parameters.clone(),
            data_hash: self.prepared.data_hash.clone(),
        })
    }

    /// Where the flat vector begins, by the file's header.
    fn payload(&self) -> usize {
        8 + u64::from_le_bytes(self.parameters[..8].try_into().unwrap()) as usize
    }

    fn train(&mut self) {
        let round_rows = u64::from(self.job.training.shard_size * self.job.training.shards_per_round);
        let rows = self.prepared.training_rows;
        let rounds = rows.div_ceil(round_rows) * u64::from(self.job.training.epochs);
        let (optimizer, schedule) = recipe(&self.job);
        let mut state = vec![0.0; optimizer.slots() * self.prepared.parameters as usize];
        let mut round = 0;
        for epoch in 0..self.job.training.epochs {
            for first in (0..rows).step_by(round_rows as usize) {
                let gradient = self.round(epoch, first, (first + round_rows).min(rows));
                let mut flat = floats(&self.parameters[self.payload()..]);
                round += 1;
                let scale = schedule.scale(round, rounds);
                optimizer.step(round, scale, &mut flat, &gradient, &mut state).unwrap();
                let header = self.parameters.slice(..self.payload());
                self.parameters = header.into_iter().chain(bytes(&flat)).collect();
            }
        }
        assert_eq!(round, rounds);
    }

    /// The mean gradient of one round, its shards reduced in their order.
    fn round(&mut self, epoch: u32, first: u64, end: u64) -> Vec<f32> {
        let (mut sum, mut samples) = (vec![0.0; self.prepared.parameters as usize], 0);
        let size = u64::from(self.job.training.shard_size);
        for first in (first..end).step_by(size as usize) {
            let parameters_hash = Hash::of(&self.parameters).to_bytes();
            let count = size.min(end - first);
            let done = self.run(task::Kind::Gradient(GradientTask { parameters_hash, epoch, first, count }));
            let result = done.result.unwrap();
            let Some(task_result::Kind::Gradient(gradient)) = result.kind else { panic!("{result:?}") };
            assert_eq!(Hash::of(&done.blob).to_bytes(), gradient.gradient_hash);
            assert_eq!(gradient.samples, count);
            assert_eq!(result.fetch_nanoseconds, 0, "the data was read to prepare the job");
            assert!(result.compute_nanoseconds > 0);
            reduce(&mut sum, &floats(&done.blob)).unwrap();
            samples += gradient.samples;
        }
        mean(&mut sum, samples);
        sum
    }

    fn evaluate(&mut self) -> EvaluateResult {
        let parameters_hash = Hash::of(&self.parameters).to_bytes();
        let task = EvaluateTask { parameters_hash, first: 0, count: self.prepared.held_out_rows };
        let result = self.run(task::Kind::Evaluate(task)).result.unwrap();
        let Some(task_result::Kind::Evaluate(evaluated)) = result.kind else { panic!("{result:?}") };
        evaluated
    }
}

fn recipe(job: &Job) -> (wattmill_optim::Optimizer, wattmill_optim::Schedule) {
    let optimizer = match job.training.optimizer {
        Optimizer::Sgd { learning_rate, momentum, nesterov, weight_decay } => {
            wattmill_optim::Optimizer::Sgd { learning_rate, momentum, nesterov, weight_decay }
        }
        Optimizer::AdamW { learning_rate, beta1, beta2, epsilon, weight_decay } => {
            wattmill_optim::Optimizer::AdamW { learning_rate, beta1, beta2, epsilon, weight_decay }
        }
    };
    let Schedule::Linear { final_ratio } = job.training.schedule else {
        panic!("{:?}", job.training.schedule)
    };
    (optimizer, wattmill_optim::Schedule::Linear { final_ratio })
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    assert_eq!(bytes.len() % 4, 0);
    bytes.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
}

fn bytes(values: &[f32]) -> impl Iterator<Item = u8> {
    values.iter().flat_map(|value| value.to_le_bytes())
}

fn accuracy(evaluated: &EvaluateResult) -> f64 {
    evaluated.correct as f64 / evaluated.samples as f64
}

#[test]
fn the_shipped_job_is_well_formed() {
    let job = Job::from_toml(SHIPPED_JOB).unwrap();
    assert_eq!(job.name, "digits");
    assert_eq!(job.data.uri, PACKAGED_DATA);
    assert_eq!(job.parameters(), 4810);
}

#[test]
fn a_prepared_job_says_what_there_is_and_starts_as_the_kernel_does() {
    let training = Training::prepare(digits(), 1);
    let expected = PrepareResult {
        training_rows: 1438,
        held_out_rows: 359,
        features: 64,
        classes: 10,
        data_hash: Hash::of(DIGITS).to_bytes(),
        parameters_hash: Hash::of(&training.parameters).to_bytes(),
        parameters: 4810,
    };
    assert_eq!(training.prepared, expected);
    let layer = |units, activation| wattmill_kernel::Layer { units, activation };
    use wattmill_kernel::Activation::{Linear, Relu};
    let model = wattmill_kernel::Model::new(64, &[layer(64, Relu), layer(10, Linear)]).unwrap();
    // The collector takes what follows the header for the flat vector.
    assert_eq!(floats(&training.parameters[training.payload()..]), model.initialise(1));
}

#[test]
fn the_shipped_job_learns() {
    let mut training = Training::prepare(digits(), 1);
    let before = training.evaluate();
    assert!(accuracy(&before) < 0.3, "{before:?}");
    training.train();
    let after = training.evaluate();
    assert_eq!(after.samples, 359);
    println!("accuracy {:.4}", accuracy(&after));
    assert!(accuracy(&after) >= 0.95, "{after:?}");
}

#[test]
fn sgd_learns_and_the_number_of_threads_changes_no_bit() {
    let mut job = digits();
    job.training.epochs = 10;
    job.training.optimizer =
        Optimizer::Sgd { learning_rate: 0.7, momentum: 0.9, nesterov: true, weight_decay: 1e-3 };
    let [one, two] = [1, 2].map(|threads| {
        let mut training = Training::prepare(job.clone(), threads);
        training.train();
        let evaluated = training.evaluate();
        assert!(accuracy(&evaluated) >= 0.95, "{evaluated:?}");
        (training.parameters, evaluated)
    });
    assert_eq!(one, two);
}

#[test]
fn a_failed_task_is_an_answer_and_the_next_one_is_served() {
    let mut training = Training::prepare(digits(), 1);
    let good = training.job.clone();
    training.job.data.uri = "file:///nowhere/digits.csv".to_owned();
    let done = training.run(task::Kind::Prepare(PrepareTask {}));
    let result = done.result.unwrap();
    let Some(task_result::Kind::Failure(failure)) = result.kind else { panic!("{result:?}") };
    assert_eq!(failure.kind(), FailureKind::BadInput);
    assert_eq!(failure.message, "cannot open /nowhere/digits.csv: No such file or directory (os error 2)");
    assert!(done.blob.is_empty());
    training.job = good;
    assert_eq!(training.evaluate().samples, 359);
}

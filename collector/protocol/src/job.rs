//! The job file: what an engineer writes in TOML, what travels to workers as JSON.
//!
//! A [`Job`] that was parsed is well-formed and within limits; whether its data exists is the worker's to
//! say. Unknown keys are refused, since an option silently ignored would train another model.

use crate::MAX_PARAMETERS;
use crate::config_file::line_of;

/// Most layers of a model.
const MAX_LAYERS: usize = 64;
/// Most shards of one round.
const MAX_SHARDS_PER_ROUND: u32 = 4096;
/// Most rows of one shard.
const MAX_SHARD_SIZE: u32 = 1 << 20;
/// Most epochs of a job.
const MAX_EPOCHS: u32 = 1_000_000;
/// Longest data URI in bytes.
const MAX_URI_BYTES: usize = 4096;

/// A job file that cannot be run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum JobError {
    /// Not TOML, or a key is unknown, missing or of the wrong type.
    #[error("line {line}: {message}")]
    Parse {
        /// 1-based.
        line: usize,
        /// What is wrong, with the key.
        message: String,
    },
    /// A value is well-formed but out of range.
    #[error("{field}: {message}")]
    Value {
        /// The key, dotted.
        field: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
}

/// One training job.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// What people call it: 1 to 100 printable characters.
    pub name: String,
    /// The network.
    pub model: Model,
    /// What it learns from.
    pub data: Data,
    /// How it learns.
    pub training: Training,
}

/// A feed-forward network that ends in softmax cross-entropy.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// From the input on; the last one has a unit per class and activation `softmax`.
    pub layers: Vec<Layer>,
}

/// A dense layer.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Outputs of the layer.
    pub units: u32,
    /// What is applied to them.
    pub activation: Activation,
}

/// What a layer applies to its outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// max(0, x); every layer but the last.
    Relu,
    /// Class probabilities; the last layer.
    Softmax,
}

/// Where samples come from and how they are read.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// `file:///absolute/path`; the ending names the format (`.csv`, `.csv.gz`).
    pub uri: String,
    /// Numbers before the label in each row.
    pub features: u32,
    /// Labels run from 0 to one below this.
    pub classes: u32,
    /// Each feature is multiplied by this.
    #[serde(default = "one")]
    pub scale: f32,
    /// Rows that are never trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOut>,
}

/// Rows whose index leaves `remainder` when divided by `every` are held out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOut {
    /// The divisor, at least 2.
    pub every: u32,
    /// Below `every`.
    pub remainder: u32,
}

/// How the model learns.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// How shards' work becomes one model.
    #[serde(default)]
    pub mode: Mode,
    /// Passes over the training rows.
    pub epochs: u32,
    /// Rows of one shard.
    pub shard_size: u32,
    /// Shards whose gradients make one optimizer step.
    pub shards_per_round: u32,
    /// Seeds the first parameters and the order of the samples.
    #[serde(default)]
    pub seed: u64,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// How the learning rate falls.
    #[serde(default)]
    pub schedule: Schedule,
    /// Whether only nodes that compute alike, bit for bit, take part.
    #[serde(default)]
    pub numerics: NumericsPolicy,
}

/// How shards' work becomes one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Every shard of a round computes against one version of the parameters.
    #[default]
    Sync,
}

/// Whether nodes must compute alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NumericsPolicy {
    /// The node that prepares the job pins its numerics; the model is then the same to the bit whichever
    /// nodes train it.
    #[default]
    Pinned,
    /// Any node may take part; the model depends on which did.
    Any,
}

/// An optimizer with PyTorch's names and meanings.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
pub enum Optimizer {
    /// `torch.optim.SGD`.
    Sgd {
        /// Step size.
        learning_rate: f64,
        /// Share of the former step that is kept.
        #[serde(default)]
        momentum: f64,
        /// Nesterov's form of momentum.
        #[serde(default)]
        nesterov: bool,
        /// L2 penalty.
        #[serde(default)]
        weight_decay: f64,
    },
    /// `torch.optim.AdamW`.
    AdamW {
        /// Step size.
        learning_rate: f64,
        /// Decay of the mean of gradients.
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the mean of squared gradients.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the denominator.
        #[serde(default = "epsilon")]
        epsilon: f64,
        /// Decoupled weight decay.
        #[serde(default = "weight_decay")]
        weight_decay: f64,
    },
}

/// How the learning rate falls from its start to `final_ratio` of it over the job.
#[derive(Clone, Copy, Debug, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
pub enum Schedule {
    /// It does not.
    #[default]
    Constant,
    /// Along a straight line.
    Linear {
        /// Last rate ÷ first rate.
        #[serde(default)]
        final_ratio: f64,
    },
    /// Along half a cosine.
    Cosine {
        /// Last rate ÷ first rate.
        #[serde(default)]
        final_ratio: f64,
    },
}

fn one() -> f32 {
    1.0
}
fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.999
}
fn epsilon() -> f64 {
    1e-8
}
fn weight_decay() -> f64 {
    0.01
}

impl Job {
    /// Parses and checks a job file.
    ///
    /// # Errors
    /// When the text is not TOML, a key is unknown, or a value is out of range.
    pub fn from_toml(text: &str) -> Result<Self, JobError> {
        let job: Self = toml::from_str(text).map_err(|error| JobError::Parse {
            line: error.span().map_or(1, |span| line_of(text, span.start)),
            message: error.message().to_owned(),
        })?;
        job.check()?;
        Ok(job)
    }

    /// Parses and checks the form that travels to workers and lies in the store.
    ///
    /// # Errors
    /// As [`Job::from_toml`].
    pub fn from_json(text: &str) -> Result<Self, JobError> {
        let job: Self = serde_json::from_str(text)
            .map_err(|error| JobError::Parse { line: error.line(), message: error.to_string() })?;
        job.check()?;
        Ok(job)
    }

    /// The canonical form: equal jobs have equal texts.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a job has no map with keys that are not strings")
    }

    /// Parameters of the model: weights and biases of every layer.
    pub fn parameters(&self) -> u64 {
        let mut inputs = u64::from(self.data.features);
        let mut sum = 0u64;
        for layer in &self.model.layers {
            let units = u64::from(layer.units);
            sum = sum.saturating_add((inputs + 1).saturating_mul(units));
            inputs = units;
        }
        sum
    }

    fn check(&self) -> Result<(), JobError> {
        let printable = |c: char| !c.is_control();
        require(
            (1..=100).contains(&self.name.chars().count()) && self.name.chars().all(printable),
            "name",
            "must have 1 to 100 printable characters",
        )?;
        self.check_model()?;
        self.check_data()?;
        self.training.check()
    }

    fn check_model(&self) -> Result<(), JobError> {
        let layers = &self.model.layers;
        require(
            (1..=MAX_LAYERS).contains(&layers.len()),
            "model.layers",
            format!("must have 1 to {MAX_LAYERS} layers, not {}", layers.len()),
        )?;
        require(layers.iter().all(|l| l.units > 0), "model.layers.units", "must be at least 1")?;
        let (last, inner) = layers.split_last().expect("at least one layer");
        require(
            inner.iter().all(|l| l.activation == Activation::Relu) && last.activation == Activation::Softmax,
            "model.layers.activation",
            "must be \"softmax\" in the last layer and \"relu\" in every other",
        )?;
        require(
            last.units == self.data.classes,
            "model.layers.units",
            format!("the last layer has {} units for {} classes", last.units, self.data.classes),
        )?;
        let parameters = self.parameters();
        require(
            parameters <= MAX_PARAMETERS,
            "model.layers",
            format!("the model has {parameters} parameters; at most {MAX_PARAMETERS} fit"),
        )
    }

    fn check_data(&self) -> Result<(), JobError> {
        let data = &self.data;
        require(
            (1..=MAX_URI_BYTES).contains(&data.uri.len()) && data.uri.contains("://"),
            "data.uri",
            format!("{:?} is not a URI such as file:///data/digits.csv.gz", data.uri),
        )?;
        require(data.features > 0, "data.features", "must be at least 1")?;
        require(data.classes >= 2, "data.classes", "must be at least 2")?;
        require(data.scale.is_finite() && data.scale != 0.0, "data.scale", "must be finite and not 0")?;
        if let Some(held_out) = data.held_out {
            require(held_out.every >= 2, "data.held_out.every", "must be at least 2")?;
            require(
                held_out.remainder < held_out.every,
                "data.held_out.remainder",
                format!("must be below every = {}", held_out.every),
            )?;
        }
        Ok(())
    }
}

impl Training {
    fn check(&self) -> Result<(), JobError> {
        let within = |value: u32, most: u32| (1..=most).contains(&value);
        let range = |value: u32, most: u32| format!("must be from 1 to {most}, not {value}");
        require(within(self.epochs, MAX_EPOCHS), "training.epochs", range(self.epochs, MAX_EPOCHS))?;
        require(
            within(self.shard_size, MAX_SHARD_SIZE),
            "training.shard_size",
            range(self.shard_size, MAX_SHARD_SIZE),
        )?;
        require(
            within(self.shards_per_round, MAX_SHARDS_PER_ROUND),
            "training.shards_per_round",
            range(self.shards_per_round, MAX_SHARDS_PER_ROUND),
        )?;
        if let Schedule::Linear { final_ratio } | Schedule::Cosine { final_ratio } = self.schedule {
            require(
                (0.0..=1.0).contains(&final_ratio),
                "training.schedule.final_ratio",
                format!("must be from 0 to 1, not {final_ratio}"),
            )?;
        }
        self.optimizer.check()
    }
}

impl Optimizer {
    fn check(&self) -> Result<(), JobError> {
        let (Self::Sgd { learning_rate, weight_decay, .. } | Self::AdamW { learning_rate, weight_decay, .. }) =
            *self;
        let positive = |x: f64| x.is_finite() && x > 0.0;
        require(
            positive(learning_rate),
            "training.optimizer.learning_rate",
            format!("must be finite and above 0, not {learning_rate}"),
        )?;
        require(
            weight_decay.is_finite() && weight_decay >= 0.0,
            "training.optimizer.weight_decay",
            format!("must be finite and not below 0, not {weight_decay}"),
        )?;
        let share = |value: f64, field: &'static str| {
            require((0.0..1.0).contains(&value), field, format!("must be from 0 to below 1, not {value}"))
        };
        match *self {
            Self::Sgd { momentum, nesterov, .. } => {
                share(momentum, "training.optimizer.momentum")?;
                require(
                    !nesterov || momentum > 0.0,
                    "training.optimizer.nesterov",
                    "needs a momentum above 0",
                )
            }
            Self::AdamW { beta1, beta2, epsilon, .. } => {
                share(beta1, "training.optimizer.beta1")?;
                share(beta2, "training.optimizer.beta2")?;
                require(positive(epsilon), "training.optimizer.epsilon", "must be finite and above 0")
            }
        }
    }
}

fn require(holds: bool, field: &'static str, message: impl Into<String>) -> Result<(), JobError> {
    if holds { Ok(()) } else { Err(JobError::Value { field, message: message.into() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "digits"
[model]
layers = [{ units = 64, activation = "relu" }, { units = 10, activation = "softmax" }]
[data]
uri = "file:///data/digits.csv.gz"
features = 64
classes = 10
held_out = { every = 5, remainder = 4 }
[training]
epochs = 3
shard_size = 36
shards_per_round = 4
optimizer = { name = "adamw", learning_rate = 0.01 }
"#;

    #[test]
    fn a_job_round_trips_through_json() {
        let job = Job::from_toml(GOOD).unwrap();
        assert_eq!(job.parameters(), 65 * 64 + 65 * 10);
        assert_eq!(Job::from_json(&job.to_json()).unwrap(), job);
    }

    #[test]
    fn every_mistake_is_named() {
        let table = [
            ("epochs = 3", "epochs = 0", "training.epochs: must be from 1 to 1000000, not 0"),
            ("epochs = 3", "epoch = 3", "line 11: unknown field `epoch`"),
            ("epochs = 3", "epochs = -3", "line 11: invalid value"),
            ("features = 64", "features = 0", "data.features"),
            (
                "classes = 10",
                "classes = 11",
                "model.layers.units: the last layer has 10 units for 11 classes",
            ),
            ("file:///data", "data", "data.uri"),
            ("remainder = 4", "remainder = 5", "data.held_out.remainder: must be below every = 5"),
            ("learning_rate = 0.01", "learning_rate = nan", "training.optimizer.learning_rate"),
            ("learning_rate = 0.01", "learning_rate = 0.01, beta1 = 1.0", "training.optimizer.beta1"),
            ("\"adamw\"", "\"lion\"", "line 14: unknown variant `lion`"),
            ("units = 64", "units = 4294967295", "model.layers: the model has"),
            ("\"softmax\"", "\"relu\"", "model.layers.activation"),
            ("name = \"digits\"", "name = \"a\\u001bb\"", "name: must have 1 to 100 printable"),
        ];
        for (from, to, expected) in table {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from}");
            let error = Job::from_toml(&text).expect_err(to).to_string();
            assert!(error.contains(expected), "{to}: {error}");
        }
    }
}

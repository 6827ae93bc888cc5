//! Power of the whole node by its BMC's Redfish service.
//!
//! Invariant: off unless configured; one reading at a time, in a thread of its own, no longer than its interval;
//! counts for no scope, because it contains what else is measured. A BMC that refuses the account is left alone
//! for a while, or until the password changes: many lock an account that fails too often.

mod client;
mod resource;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::Value;

use super::sensor::{MAX_SENSOR_WATTS, Sensor, SensorId};
use super::{Answer, ReadError, Reading};
use crate::clock;
use crate::config::Redfish as Config;
use crate::counter::Limits;
use client::Client;
use resource::{Figures, MICROJOULES_PER_KWH};

/// Where the chassis are listed.
const CHASSIS: &str = "/redfish/v1/Chassis";
/// How often chassis are looked for again: firmware is updated, sleds are added.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// How long a BMC that refused the account is not asked with the same password.
const REFUSED_PAUSE: Duration = Duration::from_secs(300);
/// Most sensors of a BMC.
const MAX_SENSORS: usize = 64;

/// A resource that tells of power.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Target {
    /// Link of its chassis.
    from: String,
    chassis: String,
    path: String,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Environment,
    Power,
}

/// The backend.
pub struct Redfish {
    config: Config,
    client: Option<Client>,
    targets: Vec<Target>,
    /// Chassis that are still to be looked at.
    unseen: VecDeque<String>,
    looked_at: Option<Duration>,
    sensors: BTreeMap<SensorId, Sensor>,
    /// When the account was refused, with which header, and what was said.
    refused: Option<(Duration, Option<String>, ReadError)>,
}

/// One reading's bound on time.
struct Budget {
    until: Duration,
}

impl Budget {
    fn left(&self) -> Result<Duration, ReadError> {
        let left = self.until.saturating_sub(clock::monotonic());
        if left.is_zero() {
            return Err(ReadError::new("timeout", "the BMC does not answer within one interval"));
        }
        Ok(left)
    }
}

impl Redfish {
    /// The node's meters by its BMC.
    pub fn new(config: &Config) -> Self {
        Self {
            config: config.clone(),
            client: None,
            targets: Vec::new(),
            unseen: VecDeque::new(),
            looked_at: None,
            sensors: BTreeMap::new(),
            refused: None,
        }
    }

    /// Whether others than its owner and group may read the password.
    pub fn password_is_public(config: &Config) -> bool {
        config.account.as_ref().is_some_and(|account| client::is_public(&account.password_file))
    }

    pub(crate) fn read(&mut self) -> Answer {
        let now = clock::monotonic();
        match self.read_all(now) {
            Ok(failures) => Answer::Reading(Reading {
                energy: self.sensors.values().flat_map(Sensor::energy).collect(),
                sensors: self.sensors.values().map(Sensor::reading).collect(),
                failures,
                ..Reading::default()
            }),
            Err(error) => {
                for sensor in self.sensors.values_mut() {
                    sensor.note_power(None, now, self.config.interval);
                }
                // A certificate may have been renewed, a BMC replaced.
                (self.client, self.looked_at) = (None, None);
                Answer::Failed(error)
            }
        }
    }

    fn read_all(&mut self, now: Duration) -> Result<Vec<&'static str>, ReadError> {
        let authorization = self.config.account.as_ref().map(client::authorization).transpose()?;
        if let Some((at, with, error)) = &self.refused
            && *with == authorization
            && now.saturating_sub(*at) < REFUSED_PAUSE
        {
            return Err(error.clone());
        }
        self.refused = None;
        let result = self.ask(now, authorization.as_deref());
        if let Err(error) = &result
            && error.reason == "credentials"
        {
            self.refused = Some((now, authorization, error.clone()));
        }
        result
    }

    fn ask(&mut self, now: Duration, authorization: Option<&str>) -> Result<Vec<&'static str>, ReadError> {
        let budget = Budget { until: now + self.config.interval };
        let client = match self.client.take() {
            Some(client) => client,
            None => Client::new(&self.config)?,
        };
        let client = self.client.insert(client);
        let get = |path: &str| client.get(path, authorization, budget.left()?);
        if self.looked_at.is_none_or(|at| now.saturating_sub(at) >= LOOK_AGAIN) {
            self.unseen = resource::members(&get(CHASSIS)?).into();
            // What is there still is read on, until it has been looked at anew.
            self.targets.retain(|target| self.unseen.contains(&target.from));
            self.looked_at = Some(now);
        }
        let mut failures = Vec::new();
        let mut figures = Vec::new();
        for target in &self.targets {
            match timed(|| get(&target.path)) {
                Ok((resource, at)) => match of(target.kind, &resource, &target.chassis) {
                    Ok(found) => figures.push((found, at)),
                    Err(reason) => failures.push(reason),
                },
                // It has gone since it was found: the next look tells.
                Err(error) if error.reason == "missing" => failures.push("missing"),
                Err(error) => return Err(error),
            }
        }
        // A slow BMC's chassis are looked at over several readings.
        while let Some(path) = self.unseen.front() {
            if clock::monotonic() > now + self.config.interval / 2 {
                break;
            }
            let looked = look(&get, path)?;
            let known = self.targets.iter().position(|target| target.from == *path);
            let before = known.map(|known| self.targets.remove(known));
            if let Some((target, found, at)) = looked {
                if before.as_ref() != Some(&target) {
                    let Target { chassis, path, .. } = &target;
                    tracing::info!(chassis, path, "Redfish: power is measured");
                }
                self.targets.push(target);
                figures.push((found, at));
            }
            self.unseen.pop_front();
        }
        if self.targets.is_empty() && self.unseen.is_empty() {
            let message = format!("{}: no chassis tells of its power", self.config.url);
            return Err(ReadError::new("unsupported", message));
        }
        self.note(figures, now);
        Ok(failures)
    }

    /// Takes what was read; what was not has no power now.
    fn note(&mut self, figures: Vec<(Vec<Figures>, Duration)>, now: Duration) {
        let interval = self.config.interval;
        // A count may be a whole kilowatt-hour, which then comes at once.
        let step = MICROJOULES_PER_KWH / interval.as_secs_f64();
        let limits = Limits { modulus: None, max_per_second: MAX_SENSOR_WATTS * 1e6 + step };
        let mut silent: Vec<SensorId> = self.sensors.keys().cloned().collect();
        for (figures, at) in figures.into_iter().flat_map(|(all, at)| all.into_iter().map(move |f| (f, at))) {
            let id = SensorId::new("redfish", &figures.sensor);
            if self.sensors.len() >= MAX_SENSORS && !self.sensors.contains_key(&id) {
                continue;
            }
            silent.retain(|other| *other != id);
            let sensor = self.sensors.entry(id.clone()).or_insert_with(|| Sensor::new(id));
            sensor.note_power(figures.watts, at, interval);
            if let Some(microjoules) = figures.microjoules {
                sensor.note_energy(microjoules, at, limits);
            }
        }
        for id in silent {
            if let Some(sensor) = self.sensors.get_mut(&id) {
                sensor.note_power(None, now, interval);
            }
        }
    }
}

fn of(kind: Kind, resource: &Value, chassis: &str) -> Result<Vec<Figures>, &'static str> {
    match kind {
        Kind::Environment => resource::environment(resource, chassis),
        Kind::Power => resource::power(resource, chassis),
    }
}

/// What was asked for, and the middle of the time that it took: somewhere in it the BMC looked.
fn timed<T>(get: impl FnOnce() -> Result<T, ReadError>) -> Result<(T, Duration), ReadError> {
    let began = clock::monotonic();
    let value = get()?;
    Ok((value, began + clock::monotonic().saturating_sub(began) / 2))
}

type Looked = Option<(Target, Vec<Figures>, Duration)>;

/// Where a chassis tells of its power, and what it says: the newer resource where that has figures, else the
/// older one. Both show one meter.
fn look(get: &impl Fn(&str) -> Result<Value, ReadError>, from: &str) -> Result<Looked, ReadError> {
    let (chassis, environment, power) = match get(from) {
        Ok(resource) => resource::chassis(&resource),
        Err(error) if error.reason == "missing" => return Ok(None),
        Err(error) => return Err(error),
    };
    for (kind, path) in [(Kind::Environment, environment), (Kind::Power, power)] {
        let Some(path) = path else { continue };
        match timed(|| get(&path)) {
            Ok((resource, at)) => {
                // A figure that cannot be now may be one later.
                let found = of(kind, &resource, &chassis).unwrap_or_default();
                if !found.is_empty() {
                    return Ok(Some((Target { from: from.to_owned(), chassis, path, kind }, found, at)));
                }
            }
            Err(error) if error.reason == "missing" => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

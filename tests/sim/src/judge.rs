//! Judging an ended job.

use wattmill_protocol::job::NumericsPolicy;
use wattmill_work::{JobRecord, Phase, WasteReason};

use crate::checks::Checks;
use crate::context::{Broken, hold};
use crate::train;

/// An ended job ended as it should; its user called to cancel it or not. Where nothing went wrong, `quiet`, no
/// lease of it ran out, however long its work took.
pub fn job(checks: &Checks, job: &JobRecord, called_cancel: bool, quiet: bool) -> Result<(), Broken> {
    hold(!quiet || !job.requeues.contains_key(&WasteReason::LeaseExpired), || {
        format!("leases of {} ran out although all went well: {:?}", job.id, job.requeues)
    })?;
    let reason = job.reason.as_deref().unwrap_or_default();
    let broken = checks.is_broken(&job.id);
    match job.phase {
        Phase::Cancelled => hold(called_cancel, || format!("{} was never cancelled", job.id)),
        Phase::Failed => {
            let known = (broken && reason == "the data cannot be read")
                || (job.round == 0
                    && (reason == "the worker ran out of memory" || reason.starts_with("the lease ran out")));
            hold(known, || format!("{} failed: {reason:?}", job.id))
        }
        Phase::Finished => {
            hold(!broken, || format!("{} finished without data", job.id))?;
            hold(reason.is_empty(), || format!("{} finished: {reason:?}", job.id))?;
            model(checks, job)
        }
        phase => Err(Broken(format!("{} is {phase:?} at the end", job.id))),
    }
}

/// The model is the undisturbed run's to the bit, and every sample was seen as often as it should.
fn model(checks: &Checks, job: &JobRecord) -> Result<(), Broken> {
    let prepared = train::prepared(&job.spec);
    let samples = prepared.training_rows * u64::from(job.spec.training.epochs);
    hold(job.samples == samples, || format!("{} trained on {} of {samples}", job.id, job.samples))?;
    let of_nodes: u64 = job.nodes.values().map(|share| share.samples).sum();
    hold(of_nodes == samples, || format!("nodes of {} did {of_nodes} of {samples}", job.id))?;
    let shards: u64 = job.nodes.values().map(|share| share.shards).sum();
    let rounds = checks.rounds(&job.id);
    let manifests: usize = rounds.iter().map(|round| round.shards.len()).sum();
    hold(shards == manifests as u64, || format!("nodes of {} did {shards} of {manifests} shards", job.id))?;
    if job.spec.training.numerics == NumericsPolicy::Any {
        return Ok(());
    }
    let numerics = job.numerics.as_deref().unwrap_or_default();
    let expected = train::undisturbed(&job.spec, numerics).map_err(Broken)?;
    hold(job.parameters == Some(expected), || {
        format!("{} ends with {:?}, undisturbed with {expected}", job.id, job.parameters)
    })
}

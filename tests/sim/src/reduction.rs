//! A round's blobs become the next parameters and the next state of the optimizer.

use wattmill_protocol::Hash;
use wattmill_work::Effect;

use crate::blobs::Blobs;
use crate::train;

/// Why a reduction yields nothing.
#[derive(Debug)]
pub enum Trouble {
    /// A blob is not stored.
    Missing(Hash),
    /// The optimizer refuses.
    Refused(String),
}

/// Carries out an [`Effect::Reduce`].
///
/// # Errors
/// [`Trouble`], with nothing stored.
pub fn reduce(blobs: &Blobs, effect: &Effect) -> Result<(Vec<f32>, Option<Vec<f32>>), Trouble> {
    let Effect::Reduce { spec, parameters, optimizer, blobs: parts, samples, step, .. } = effect else {
        return Err(Trouble::Refused("nothing to reduce".to_owned()));
    };
    let get = |name: Hash| blobs.get(name).ok_or(Trouble::Missing(name));
    let parts = parts.iter().map(|part| get(*part)).collect::<Result<Vec<_>, _>>()?;
    let Some(parameters) = parameters else {
        // The preparing round's one blob is the first parameters.
        return Ok((parts.concat(), None));
    };
    let state = optimizer.map(get).transpose()?;
    train::step(spec, get(*parameters)?, state, parts.into_iter(), *samples, *step).map_err(Trouble::Refused)
}

//! Where the state machine's writes become durable.

use std::future::Future;

use crate::record::{Stored, Write};

/// A durable store of [`Write`]s.
pub trait Store {
    /// What can go wrong.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Commits all of `writes` or none. When this returns `Ok`, they survive any crash.
    ///
    /// # Errors
    /// When the store refused; nothing was changed then.
    fn commit(&mut self, writes: &[Write]) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Reads everything back.
    ///
    /// # Errors
    /// When the store cannot be read or holds what this version does not understand.
    fn load(&mut self) -> impl Future<Output = Result<Stored, Self::Error>> + Send;
}

//! The daemon's tasks, by name: whichever ends, how it ended is known, and a panic names its task.

use std::collections::HashMap;

use tokio::task::{Id, JoinError, JoinSet};

use crate::app::AppError;

/// Tasks that run as long as the daemon.
#[derive(Default)]
pub(crate) struct Tasks {
    set: JoinSet<Result<(), AppError>>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Starts a task.
    pub(crate) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), AppError>> + Send + 'static,
    ) {
        let handle = self.set.spawn(task);
        self.names.insert(handle.id(), name);
    }

    /// The next end of one of them; `None` once all have ended.
    pub(crate) async fn next_end(&mut self) -> Option<(&'static str, Result<(), AppError>)> {
        let (id, outcome) = match self.set.join_next_with_id().await? {
            Ok((id, outcome)) => (id, Ok(outcome)),
            Err(error) => (error.id(), Err(error)),
        };
        let name = self.names.remove(&id).unwrap_or("(unknown)");
        let outcome = outcome
            .unwrap_or_else(|error| Err(AppError::Panicked { task: name, message: panic_text(error) }));
        Some((name, outcome))
    }
}

/// What a task said that panicked.
pub(crate) fn panic_text(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => panic.downcast_ref::<&str>().map_or_else(
            || panic.downcast_ref::<String>().cloned().unwrap_or_default(),
            |text| (*text).to_owned(),
        ),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_names_its_task() {
        let mut tasks = Tasks::default();
        tasks.spawn("steady", async { Ok(()) });
        assert!(matches!(tasks.next_end().await, Some(("steady", Ok(())))));
        tasks.spawn("shaky", async { panic!("no {}", "wonder") });
        let (name, outcome) = tasks.next_end().await.unwrap();
        assert_eq!(name, "shaky");
        assert_eq!(outcome.unwrap_err().to_string(), "task shaky panicked, which is a bug: no wonder");
        assert!(tasks.next_end().await.is_none());
    }
}

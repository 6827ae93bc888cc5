//! Durable telemetry, in a database file of its own.
//!
//! Invariant: SQLite has one writer for each file, so that a checkpoint of thousands of nodes here never
//! holds up a commit of the state machine there.

use std::path::Path;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::SqlitePool;
use sqlx::{Row, SqlSafeStr};

use super::StoreError;
use super::sqlite::open;
use crate::state::{Damaged, Record};

/// The open file.
#[derive(Clone, Debug)]
pub(crate) struct TelemetryStore {
    pool: SqlitePool,
}

impl TelemetryStore {
    /// Opens or creates the database at `path` and brings its schema up to date.
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { pool: open(path, migrations()).await? })
    }

    /// Every record, for [`Telemetry::restore`](crate::state::Telemetry::restore).
    pub(crate) async fn load(&self) -> Result<Vec<Record>, StoreError> {
        let rows = sqlx::query("SELECT key, value FROM telemetry").fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok(Record { key: row.try_get(0)?, value: row.try_get(1)? })).collect()
    }

    /// Replaces records, all or none.
    pub(crate) async fn put(&self, records: &[Record]) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        for record in records {
            sqlx::query(
                "INSERT INTO telemetry VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            )
            .bind(&record.key)
            .bind(&record.value)
            .execute(&mut *transaction)
            .await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Moves records that cannot be read back into a table beside, where they may be looked at.
    pub(crate) async fn set_aside(&self, damaged: &[Damaged], unix_ms: i64) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        for Damaged { record, error } in damaged {
            sqlx::query("INSERT INTO set_aside VALUES (?, ?, ?, ?)")
                .bind(unix_ms)
                .bind(&record.key)
                .bind(&record.value)
                .bind(error.to_string())
                .execute(&mut *transaction)
                .await?;
            sqlx::query("DELETE FROM telemetry WHERE key = ?")
                .bind(&record.key)
                .execute(&mut *transaction)
                .await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Waits for running statements and closes the file.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

/// The schema's history.
fn migrations() -> Migrator {
    let text = SqlSafeStr::into_sql_str(include_str!("../../migrations/sqlite-telemetry/0001_telemetry.sql"));
    Migrator::with_migrations(vec![Migration::new(1, "telemetry".into(), MigrationType::Simple, text, false)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Telemetry;

    #[tokio::test]
    async fn damaged_records_are_set_aside_and_the_rest_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = TelemetryStore::open(&folder.path().join("telemetry.db")).await.unwrap();
        let telemetry = Telemetry::new();
        let whole: crate::state::NodeFrame = crate::state::testing::frame(1, 0.0, []);
        let other = crate::state::testing::frame(2, 0.0, []);
        let now = whole.time_unix_nanos;
        telemetry.apply(vec![whole, other], Some(7), &crate::state::Counts::default(), now);
        let mut records = telemetry.checkpoint(None).records;
        let damaged = records.iter_mut().find(|record| record.key.ends_with("2")).unwrap();
        damaged.value.truncate(3);
        let key = damaged.key.clone();
        store.put(&records).await.unwrap();

        let (restored, damaged) = Telemetry::restore(store.load().await.unwrap()).unwrap();
        assert_eq!(damaged.iter().map(|d| d.record.key.clone()).collect::<Vec<_>>(), [key]);
        store.set_aside(&damaged, 5).await.unwrap();
        assert_eq!(restored.rollup(now).known_nodes, 1);
        let (_, damaged) = Telemetry::restore(store.load().await.unwrap()).unwrap();
        assert!(damaged.is_empty(), "it is not found again");
        let aside = sqlx::query("SELECT value FROM set_aside").fetch_all(&store.pool).await.unwrap();
        assert_eq!(aside.iter().map(|row| row.get::<Vec<u8>, _>(0).len()).collect::<Vec<_>>(), [3]);
    }
}

//! The SQLite store.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Row, SqlSafeStr, Sqlite as Database, Transaction};
use wattmill_protocol::Token;
use wattmill_work::store::Store;
use wattmill_work::{Stored, Write};

/// A store that cannot be used, or that refused a transaction.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The file cannot be opened as a database.
    #[error("cannot open the store {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The schema cannot be brought to this version; a newer Wattmill may have written it.
    #[error("cannot migrate the store {}; if a newer version wrote it, run that version", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    /// A statement failed.
    #[error("the store refused a transaction")]
    Database(#[from] sqlx::Error),
    /// A transaction failed, and would whenever it is tried again.
    #[error(
        "the store can never take a transaction: it is damaged, or another program wrote to it; restore a backup where a start does not mend it"
    )]
    Rejected(#[source] sqlx::Error),
    /// A row holds what no version wrote.
    #[error("{table} row {key:?} of the store is corrupt")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The row's key.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A number is out of range.
    #[error("{table} row {key:?} of the store is out of range")]
    Range {
        /// The table.
        table: &'static str,
        /// The row's key.
        key: String,
    },
}

/// SQLite's primary result codes of a disk or a lock that may be well again: BUSY, LOCKED, NOMEM, READONLY,
/// INTERRUPT, IOERR, FULL, CANTOPEN, PROTOCOL.
const MAY_PASS: [u32; 9] = [5, 6, 7, 8, 9, 10, 13, 14, 15];

impl StoreError {
    /// Whether the store may take later what it refused now: it lacks room or the disk is away.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Database(_))
    }

    /// A transaction's error, by whether it may pass.
    fn of_transaction(error: Self) -> Self {
        let Self::Database(cause) = error else { return error };
        let may_pass = match &cause {
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
            sqlx::Error::Database(refusal) => {
                // Extended codes have the primary one in their lowest byte.
                let code = refusal.code().and_then(|code| code.parse::<u32>().ok());
                code.is_some_and(|code| MAY_PASS.contains(&(code & 0xff)))
            }
            _ => false,
        };
        if may_pass { Self::Database(cause) } else { Self::Rejected(cause) }
    }
}

/// What a database is, for those who only look.
pub(crate) struct Found {
    /// The cluster's identity, once there is one.
    pub(crate) cluster: Option<String>,
    /// Migrations of this version that it lacks.
    pub(crate) migrations: usize,
}

/// An open SQLite store.
#[derive(Debug)]
pub(crate) struct Sqlite {
    pool: SqlitePool,
}

impl Sqlite {
    /// Opens or creates the database at `path` and brings its schema up to date.
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { pool: open(path, migrations()).await? })
    }

    /// Looks into the database at `path` without making or changing anything.
    pub(crate) async fn look(path: &Path) -> Result<Found, StoreError> {
        let opened = |source| StoreError::Open { path: path.to_owned(), source };
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(SqliteConnectOptions::new().filename(path))
            .await
            .map_err(opened)?;
        let tables =
            sqlx::query("SELECT name FROM sqlite_schema WHERE type = 'table'").fetch_all(&pool).await;
        let tables =
            tables.map_err(opened)?.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
        let has = |table: &str| tables.iter().any(|name| name == table);
        let mut found = Found { cluster: None, migrations: migrations().iter().count() };
        if has("_sqlx_migrations") {
            let made = sqlx::query("SELECT version FROM _sqlx_migrations").fetch_all(&pool).await?;
            let made = made.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
            let known: Vec<i64> = migrations().iter().map(|migration| migration.version).collect();
            if let Some(newer) = made.iter().find(|version| !known.contains(version)) {
                let source = sqlx::migrate::MigrateError::VersionMissing(*newer);
                return Err(StoreError::Migrate { path: path.to_owned(), source });
            }
            found.migrations = known.len() - made.len();
        }
        if has("meta") {
            let row =
                sqlx::query("SELECT value FROM meta WHERE key = 'cluster'").fetch_optional(&pool).await?;
            found.cluster = row.map(|row| row.try_get(0)).transpose()?;
        }
        pool.close().await;
        Ok(found)
    }

    /// The cluster's identity: made on first use, kept for ever.
    pub(crate) async fn cluster(&self) -> Result<String, StoreError> {
        let fresh = uuid::Uuid::new_v4().to_string();
        sqlx::query("INSERT INTO meta VALUES ('cluster', ?) ON CONFLICT DO NOTHING")
            .bind(fresh)
            .execute(&self.pool)
            .await?;
        let row = sqlx::query("SELECT value FROM meta WHERE key = 'cluster'").fetch_one(&self.pool).await?;
        Ok(row.try_get(0)?)
    }

    /// A second handle to the same database.
    pub(crate) fn share(&self) -> Self {
        Self { pool: self.pool.clone() }
    }

    /// Waits for running statements and closes the file.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    /// Has the store refuse whatever would change it, or take it again: as a disk that is gone does.
    #[cfg(test)]
    pub(crate) async fn refuse(&self, refuse: bool) {
        let pragma = if refuse { "PRAGMA query_only = 1" } else { "PRAGMA query_only = 0" };
        sqlx::query(pragma).execute(&self.pool).await.unwrap();
    }

    async fn transact(&self, writes: &[Write]) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        for write in writes {
            put(&mut transaction, write).await?;
        }
        Ok(transaction.commit().await?)
    }

    async fn generation(&self) -> Result<u32, StoreError> {
        let row =
            sqlx::query("SELECT value FROM meta WHERE key = 'generation'").fetch_optional(&self.pool).await?;
        let Some(row) = row else { return Ok(0) };
        let text: String = row.try_get(0)?;
        // Tokens are stored as signed numbers: the upper half of the generations has no room there.
        let generation = text.parse().ok().filter(|generation| *generation < i32::MAX.cast_unsigned());
        generation.ok_or_else(|| StoreError::Range { table: "meta", key: "generation".into() })
    }
}

impl Store for Sqlite {
    type Error = StoreError;

    async fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        self.transact(writes).await.map_err(StoreError::of_transaction)
    }

    async fn load(&mut self) -> Result<Stored, StoreError> {
        let jobs = sqlx::query("SELECT id, record FROM jobs").fetch_all(&self.pool).await?;
        let accounts = sqlx::query("SELECT token, record FROM accounts").fetch_all(&self.pool).await?;
        let settled = sqlx::query("SELECT node, sequence FROM settled").fetch_all(&self.pool).await?;
        Ok(Stored {
            generation: self.generation().await?,
            jobs: jobs
                .iter()
                .map(|row| parse("jobs", row.try_get(0)?, row.try_get(1)?))
                .collect::<Result<_, StoreError>>()?,
            accounts: accounts
                .iter()
                .map(|row| {
                    let token: i64 = row.try_get(0)?;
                    let record = parse("accounts", token.to_string(), row.try_get(1)?)?;
                    Ok((Token(unsigned("accounts", &token.to_string(), token)?), record))
                })
                .collect::<Result<_, StoreError>>()?,
            settled: settled
                .iter()
                .map(|row| {
                    let key: String = row.try_get(0)?;
                    let node =
                        key.parse().map_err(|_| StoreError::Range { table: "settled", key: key.clone() })?;
                    Ok((node, unsigned("settled", &key, row.try_get(1)?)?))
                })
                .collect::<Result<_, StoreError>>()?,
        })
    }
}

/// Opens or creates a database file and brings its schema up to date.
pub(super) async fn open(path: &Path, migrations: Migrator) -> Result<SqlitePool, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .connect_with(options)
        .await
        .map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
    migrations.run(&pool).await.map_err(|source| StoreError::Migrate { path: path.to_owned(), source })?;
    Ok(pool)
}

/// The schema's history. A version that is in the database and not here was written by a newer Wattmill.
fn migrations() -> Migrator {
    let work = SqlSafeStr::into_sql_str(include_str!("../../migrations/sqlite/0001_work.sql"));
    Migrator::with_migrations(vec![Migration::new(1, "work".into(), MigrationType::Simple, work, false)])
}

async fn put(transaction: &mut Transaction<'_, Database>, write: &Write) -> Result<(), StoreError> {
    let query = match write {
        Write::Generation(generation) => sqlx::query(
            "INSERT INTO meta VALUES ('generation', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )
        .bind(generation.to_string()),
        Write::Job(job) => sqlx::query(
            "INSERT INTO jobs VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record",
        )
        .bind(job.id.as_str().to_owned())
        .bind(text(job)),
        Write::Round(round) => sqlx::query("INSERT INTO rounds VALUES (?, ?, ?)")
            .bind(round.job.as_str().to_owned())
            .bind(i64::from(round.round))
            .bind(text(round)),
        Write::Account(token, account) => sqlx::query(
            "INSERT INTO accounts VALUES (?, ?) ON CONFLICT (token) DO UPDATE SET record = excluded.record",
        )
        .bind(token.0.cast_signed())
        .bind(text(account)),
        Write::AccountClosed(token) => {
            sqlx::query("DELETE FROM accounts WHERE token = ?").bind(token.0.cast_signed())
        }
        Write::NodeSettled(node, sequence) => sqlx::query(
            "INSERT INTO settled VALUES (?, ?) ON CONFLICT (node) DO UPDATE SET sequence = excluded.sequence",
        )
        .bind(node.as_str().to_owned())
        .bind(sequence.cast_signed()),
    };
    query.execute(&mut **transaction).await?;
    Ok(())
}

fn text(record: &impl Serialize) -> String {
    serde_json::to_string(record).expect("records have only string keys and finite numbers")
}

fn parse<T: DeserializeOwned>(table: &'static str, key: String, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|source| StoreError::Corrupt { table, key, source })
}

fn unsigned(table: &'static str, key: &str, value: i64) -> Result<u64, StoreError> {
    u64::try_from(value).map_err(|_| StoreError::Range { table, key: key.to_owned() })
}

-- What the state machine of work needs after a crash.
CREATE TABLE meta (
    key TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE jobs (
    id TEXT PRIMARY KEY NOT NULL,
    record TEXT NOT NULL
) STRICT;

-- One row commits a round: a second of the same number violates the key.
CREATE TABLE rounds (
    job TEXT NOT NULL,
    round INTEGER NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (job, round)
) STRICT;

CREATE TABLE accounts (
    token INTEGER PRIMARY KEY NOT NULL,
    record TEXT NOT NULL
) STRICT;

CREATE TABLE settled (
    node TEXT PRIMARY KEY NOT NULL,
    sequence INTEGER NOT NULL
) STRICT;

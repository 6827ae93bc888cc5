-- Durable telemetry, in a file of its own: its writes never hold up the state machine's.
CREATE TABLE telemetry (
    key TEXT PRIMARY KEY NOT NULL,
    value BLOB NOT NULL
) STRICT;

-- Records that could not be read back, as they were found.
CREATE TABLE set_aside (
    unix_ms INTEGER NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    reason TEXT NOT NULL
) STRICT;

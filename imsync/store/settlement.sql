-- name: schema
-- One row per settled event, written in the transaction of its effect: the inbox that makes effects exactly-once.
-- The key is the event id (16 bytes, in time order, so the table grows at its end); an entry that could not be
-- decoded has no event id and is keyed by "entry:" and its entry id.
CREATE TABLE settled (
    event_key BLOB PRIMARY KEY,
    outcome   TEXT NOT NULL,
    entry_id  TEXT NOT NULL
) WITHOUT ROWID;

-- How many events of each source (the CloudEvents source; empty when it could not be read) were settled how.
-- Kept beside `settled` so that the accounting needs no scan and survives pruning.
CREATE TABLE tally (
    source  TEXT NOT NULL,
    outcome TEXT NOT NULL,
    n       INTEGER NOT NULL,
    PRIMARY KEY (source, outcome)
) WITHOUT ROWID;

-- Time from edit to commit of the copies, as a histogram per hour. bucket = floor(20 * log10(milliseconds)).
CREATE TABLE staleness (
    hour   INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    n      INTEGER NOT NULL,
    PRIMARY KEY (hour, bucket)
) WITHOUT ROWID;

-- name: record
INSERT INTO settled (event_key, outcome, entry_id) VALUES (?, ?, ?);

-- name: change_outcome
UPDATE settled SET outcome = ? WHERE event_key = ?;

-- name: settled_since
SELECT event_key, outcome FROM settled WHERE event_key >= ? LIMIT ?;

-- name: known
SELECT event_key, outcome FROM settled WHERE event_key IN

-- name: settled_entries
SELECT entry_id FROM settled WHERE entry_id IN

-- name: count
INSERT INTO tally (source, outcome, n) VALUES (?, ?, ?)
ON CONFLICT (source, outcome) DO UPDATE SET n = n + excluded.n;

-- name: sources
SELECT count(DISTINCT source) FROM tally;

-- name: is_source
SELECT 1 FROM tally WHERE source = ? LIMIT 1;

-- name: tallies
SELECT source, outcome, n FROM tally;

-- name: add_staleness
INSERT INTO staleness (hour, bucket, n) VALUES (?, ?, ?)
ON CONFLICT (hour, bucket) DO UPDATE SET n = n + excluded.n;

-- name: prune_staleness
DELETE FROM staleness WHERE hour < ?;

-- name: staleness
SELECT bucket, sum(n) FROM staleness WHERE hour >= ? GROUP BY bucket ORDER BY bucket;

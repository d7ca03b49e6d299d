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

-- name: schema_2
-- What the store knows of itself: store_id, generation (how many settling transactions were committed), and the
-- position (a stream entry id) up to which a snapshot of the source position_source covers what it never settled.
-- While it is being filled from a snapshot, there is a row `unfinished` besides.
CREATE TABLE IF NOT EXISTS meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- A random UUID (version 4).
INSERT OR IGNORE INTO meta (key, value)
SELECT 'store_id', substr(r, 1, 8) || '-' || substr(r, 9, 4) || '-4' || substr(r, 14, 3) || '-'
       || substr('89ab', 1 + (random() & 3), 1) || substr(r, 18, 3) || '-' || substr(r, 21)
FROM (SELECT lower(hex(randomblob(16))) AS r);

-- A store that has settled anything is never taken for one that was not fed yet.
INSERT INTO meta (key, value) SELECT 'generation', EXISTS (SELECT 1 FROM settled);
INSERT INTO meta (key, value) VALUES ('position', '0-0'), ('position_source', '');

-- name: meta
SELECT max(CASE key WHEN 'store_id' THEN value END),
       max(CASE key WHEN 'generation' THEN CAST(value AS INTEGER) END),
       max(CASE key WHEN 'position' THEN value END),
       max(CASE key WHEN 'position_source' THEN value END),
       count(CASE key WHEN 'unfinished' THEN 1 END),
       max(CASE key WHEN 'tables_version' THEN CAST(value AS INTEGER) END)
FROM meta;

-- name: raise_generation
UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'generation';

-- name: begin_filling
UPDATE meta SET value = ? WHERE key = 'store_id';

-- name: unfinished
INSERT OR REPLACE INTO meta (key, value) VALUES ('unfinished', 1);

-- name: finished
DELETE FROM meta WHERE key = 'unfinished';

-- name: set_position
UPDATE meta SET value = CASE key WHEN 'position' THEN ? ELSE ? END WHERE key IN ('position', 'position_source');

-- name: record
INSERT INTO settled (event_key, outcome, entry_id) VALUES (?, ?, ?);

-- name: cover
INSERT OR IGNORE INTO settled (event_key, outcome, entry_id) VALUES (?, ?, ?);

-- name: change_outcome
UPDATE settled SET outcome = ? WHERE event_key = ?;

-- name: move_entry
-- To the newest copy of the event. Entry ids are compared as the numbers that they are made of.
UPDATE settled SET entry_id = ?1 WHERE event_key = ?2
AND (CAST(substr(entry_id, 1, instr(entry_id, '-') - 1) AS INTEGER),
     CAST(substr(entry_id, instr(entry_id, '-') + 1) AS INTEGER))
  < (CAST(substr(?1, 1, instr(?1, '-') - 1) AS INTEGER), CAST(substr(?1, instr(?1, '-') + 1) AS INTEGER));

-- name: look
SELECT event_key, outcome, entry_id FROM settled WHERE event_key > ? AND event_key < ? ORDER BY event_key LIMIT ?;

-- name: forget
-- A copy of the event may have come meanwhile.
DELETE FROM settled WHERE event_key = ? AND outcome = ? AND entry_id = ?;

-- name: settled_since
SELECT event_key, outcome FROM settled WHERE event_key >= ? LIMIT ?;

-- name: known
SELECT event_key, outcome FROM settled WHERE event_key IN

-- name: settlements
SELECT event_key, outcome, entry_id FROM settled WHERE event_key IN

-- name: failures
SELECT event_key, outcome, entry_id FROM settled WHERE event_key > ? AND outcome IN ('dead', 'lost')
ORDER BY event_key LIMIT ?;

-- name: settled_entries
SELECT entry_id FROM settled WHERE entry_id IN

-- name: end_undecoded
DELETE FROM settled WHERE event_key = ? AND outcome = ?;

-- name: count
INSERT INTO tally (source, outcome, n) VALUES (?, ?, ?)
ON CONFLICT (source, outcome) DO UPDATE SET n = n + excluded.n;

-- name: lower
UPDATE tally SET n = max(0, n - ?) WHERE source = ? AND outcome = ? AND n > 0;

-- name: set_tally
INSERT INTO tally (source, outcome, n) VALUES (?, ?, ?)
ON CONFLICT (source, outcome) DO UPDATE SET n = excluded.n;

-- name: clear_tally
UPDATE tally SET n = 0 WHERE outcome = ?;

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

-- name: staleness_by_hour
SELECT hour, bucket, n FROM staleness WHERE hour >= ? ORDER BY hour, bucket;

-- name: staleness
SELECT bucket, sum(n) FROM staleness WHERE hour >= ? GROUP BY bucket ORDER BY bucket;

-- name: schema
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- The owner of the profile. `version` counts the edits of this row and is what orders them everywhere.
CREATE TABLE im_user (
    id               INTEGER PRIMARY KEY,
    user_name        TEXT NOT NULL UNIQUE,
    nick_name        TEXT NOT NULL,
    head_image       TEXT NOT NULL,
    head_image_thumb TEXT NOT NULL,
    version          INTEGER NOT NULL DEFAULT 1,
    deleted          INTEGER NOT NULL DEFAULT 0,
    updated_ms       INTEGER NOT NULL
);

-- Written in the transaction of the edit, published afterwards. `body` is the event as it goes on the wire.
CREATE TABLE outbox (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id   BLOB NOT NULL,
    user_id    INTEGER NOT NULL,
    version    INTEGER NOT NULL,
    body       BLOB NOT NULL,
    created_ms INTEGER NOT NULL,
    entry_id   TEXT,
    sent_ms    INTEGER
);
CREATE INDEX outbox_unsent ON outbox (seq) WHERE sent_ms IS NULL;
CREATE INDEX outbox_user ON outbox (user_id, version);

-- Totals that survive the pruning of sent rows.
CREATE TABLE counter (
    name TEXT PRIMARY KEY,
    n    INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO counter (name, n) VALUES ('published', 0);

-- name: schema_2
-- A loss takes what was sent last, so the order of sending must be known: it is neither that of `seq` (a refused row is
-- sent after later ones) nor that of `sent_ms` (clocks are set back). Of the rows of version 1 it is the best guess.
-- `round_trip` is the place that the newest round trip begins with.
ALTER TABLE outbox ADD COLUMN place INTEGER;
UPDATE outbox SET place = sent.place FROM (
    SELECT seq, row_number() OVER (
        ORDER BY sent_ms,
            CAST(substr(entry_id, 1, instr(entry_id, '-') - 1) AS INTEGER),
            CAST(substr(entry_id, instr(entry_id, '-') + 1) AS INTEGER)
    ) AS place
    FROM outbox WHERE sent_ms IS NOT NULL
) AS sent WHERE outbox.seq = sent.seq;
CREATE INDEX outbox_sent ON outbox (place) WHERE place IS NOT NULL;
INSERT INTO counter (name, n) SELECT 'round_trip', coalesce(max(place), 0) FROM outbox;
INSERT INTO counter (name, n) VALUES ('resent', 0);

-- name: set_meta
INSERT INTO meta (key, value) VALUES (?, ?);

-- name: get_meta
SELECT value FROM meta WHERE key = ?;

-- name: insert_user
INSERT INTO im_user (id, user_name, nick_name, head_image, head_image_thumb, version, deleted, updated_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: profiles
SELECT id, user_name, nick_name, head_image, head_image_thumb, version, deleted FROM im_user WHERE id IN

-- name: write_profile
UPDATE im_user SET nick_name = ?, head_image = ?, head_image_thumb = ?, version = ?, deleted = ?, updated_ms = ?
WHERE id = ?;

-- name: scan
SELECT id, nick_name, head_image, head_image_thumb, version, deleted FROM im_user
WHERE id > ? ORDER BY id LIMIT ?;

-- name: ids
SELECT id FROM im_user WHERE id > ? ORDER BY id LIMIT ?;

-- name: count_users
SELECT count(*) FROM im_user;

-- name: active_ids
SELECT id FROM im_user WHERE deleted = 0 ORDER BY id;

-- name: edited_ms
SELECT updated_ms FROM im_user WHERE id = ?;

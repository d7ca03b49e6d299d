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

-- name: enqueue
INSERT INTO outbox (event_id, user_id, version, body, created_ms) VALUES (?, ?, ?, ?, ?);

-- name: unsent
SELECT seq, user_id, body FROM outbox WHERE sent_ms IS NULL AND seq > ? ORDER BY seq LIMIT ?;

-- name: mark_sent
UPDATE outbox SET entry_id = ?, sent_ms = ? WHERE seq = ? AND sent_ms IS NULL;

-- name: count_published
UPDATE counter SET n = n + ? WHERE name = 'published';

-- name: published
SELECT n FROM counter WHERE name = 'published';

-- name: backlog
SELECT count(*), min(created_ms) FROM outbox WHERE sent_ms IS NULL;

-- name: last_seq
SELECT coalesce(max(seq), 0) FROM outbox;

-- name: latest_of_user
SELECT version, entry_id FROM outbox WHERE user_id = ? ORDER BY version DESC LIMIT 1;

-- name: scan
SELECT id, nick_name, head_image, head_image_thumb, version, deleted FROM im_user
WHERE id > ? ORDER BY id LIMIT ?;

-- name: count_users
SELECT count(*) FROM im_user;

-- name: active_ids
SELECT id FROM im_user WHERE deleted = 0 ORDER BY id;

-- name: schema
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- The newest applied state of every user, also of those that no row copies yet: joining copies from here, which
-- closes the race between a join and an event. A tombstone stays, so that a late update cannot resurrect.
CREATE TABLE user_profile_replica (
    user_id     INTEGER PRIMARY KEY,
    version     INTEGER NOT NULL,
    nick_name   TEXT NOT NULL,
    head_image  TEXT NOT NULL,
    deleted     INTEGER NOT NULL,
    occurred_ms INTEGER NOT NULL
);

-- name: versions
-- Deletion is final: nothing is newer than a tombstone.
SELECT user_id, CASE WHEN deleted THEN 9223372036854775807 ELSE version END
FROM user_profile_replica WHERE user_id IN

-- name: replicas
SELECT user_id, version, nick_name, head_image, deleted, occurred_ms FROM user_profile_replica WHERE user_id IN

-- name: write_replica
-- The gate: a version never falls, and nothing comes after a tombstone. How many rows it wrote tells whether all
-- were newer; where that was looked up before, the gate stands here once more.
INSERT INTO user_profile_replica (user_id, version, nick_name, head_image, deleted, occurred_ms)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (user_id) DO UPDATE SET
    version = excluded.version, nick_name = excluded.nick_name, head_image = excluded.head_image,
    deleted = excluded.deleted, occurred_ms = excluded.occurred_ms
WHERE excluded.version > user_profile_replica.version AND NOT user_profile_replica.deleted;

-- name: write_snapshot
-- What the source says at the same version counts too; but no version falls, and no tombstone is resurrected by a
-- state that is not newer. Only a version that leaves no room for a newer one, which no source has counted, gives way.
INSERT INTO user_profile_replica (user_id, version, nick_name, head_image, deleted, occurred_ms)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (user_id) DO UPDATE SET
    version = excluded.version, nick_name = excluded.nick_name, head_image = excluded.head_image,
    deleted = excluded.deleted, occurred_ms = excluded.occurred_ms
WHERE excluded.version > user_profile_replica.version
OR (excluded.version = user_profile_replica.version AND (excluded.deleted OR NOT user_profile_replica.deleted))
OR user_profile_replica.version >= 9223372036854775806;

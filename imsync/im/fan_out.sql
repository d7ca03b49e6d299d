-- name: schema
-- The users whose rows are still to be made as the replica is: a fan-out that is too much for one transaction.
-- A user's rows are visited in the order of what contains them (the group, or the user who sees the friend): those
-- from `position` on, and then, as `wrapped` tells, those from the first one to below `until`. What lies in neither
-- part is as the replica is. A newer version that finds a fan-out under way sets `until` to where that stands.
-- occurred_ms is when the edit occurred that is carried out, NULL for a snapshot; moved_ms when it got on last.
CREATE TABLE fan_out (
    user_id     INTEGER PRIMARY KEY,
    position    INTEGER NOT NULL,
    until       INTEGER NOT NULL,
    wrapped     INTEGER NOT NULL,
    occurred_ms INTEGER,
    moved_ms    INTEGER NOT NULL
);

-- name: put_off
INSERT INTO fan_out (user_id, position, until, wrapped, occurred_ms, moved_ms) VALUES (?1, ?2, ?2, 0, ?3, ?4)
ON CONFLICT (user_id) DO UPDATE SET until = position, wrapped = 0, occurred_ms = coalesce(excluded.occurred_ms, occurred_ms);

-- name: is_any
SELECT EXISTS (SELECT 1 FROM fan_out);

-- name: next
SELECT f.user_id, f.position, f.until, f.wrapped, f.occurred_ms, r.nick_name, r.head_image
FROM fan_out AS f JOIN user_profile_replica AS r ON r.user_id = f.user_id
WHERE f.user_id > ? ORDER BY f.user_id LIMIT ?;

-- name: move
UPDATE fan_out SET position = ?, wrapped = ?, moved_ms = ? WHERE user_id = ?;

-- name: end
DELETE FROM fan_out WHERE user_id = ?;

-- name: end_without_replica
-- Somebody has deleted it by hand: there is nothing to copy.
DELETE FROM fan_out WHERE NOT EXISTS (SELECT 1 FROM user_profile_replica AS r WHERE r.user_id = fan_out.user_id);

-- name: left
SELECT count(*), min(moved_ms) FROM fan_out;

-- name: schema
CREATE TABLE im_group (
    id       INTEGER PRIMARY KEY,
    name     TEXT NOT NULL,
    owner_id INTEGER NOT NULL
);

-- user_nick_name and head_image are copies of the user's profile (head_image copies the thumb).
-- remark_nick_name is the member's own override; events never touch it.
-- Clustered by user: an event rewrites all rows of one user, which then lie side by side.
CREATE TABLE im_group_member (
    user_id          INTEGER NOT NULL,
    group_id         INTEGER NOT NULL,
    user_nick_name   TEXT NOT NULL,
    head_image       TEXT NOT NULL,
    remark_nick_name TEXT NOT NULL DEFAULT '',
    quit             INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, group_id)
) WITHOUT ROWID;
CREATE INDEX im_group_member_group ON im_group_member (group_id);

-- name: write_copies
UPDATE im_group_member SET user_nick_name = ?, head_image = ? WHERE user_id = ?;

-- name: heal_copies
UPDATE im_group_member SET user_nick_name = ?1, head_image = ?2
WHERE user_id = ?3 AND (user_nick_name <> ?1 OR head_image <> ?2);

-- name: count_rows
-- Of each of these users, counted no further than so many.
SELECT value, (SELECT count(*) FROM (SELECT 1 FROM im_group_member WHERE user_id = value LIMIT ?2)) FROM json_each(?1);

-- name: count_rows_of
SELECT ?1, (SELECT count(*) FROM (SELECT 1 FROM im_group_member WHERE user_id = ?1 LIMIT ?2));

-- name: look_ahead
-- The last of the next rows of a fan-out, and how many they are.
SELECT max(group_id), count(*) FROM (
    SELECT group_id FROM im_group_member WHERE user_id = ? AND group_id >= ? AND group_id < ? ORDER BY group_id LIMIT ?
);

-- name: heal_between
UPDATE im_group_member SET user_nick_name = ?1, head_image = ?2
WHERE user_id = ?3 AND group_id >= ?4 AND group_id <= ?5 AND (user_nick_name <> ?1 OR head_image <> ?2);

-- name: progress
-- How many of a user's rows its fan-out has not come to yet, and of how many; nothing where none is under way.
SELECT count(CASE WHEN (m.group_id >= fan.position) + (m.group_id < fan.until) > fan.wrapped THEN 1 END), count(m.group_id)
FROM fan_out AS fan LEFT JOIN im_group_member AS m ON m.user_id = fan.user_id
WHERE fan.user_id = ? GROUP BY fan.user_id;

-- name: join
-- Copies from the replica in the statement that makes the row; empty until the user's first event is applied.
INSERT INTO im_group_member (user_id, group_id, user_nick_name, head_image, remark_nick_name, quit)
SELECT input.user_id, input.group_id, coalesce(r.nick_name, ''), coalesce(r.head_image, ''), ?, 0
FROM (SELECT ? AS user_id, ? AS group_id) AS input
LEFT JOIN user_profile_replica AS r ON r.user_id = input.user_id
WHERE true
ON CONFLICT (user_id, group_id) DO UPDATE SET
    user_nick_name = excluded.user_nick_name, head_image = excluded.head_image, quit = 0;

-- name: load_group
INSERT INTO im_group (id, name, owner_id) VALUES (?, ?, ?);

-- name: load_member
INSERT INTO im_group_member (user_id, group_id, user_nick_name, head_image, remark_nick_name, quit)
SELECT user_id, ?, nick_name, head_image, ?, ? FROM user_profile_replica WHERE user_id = ?;

-- name: states
-- The last number is of the rows that differ and that a fan-out under way will come to.
-- Of those users only that have a replica: `rows_between` tells whether rows of others are among them.
SELECT r.user_id, r.version, r.deleted, r.nick_name, r.head_image, count(m.group_id),
       count(CASE WHEN m.user_nick_name <> r.nick_name OR m.head_image <> r.head_image THEN 1 END),
       count(CASE WHEN fan.wrapped >= 0 AND (m.group_id >= fan.position) + (m.group_id < fan.until) > fan.wrapped
                       AND (m.user_nick_name <> r.nick_name OR m.head_image <> r.head_image) THEN 1 END)
FROM user_profile_replica AS r
LEFT JOIN fan_out AS fan ON fan.user_id = r.user_id
LEFT JOIN im_group_member AS m ON m.user_id = r.user_id
WHERE r.user_id > ?
GROUP BY r.user_id ORDER BY r.user_id LIMIT ?;

-- name: rows_between
SELECT count(*) FROM im_group_member WHERE user_id > ? AND user_id <= ?;

-- name: all_states
-- Ids come from the replica and from the rows, so that a row without a replica is seen too.
SELECT ids.user_id, coalesce(r.version, 0), coalesce(r.deleted, 0), coalesce(r.nick_name, ''),
       coalesce(r.head_image, ''), count(m.group_id),
       count(CASE WHEN m.user_nick_name <> coalesce(r.nick_name, '') OR m.head_image <> coalesce(r.head_image, '') THEN 1 END),
       count(CASE WHEN fan.wrapped >= 0 AND (m.group_id >= fan.position) + (m.group_id < fan.until) > fan.wrapped
                       AND (m.user_nick_name <> r.nick_name OR m.head_image <> r.head_image) THEN 1 END)
FROM (
    SELECT user_id FROM (
        SELECT user_id FROM user_profile_replica WHERE user_id > ?1
        UNION SELECT user_id FROM im_group_member WHERE user_id > ?1
        ORDER BY user_id LIMIT ?2
    )
) AS ids
LEFT JOIN user_profile_replica AS r ON r.user_id = ids.user_id
LEFT JOIN fan_out AS fan ON fan.user_id = ids.user_id
LEFT JOIN im_group_member AS m ON m.user_id = ids.user_id
GROUP BY ids.user_id ORDER BY ids.user_id;

-- name: contents
SELECT user_nick_name, head_image, count(*) FROM im_group_member WHERE user_id = ? GROUP BY 1, 2;

-- name: members
SELECT user_id, user_nick_name, head_image, remark_nick_name, quit FROM im_group_member
WHERE group_id = ? ORDER BY user_id;

-- name: totals
SELECT (SELECT count(*) FROM im_group), (SELECT count(*) FROM im_group_member);

-- name: overrides
SELECT count(*) FROM im_group_member WHERE user_id = ? AND remark_nick_name <> '';

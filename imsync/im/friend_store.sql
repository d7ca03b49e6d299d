-- name: schema
-- One row per direction: what user_id sees of friend_id. friend_nick_name and friend_head_image are copies of the
-- friend's profile. remark_nick_name is user_id's own name for the friend; events never touch it.
-- Clustered by the friend, whose event rewrites all these rows.
CREATE TABLE im_friend (
    friend_id         INTEGER NOT NULL,
    user_id           INTEGER NOT NULL,
    friend_nick_name  TEXT NOT NULL,
    friend_head_image TEXT NOT NULL,
    remark_nick_name  TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (friend_id, user_id)
) WITHOUT ROWID;
CREATE INDEX im_friend_user ON im_friend (user_id);

-- name: write_copies
UPDATE im_friend SET friend_nick_name = ?, friend_head_image = ? WHERE friend_id = ?;

-- name: heal_copies
UPDATE im_friend SET friend_nick_name = ?1, friend_head_image = ?2
WHERE friend_id = ?3 AND (friend_nick_name <> ?1 OR friend_head_image <> ?2);

-- name: count_rows
-- Of each of these users, counted no further than so many.
SELECT value, (SELECT count(*) FROM (SELECT 1 FROM im_friend WHERE friend_id = value LIMIT ?2)) FROM json_each(?1);

-- name: count_rows_of
SELECT ?1, (SELECT count(*) FROM (SELECT 1 FROM im_friend WHERE friend_id = ?1 LIMIT ?2));

-- name: look_ahead
-- The last of the next rows of a fan-out, and how many they are.
SELECT max(user_id), count(*) FROM (
    SELECT user_id FROM im_friend WHERE friend_id = ? AND user_id >= ? AND user_id < ? ORDER BY user_id LIMIT ?
);

-- name: heal_between
UPDATE im_friend SET friend_nick_name = ?1, friend_head_image = ?2
WHERE friend_id = ?3 AND user_id >= ?4 AND user_id <= ?5 AND (friend_nick_name <> ?1 OR friend_head_image <> ?2);

-- name: progress
-- How many of a user's rows its fan-out has not come to yet, and of how many; nothing where none is under way.
SELECT count(CASE WHEN (f.user_id >= fan.position) + (f.user_id < fan.until) > fan.wrapped THEN 1 END), count(f.user_id)
FROM fan_out AS fan LEFT JOIN im_friend AS f ON f.friend_id = fan.user_id
WHERE fan.user_id = ? GROUP BY fan.user_id;

-- name: join
-- Copies from the replica in the statement that makes the row; empty until the friend's first event is applied.
INSERT INTO im_friend (friend_id, user_id, friend_nick_name, friend_head_image, remark_nick_name)
SELECT input.friend_id, input.user_id, coalesce(r.nick_name, ''), coalesce(r.head_image, ''), ?
FROM (SELECT ? AS friend_id, ? AS user_id) AS input
LEFT JOIN user_profile_replica AS r ON r.user_id = input.friend_id
WHERE true
ON CONFLICT (friend_id, user_id) DO UPDATE SET
    friend_nick_name = excluded.friend_nick_name, friend_head_image = excluded.friend_head_image;

-- name: load_friend
INSERT INTO im_friend (friend_id, user_id, friend_nick_name, friend_head_image, remark_nick_name)
SELECT user_id, ?, nick_name, head_image, ? FROM user_profile_replica WHERE user_id = ?;

-- name: states
-- The last number is of the rows that differ and that a fan-out under way will come to.
-- Of those users only that have a replica: `rows_between` tells whether rows of others are among them.
SELECT r.user_id, r.version, r.deleted, r.nick_name, r.head_image, count(f.user_id),
       count(CASE WHEN f.friend_nick_name <> r.nick_name OR f.friend_head_image <> r.head_image THEN 1 END),
       count(CASE WHEN fan.wrapped >= 0 AND (f.user_id >= fan.position) + (f.user_id < fan.until) > fan.wrapped
                       AND (f.friend_nick_name <> r.nick_name OR f.friend_head_image <> r.head_image) THEN 1 END)
FROM user_profile_replica AS r
LEFT JOIN fan_out AS fan ON fan.user_id = r.user_id
LEFT JOIN im_friend AS f ON f.friend_id = r.user_id
WHERE r.user_id > ?
GROUP BY r.user_id ORDER BY r.user_id LIMIT ?;

-- name: rows_between
SELECT count(*) FROM im_friend WHERE friend_id > ? AND friend_id <= ?;

-- name: all_states
-- Ids come from the replica and from the rows, so that a row without a replica is seen too.
SELECT ids.user_id, coalesce(r.version, 0), coalesce(r.deleted, 0), coalesce(r.nick_name, ''),
       coalesce(r.head_image, ''), count(f.user_id),
       count(CASE WHEN f.friend_nick_name <> coalesce(r.nick_name, '') OR f.friend_head_image <> coalesce(r.head_image, '') THEN 1 END),
       count(CASE WHEN fan.wrapped >= 0 AND (f.user_id >= fan.position) + (f.user_id < fan.until) > fan.wrapped
                       AND (f.friend_nick_name <> r.nick_name OR f.friend_head_image <> r.head_image) THEN 1 END)
FROM (
    SELECT user_id FROM (
        SELECT user_id FROM user_profile_replica WHERE user_id > ?1
        UNION SELECT friend_id FROM im_friend WHERE friend_id > ?1
        ORDER BY user_id LIMIT ?2
    )
) AS ids
LEFT JOIN user_profile_replica AS r ON r.user_id = ids.user_id
LEFT JOIN fan_out AS fan ON fan.user_id = ids.user_id
LEFT JOIN im_friend AS f ON f.friend_id = ids.user_id
GROUP BY ids.user_id ORDER BY ids.user_id;

-- name: contents
SELECT friend_nick_name, friend_head_image, count(*) FROM im_friend WHERE friend_id = ? GROUP BY 1, 2;

-- name: friends
SELECT friend_id, friend_nick_name, friend_head_image, remark_nick_name FROM im_friend
WHERE user_id = ? ORDER BY friend_id;

-- name: totals
SELECT count(*) FROM im_friend;

-- name: overrides
SELECT count(*) FROM im_friend WHERE friend_id = ? AND remark_nick_name <> '';

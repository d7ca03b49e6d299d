-- name: schema
-- In a temporary file. `above` is the highest version that a copy has, `source` that of the source. The bits of
-- `mended` are the projections whose copies a touch makes right, those of `others` the ones it does not.
CREATE TABLE plan (
    user_id INTEGER PRIMARY KEY,
    above   INTEGER NOT NULL,
    source  INTEGER NOT NULL,
    mended  INTEGER NOT NULL,
    others  INTEGER NOT NULL,
    touched INTEGER NOT NULL
);

-- name: add
INSERT INTO plan (user_id, above, source, mended, others, touched) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (user_id) DO UPDATE SET
    above = max(above, excluded.above), source = max(source, excluded.source), mended = mended | excluded.mended,
    others = others | excluded.others, touched = touched | excluded.touched;

-- name: counts
SELECT count(*), total(touched), total(others <> 0) FROM plan;

-- name: new_version
SELECT max(above, source) FROM plan WHERE user_id = ? AND touched;

-- name: targets
SELECT user_id, above, mended FROM plan WHERE user_id > ? AND touched ORDER BY user_id LIMIT ?;

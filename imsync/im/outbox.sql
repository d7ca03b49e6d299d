-- name: enqueue
INSERT INTO outbox (event_id, user_id, version, body, created_ms) VALUES (?, ?, ?, ?, ?);

-- name: last_seq
SELECT coalesce(max(seq), 0) FROM outbox;

-- name: unsent
SELECT seq, user_id, body FROM outbox WHERE sent_ms IS NULL AND seq > ? ORDER BY seq LIMIT ?;

-- name: unsent_and_state
-- The same, and in every row what `sending_state` finds at that moment.
SELECT seq, user_id, body, (SELECT coalesce(max(place), 0) FROM outbox WHERE place IS NOT NULL),
       (SELECT n FROM counter WHERE name = 'resent')
FROM outbox WHERE sent_ms IS NULL AND seq > ? ORDER BY seq LIMIT ?;

-- name: backlog
SELECT count(*), min(created_ms) FROM outbox WHERE sent_ms IS NULL;

-- name: written
-- In one statement: in between, rows could be noted as sent, or be taken back.
SELECT n + (SELECT count(*) FROM outbox WHERE sent_ms IS NULL) FROM counter WHERE name = 'published';

-- name: of_user
SELECT seq, event_id, version, body, created_ms, entry_id, sent_ms FROM outbox WHERE user_id = ?
ORDER BY version DESC LIMIT ?;

-- name: counter
SELECT n FROM counter WHERE name = ?;

-- name: add_to_counter
UPDATE counter SET n = n + ? WHERE name = ?;

-- name: last_place
SELECT coalesce(max(place), 0) FROM outbox WHERE place IS NOT NULL;

-- name: mark_sent
UPDATE outbox SET entry_id = ?, sent_ms = ?, place = ? WHERE seq = ? AND sent_ms IS NULL;

-- name: mark_run_sent
-- Rows that follow one another: when, the first one's place, its seq, and the entry ids in a JSON array.
UPDATE outbox SET sent_ms = ?1, place = ?2 + sent.key, entry_id = sent.value
FROM json_each(?4) AS sent WHERE outbox.seq = ?3 + sent.key AND sent_ms IS NULL;

-- name: count_round_trip
-- The place that the newest round trip begins with, and how many rows it has published.
UPDATE counter SET n = CASE name WHEN 'round_trip' THEN ?1 ELSE n + ?2 END WHERE name IN ('round_trip', 'published');

-- name: sending_state
-- A round trip adds places at the end; who makes room there first counts what is sent again.
SELECT coalesce((SELECT max(place) FROM outbox WHERE place IS NOT NULL), 0), n FROM counter WHERE name = 'resent';

-- name: newest_sent
-- Of the newest round trip the first and the last row, and the last one before it.
SELECT place, entry_id, sent_ms, body FROM outbox WHERE place IN (
    (SELECT max(place) FROM outbox WHERE place IS NOT NULL),
    (SELECT min(place) FROM outbox WHERE place >= (SELECT n FROM counter WHERE name = 'round_trip')),
    (SELECT max(place) FROM outbox WHERE place < (SELECT n FROM counter WHERE name = 'round_trip'))
) ORDER BY place DESC;

-- name: sent_below
SELECT place, entry_id, sent_ms, body FROM outbox WHERE place < ? ORDER BY place DESC LIMIT ?;

-- name: sent_after
SELECT place, event_id, entry_id FROM outbox WHERE place > ? ORDER BY place LIMIT ?;

-- name: take_back
UPDATE outbox SET entry_id = NULL, sent_ms = NULL, place = NULL WHERE place >= ? AND place < ?;

-- name: oldest_sent
SELECT seq, entry_id, sent_ms FROM outbox WHERE place IS NOT NULL ORDER BY place LIMIT ?;

-- name: forget
DELETE FROM outbox WHERE seq = ?;

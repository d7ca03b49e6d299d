-- name: set_tables_version
-- How many of the scripts for the effects' own tables were run. Counted apart from the schema of the inbox itself.
-- A program that knows fewer may be migrating beside one that knows more.
INSERT INTO meta (key, value) VALUES ('tables_version', ?)
ON CONFLICT (key) DO UPDATE SET value = max(CAST(value AS INTEGER), excluded.value);

-- name: begin
SAVEPOINT imsync_effect;

-- name: take_back
ROLLBACK TO imsync_effect;

-- name: end
RELEASE imsync_effect;

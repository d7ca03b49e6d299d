"""The settings: which layer wins, where each value is from, and what a person is told when one is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from imsync.errors import ConfigError
from imsync.settings import Loaded, Settings, load, reference
from imsync.settings.model import bounds, fields, tables

SECRET = "hunter2-S3cr3t"
REFERENCE = Path(__file__).parents[2] / "config.toml"


class Here:
    """A folder to start imsync in, with a home of its own that nothing is configured in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.cwd = folder / "cwd"
        self.cwd.mkdir()
        self.file = self.cwd / "imsync.toml"

    def write(self, text: str | bytes, name: str = "imsync.toml", mode: int = 0o644) -> Path:
        path = self.cwd / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        return path

    def load(
        self,
        flags: Mapping[str, object] | None = None,
        environ: Mapping[str, str] | None = None,
        default_file: Path | None = None,
    ) -> Loaded:
        return load(flags or {}, environ or {}, self.cwd, default_file)

    def refuse(
        self, flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None
    ) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            self.load(flags, environ)
        error = caught.value
        for text in (str(error), error.hint):
            assert SECRET not in text
            assert text.isprintable(), "one line, nothing that drives a terminal"
        return error


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """A fresh folder and home."""
    here = Here(tmp_path)
    monkeypatch.setenv("HOME", str(here.home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here.home / "conf"))
    monkeypatch.setenv("XDG_DATA_HOME", str(here.home / "data"))
    return here


# --- precedence and origins -------------------------------------------------------------------------------


def test_without_anything_given_all_is_default(here: Here) -> None:
    loaded = here.load()
    assert loaded.settings == Settings()
    assert loaded.file is None
    assert loaded.origins == dict.fromkeys(fields(), "default")
    assert loaded.settings.data_dir == here.home / "data" / "imsync"


@pytest.mark.parametrize("layers", range(4))
def test_each_layer_wins_over_those_below(here: Here, layers: int) -> None:
    environ: dict[str, str] = {}
    flags: dict[str, object] = {}
    expected, origin = 5000, "default"
    if layers >= 1:
        here.write("[consumer]\nbatch = 1\n")
        expected, origin = 1, str(here.file)
    if layers >= 2:
        environ["IMSYNC_CONSUMER_BATCH"] = "2"
        expected, origin = 2, "environment IMSYNC_CONSUMER_BATCH"
    if layers >= 3:
        flags["consumer.batch"] = 3
        expected, origin = 3, "flag --batch"
    loaded = here.load(flags, environ)
    assert loaded.settings.consumer.batch == expected
    assert loaded.origins["consumer.batch"] == origin
    assert loaded.settings.relay.batch == 1000, "the neighbour of the same name is untouched"
    assert loaded.origins["relay.batch"] == "default"


def test_every_setting_can_be_given_in_the_file_and_in_the_environment(here: Here) -> None:
    samples: dict[str, object] = {
        "url": "rediss://redis.example:6380/2",
        "username": "imsync",
        "tls_ca_file": "/ca.pem",
        "data_dir": "/data",
        "prefix": "p:1",
        "log_format": "json",
        "log_level": "info",
        "consumer.batch": 7,
        "consumer.block_ms": 8,
        "consumer.heartbeat_ms": 109,
        "consumer.max_attempts": 10,
        "consumer.stop_deadline_seconds": 1.5,
        "relay.batch": 11,
        "relay.poll_ms": 12,
        "relay.keep_sent_hours": 12.5,
        "retention.hours": 1.25,
        "retention.entries": 14,
        "retention.min_hours": 0.5,
        "store.busy_timeout_ms": 13,
    }
    assert samples.keys() == fields().keys() - {"password", "password_file"}
    environ = {"IMSYNC_" + key.replace(".", "_").upper(): str(value) for key, value in samples.items()}
    assert len(environ) == len(samples)
    from_environment = here.load(environ=environ)
    here.write("".join(f"{key} = {json.dumps(value)}\n" for key, value in samples.items()))
    from_file = here.load()
    assert from_file.settings == from_environment.settings
    for key, value in samples.items():
        assert from_file.settings.public()[key] == value
        assert from_file.origins[key] == str(here.file)
        assert from_environment.origins[key] == "environment IMSYNC_" + key.replace(".", "_").upper()


def test_an_empty_variable_is_a_value(here: Here) -> None:
    here.write('url = "redis://host"\ntls_ca_file = "/ca.pem"\n')
    loaded = here.load(environ={"IMSYNC_URL": "", "IMSYNC_TLS_CA_FILE": ""})
    assert loaded.settings.url == ""
    assert loaded.settings.tls_ca_file is None
    assert loaded.origins["url"] == "environment IMSYNC_URL"


def test_a_flag_that_is_none_was_not_given(here: Here) -> None:
    assert here.load({"url": None, "config": None}).origins["url"] == "default"


def test_variables_that_are_no_settings_are_left_alone(here: Here) -> None:
    others = ("IMSYNC_DEBUG", "IMSYNC_TEST_SEED", "IMSYNC_COMPLETE", "_IMSYNC_COMPLETE", "PATH", "imsync_x")
    assert here.load(environ=dict.fromkeys(others, "1")).settings == Settings()


def test_settings_are_frozen_strict_and_show_no_secret(here: Here) -> None:
    loaded = here.load(environ={"IMSYNC_URL": f"redis://u:{SECRET}@h"})
    assert SECRET not in repr(loaded)
    loaded = here.load(environ={"IMSYNC_PASSWORD": SECRET})
    assert SECRET not in repr(loaded)
    with pytest.raises(ValidationError):
        loaded.settings.url = "redis://h"
    for wrong in ({"consumer": {"batch": "7"}}, {"unknown": 1}, {"url": f"http://u:{SECRET}@h"}):
        with pytest.raises(ValidationError) as caught:
            Settings.model_validate(wrong)
        assert SECRET not in str(caught.value)


# --- which file -------------------------------------------------------------------------------------------


def test_which_file_is_read(here: Here) -> None:
    def prefix(environ: Mapping[str, str] | None = None, config: object = None) -> str:
        loaded = here.load({"config": config}, environ, default_file=checkout)
        assert loaded.origins["prefix"] == ("default" if loaded.file is None else str(loaded.file))
        return loaded.settings.prefix

    checkout = here.folder / "config.toml"
    here.write('prefix = "trap"\n', "config.toml")
    assert prefix() == "imsync", "somebody's ./config.toml is not ours"
    checkout.write_text('prefix = "checkout"\n')
    assert prefix() == "checkout"
    user = here.home / "conf" / "imsync" / "config.toml"
    user.parent.mkdir(parents=True)
    user.write_text('prefix = "user"\n')
    assert prefix() == "user"
    here.write('prefix = "folder"\n')
    assert prefix() == "folder"
    here.write('prefix = "environment"\n', "e.toml")
    assert prefix({"IMSYNC_CONFIG": "e.toml"}) == "environment"
    flag = here.write('prefix = "flag"\n', "f.toml")
    assert prefix({"IMSYNC_CONFIG": "e.toml"}, Path("f.toml")) == "flag"
    assert prefix({"IMSYNC_CONFIG": "e.toml"}, str(flag)) == "flag"
    assert here.load(environ={"IMSYNC_CONFIG": "/dev/null"}).settings == Settings()


def test_a_named_file_must_exist(here: Here) -> None:
    here.write("")
    error = here.refuse({"config": Path("gone.toml")})
    assert error.message == f"flag --config: {here.cwd}/gone.toml does not exist"
    assert error.hint == "`imsync config init` writes one to start from"
    assert error.exit_code == 2
    error = here.refuse(environ={"IMSYNC_CONFIG": "/gone.toml"})
    assert error.message == "environment IMSYNC_CONFIG: /gone.toml does not exist"
    error = here.refuse(environ={"IMSYNC_CONFIG": ""})
    assert error.message == "environment IMSYNC_CONFIG: the config file must be a path, and not empty"


def test_files_that_cannot_be_read(here: Here) -> None:
    here.file.mkdir()
    assert here.refuse().message == f"{here.file} cannot be read: Is a directory"
    here.file.rmdir()
    here.file.symlink_to("gone.toml")
    assert here.refuse().message == f"{here.file} cannot be read: No such file or directory"
    here.file.unlink()
    here.file.symlink_to(here.file)
    assert here.refuse().message.startswith(f"{here.file} cannot be read: ")
    here.file.unlink()
    here.write(b'prefix = "\xff"\n')
    assert here.refuse().message == f"{here.file} is not UTF-8 text"


def test_paths_start_where_they_are_written(here: Here) -> None:
    here.write('data_dir = "store"\ntls_ca_file = "~/ca.pem"\n', "conf/imsync.toml")
    environ = {"IMSYNC_CONFIG": "conf/imsync.toml"}
    settings = here.load(environ=environ).settings
    assert settings.data_dir == here.cwd / "conf" / "store"
    assert settings.tls_ca_file == here.home / "ca.pem"
    assert here.load(environ={**environ, "IMSYNC_DATA_DIR": "e"}).settings.data_dir == here.cwd / "e"
    assert here.load({"data_dir": Path("f")}, environ).settings.data_dir == here.cwd / "f"


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_windows_line_ends_and_byte_order_mark(here: Here, bom: bytes) -> None:
    here.write(bom + b'prefix = "p"\r\n[relay]\r\nbatch = 2\r\n')
    settings = here.load().settings
    assert (settings.prefix, settings.relay.batch) == ("p", 2)


def test_without_a_home_folder_the_data_folder_must_be_given(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    error = here.refuse()
    assert error.message == "data_dir has no default, because there is no home folder"
    assert error.hint == "give --data-dir"
    assert here.load({"data_dir": Path("d")}).settings.data_dir == here.cwd / "d"


# --- what a person is told --------------------------------------------------------------------------------

WHOLE = "must be a whole number from 1 to 10000"
DEADLINE = "consumer.stop_deadline_seconds must be a number from 0.1 to 3600"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("a = 1\nurl = \n", ":2:7: Invalid value", ""),
        ("prefix", ":1:7: Expected '=' after a key in a key/value pair at the end of the file", ""),
        ('url = """\nx', ":2:2: Unterminated string at the end of the file", ""),
        ("[store]\n\n[store]\n", ":3:7: Cannot declare ('store',) twice", ""),
        ("prefix = " + "9" * 5000, " is not usable as TOML: a number or a nesting in it is too large", ""),
        ("prefix = " + "[" * 9999, " is not usable as TOML: a number or a nesting in it is too large", ""),
        ("[consumer]\nbach = 1", ":2: unknown key 'consumer.bach'", "did you mean 'consumer.batch'?"),
        ("consumer.bach = 1", ":1: unknown key 'consumer.bach'", "did you mean 'consumer.batch'?"),
        ("\n[ consumr ]\nbatch = 1", ":2: unknown key 'consumr'", "did you mean 'consumer'?"),
        ("batch = 1", ":1: unknown key 'batch'", "did you mean 'consumer.batch' or 'relay.batch'?"),
        ("relay.block_ms = 1", ":1: unknown key 'relay.block_ms'", "did you mean 'consumer.block_ms'?"),
        ("data-dir = 'x'", ":1: unknown key 'data-dir'", "did you mean 'data_dir'?"),
        ("zzz = 1", ":1: unknown key 'zzz'", "`imsync config show` lists every setting"),
        ('"a\\u001b[2J\\n" = 1', ": unknown key 'a\\x1b[2J\\n'", "`imsync config show` lists every setting"),
        ('"consumer.batch" = 1', ": unknown key '\"consumer.batch\"'", "did you mean 'consumer.batch'?"),
        ("consumer = 5", ":1: consumer must be a table, [consumer]", ""),
        ("[[relay]]\nbatch = 1", ":1: relay must be a table, [relay]", ""),
        ("[consumer]\nbatch = 0", f":2: consumer.batch {WHOLE}", ""),
        ("[consumer]\nbatch = 10001", f":2: consumer.batch {WHOLE}", ""),
        ("[consumer]\nbatch = 99999999999999999999", f":2: consumer.batch {WHOLE}", ""),
        ("[consumer]\nbatch = 5.0", f":2: consumer.batch {WHOLE}", ""),
        ("[consumer]\nbatch = true", f":2: consumer.batch {WHOLE}", ""),
        ('consumer = {batch = "5"}', f": consumer.batch {WHOLE}", "write the number without quotes"),
        ("[consumer]\nbatch = [5]", f":2: consumer.batch {WHOLE}", ""),
        ("consumer.stop_deadline_seconds = inf", f":1: {DEADLINE}", ""),
        ("consumer.stop_deadline_seconds = nan", f":1: {DEADLINE}", ""),
        (f"consumer.stop_deadline_seconds = 1{'0' * 400}", f":1: {DEADLINE}", ""),
        ("url = 5", ":1: url must be text in quotes", ""),
        ("[url]\na = 1", ":1: url must be text in quotes", ""),
        ("data_dir = 5", ":1: data_dir must be a path in quotes", ""),
        ('data_dir = ""', ":1: data_dir must be a path, and not empty", ""),
        ('data_dir = "a\\u0000"', ":1: data_dir must be a path, and not empty", ""),
        (
            'data_dir = "~no-such-user/x"',
            ":1: data_dir begins with the home folder of a user who has none",
            "",
        ),
        ('prefix = "a b"', ":1: prefix must be 1 to 64 letters, digits or any of . _ : -", ""),
        ('prefix = "a\\n"', ":1: prefix must be 1 to 64 letters, digits or any of . _ : -", ""),
        # events name their destination themselves
        ('destination = "user-update"', ":1: unknown key 'destination'", None),
        ("consumer.batch = 0\nbach = 1\nurl = 'x'", ":2: unknown key 'bach' (and 2 more)", None),
    ],
)
def test_what_is_wrong_in_a_file(here: Here, text: str, message: str, hint: str | None) -> None:
    here.write(text)
    error = here.refuse()
    assert error.message.startswith(f"{here.file}{message}")
    assert hint is None or error.hint == hint
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("variable", "value", "message", "hint"),
    [
        ("IMSYNC_CONSUMER_BATCH", "0", f"consumer.batch {WHOLE}", ""),
        ("IMSYNC_CONSUMER_BATCH", "", f"consumer.batch {WHOLE}", ""),
        ("IMSYNC_CONSUMER_BATCH", "5.0", f"consumer.batch {WHOLE}", ""),
        ("IMSYNC_CONSUMER_BATCH", "1_0", f"consumer.batch {WHOLE}", ""),
        ("IMSYNC_CONSUMER_BATCH", "9" * 5000, f"consumer.batch {WHOLE}", ""),
        (
            "IMSYNC_CONSUMER_STOP_DEADLINE_SECONDS",
            "soon",
            "consumer.stop_deadline_seconds must be a numb",
            "",
        ),
        ("IMSYNC_CONSUMER_STOP_DEADLINE_SECONDS", "nan", "consumer.stop_deadline_seconds must be a numb", ""),
        ("IMSYNC_DATA_DIR", "", "data_dir must be a path, and not empty", ""),
        ("IMSYNC_PASSWORD", SECRET + "\udcff", "password must be UTF-8 text", ""),
        ("IMSYNC_USERNAME", "\udcff", "username must be UTF-8 text", ""),
        ("IMSYNC_CONSUMER_BACH", "1", "there is no such setting", "did you mean 'IMSYNC_CONSUMER_BATCH'?"),
        ("IMSYNC_DATADIR", "1", "there is no such setting", "did you mean 'IMSYNC_DATA_DIR'?"),
        ("IMSYNC_CONFIGG", "1", "there is no such setting", "did you mean 'IMSYNC_CONFIG'?"),
        (
            "IMSYNC_BATCH",
            "1",
            "there is no such setting",
            "did you mean 'IMSYNC_CONSUMER_BATCH' or 'IMSYNC_RELAY_BATCH'?",
        ),
        ("IMSYNC_ZZZ", "1", "there is no such setting", "`imsync config show` lists every setting"),
        ("IMSYNC_", "1", "there is no such setting", "`imsync config show` lists every setting"),
    ],
)
def test_what_is_wrong_in_the_environment(here: Here, variable: str, value: str, message: str, hint: str) -> None:
    error = here.refuse(environ={variable: value})
    assert error.message.startswith(f"environment {variable}: {message}")
    assert error.hint == hint


def test_what_is_wrong_in_flags(here: Here) -> None:
    assert here.refuse({"consumer.batch": 0}).message == f"flag --batch: consumer.batch {WHOLE}"
    assert here.refuse({"bach": 0}).message == "flag --bach: unknown key 'bach'"
    assert here.refuse({"data_dir": ""}).message == "flag --data-dir: data_dir must be a path, and not empty"


def test_a_wrong_value_that_is_overridden_does_no_harm(here: Here) -> None:
    here.write("[consumer]\nbatch = 0\n")
    assert here.load(environ={"IMSYNC_CONSUMER_BATCH": "5"}).settings.consumer.batch == 5


# --- passwords --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [{"url": f"redis://u:{SECRET}@h"}, {"password": SECRET}])
def test_a_password_is_not_taken_from_the_command_line(here: Here, flags: dict[str, object]) -> None:
    error = here.refuse(flags)
    assert error.message == f"flag --{next(iter(flags))}: a password is not taken from the command line"
    assert error.hint == "use IMSYNC_PASSWORD"


def test_a_password_from_the_environment(here: Here) -> None:
    loaded = here.load(environ={"IMSYNC_PASSWORD": SECRET})
    assert loaded.settings.password.get_secret_value() == SECRET
    assert loaded.origins["password"] == "environment IMSYNC_PASSWORD"
    loaded = here.load(environ={"IMSYNC_URL": f"redis://u:{SECRET}@h:1/2"})
    assert loaded.settings.url == f"redis://u:{SECRET}@h:1/2"
    assert loaded.settings.public()["url"] == "redis://u:***@h:1/2"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o604, 0o644, 0o620, 0o601])
@pytest.mark.parametrize(
    ("line", "what"),
    [
        (f'password = "{SECRET}"', "password"),
        (f'url = "redis://:{SECRET}@h"', "a url with a password"),
        (f'url = "unix://u:{SECRET}@/s"', "a url with a password"),
    ],
)
def test_a_password_in_the_config_file_needs_mode_600(here: Here, line: str, what: str, mode: int) -> None:
    here.write(f"\n{line}\n", mode=mode)
    if mode in (0o600, 0o400):
        settings = here.load().settings
        assert settings.password.get_secret_value() == SECRET or SECRET in settings.url
        return
    for environ in ({}, {"IMSYNC_PASSWORD": "other", "IMSYNC_URL": "redis://h"}):
        error = here.refuse(environ=environ)
        assert error.message == f"{here.file}:2: {what} is refused, because others may read this file"
        assert error.hint == f"chmod 600 {here.file}, or use IMSYNC_PASSWORD or password_file"


def test_a_readable_config_file_without_a_password_is_fine(here: Here) -> None:
    here.write('url = "redis://user@h"\npassword = ""\n', mode=0o666)
    assert here.load().settings.public()["url"] == "redis://user@h"


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_password_file(here: Here, end: str) -> None:
    path = here.write(f" {SECRET} {end}", "pw", mode=0o600)
    here.write('password_file = "pw"\n')
    loaded = here.load()
    assert loaded.settings.password.get_secret_value() == f" {SECRET} "
    assert loaded.settings.password_file == path
    assert loaded.origins["password"] == str(path)
    assert loaded.origins["password_file"] == str(here.file)


def test_what_is_wrong_with_a_password_file(here: Here) -> None:
    environ = {"IMSYNC_PASSWORD_FILE": "pw"}
    path = here.cwd / "pw"
    start = f"environment IMSYNC_PASSWORD_FILE: password_file {path}"
    assert here.refuse(environ=environ).message == f"{start} cannot be read: No such file or directory"
    here.write("\n", "pw", mode=0o600)
    assert here.refuse(environ=environ).message == f"{start} is empty"
    here.write(SECRET.encode() + b"\xff", "pw", mode=0o600)
    assert here.refuse(environ=environ).message == f"{start} is not UTF-8 text"
    here.write(SECRET, "pw", mode=0o640)
    error = here.refuse(environ=environ)
    assert error.message == f"{start} is refused, because others may read it"
    assert error.hint == f"chmod 600 {path}"


def test_the_highest_layer_with_a_password_decides(here: Here) -> None:
    here.write("from the file", "pw", mode=0o600)
    here.write('password_file = "gone"\n')

    def password(environ: Mapping[str, str], flags: Mapping[str, object] | None = None) -> str:
        return here.load(flags, environ).settings.password.get_secret_value()

    assert password({"IMSYNC_PASSWORD": SECRET}) == SECRET
    assert password({"IMSYNC_PASSWORD": ""}) == ""
    assert password({"IMSYNC_PASSWORD_FILE": "pw"}) == "from the file"
    assert password({"IMSYNC_PASSWORD_FILE": "pw", "IMSYNC_PASSWORD": ""}) == "from the file"
    assert password({"IMSYNC_PASSWORD": SECRET}, {"password_file": Path("pw")}) == "from the file"
    error = here.refuse(environ={"IMSYNC_PASSWORD": SECRET, "IMSYNC_PASSWORD_FILE": "pw"})
    assert "password and password_file are both given" in error.message


def test_a_login_in_the_url_and_another_beside_it(here: Here) -> None:
    here.write('username = "other"\n')
    environ = {"IMSYNC_URL": f"redis://u:{SECRET}@h", "IMSYNC_PASSWORD": "x"}
    error = here.refuse(environ=environ)
    assert error.message == (
        "the password is given twice: in url (environment IMSYNC_URL) and in password "
        "(environment IMSYNC_PASSWORD) (and 1 more)"
    )
    assert error.hint == "keep one of them (IMSYNC_PASSWORD= switches the latter off)"
    assert here.load(environ={**environ, "IMSYNC_PASSWORD": "", "IMSYNC_USERNAME": ""}).settings.url


# --- what is shown, and the reference file ----------------------------------------------------------------


def test_public_is_json_with_dotted_keys_and_no_secrets(here: Here) -> None:
    shown = here.load().settings.public()
    assert shown.keys() == fields().keys()
    assert (shown["password"], shown["url"], shown["password_file"]) == ("", "", None)
    assert shown["data_dir"] == str(here.home / "data" / "imsync")
    shown = here.load(environ={"IMSYNC_PASSWORD": SECRET}).settings.public()
    assert shown["password"] == "***"
    assert SECRET not in json.dumps(shown)


def test_the_reference_file_is_the_rendered_one() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == reference(), (
        "python -c \"from imsync.settings import reference; print(reference(), end='')\" > config.toml"
    )


def test_the_reference_file_gives_exactly_the_defaults(here: Here) -> None:
    loaded = here.load(default_file=REFERENCE)
    assert loaded.file == REFERENCE
    assert loaded.settings == Settings()
    given_keys = {key for key, origin in loaded.origins.items() if origin == str(REFERENCE)}
    assert fields().keys() - given_keys == {"password", "password_file", "tls_ca_file", "data_dir"}


def test_the_examples_of_the_reference_file_are_valid(here: Here) -> None:
    lines = [line.removeprefix("# ") if " = " in line else line for line in reference().splitlines()]
    text = "\n".join(line for line in lines if not line.startswith("password"))
    here.write(text.replace("# password_file", "password_file"))
    assert here.load().settings.data_dir == here.home / ".local" / "share" / "imsync"


def test_every_setting_is_described_and_every_number_bounded() -> None:
    for key, info in fields().items():
        assert info.description, key
        assert info.description.endswith("."), key
        assert (info.annotation in (int, float)) == bool(bounds(info)), key
    assert tables().keys() == {"consumer", "relay", "retention", "store"}


def test_reading_the_settings_imports_neither_redis_nor_the_terminal() -> None:
    code = (
        "import sys; from pathlib import Path; from imsync.settings import load; load({}, {}, Path.cwd());"
        "print(sorted({'redis', 'rich', 'typer', 'pydantic_settings'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert ran.stdout == "[]\n"

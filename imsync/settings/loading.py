"""Gathers the settings from the config file, the environment and the flags, and remembers where each is from.

pydantic-settings could gather them too, but it takes 0.2 s to import and does not say where a value is from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from imsync.errors import ConfigError
from imsync.settings.files import line_of, parse_toml, problem, read_password, read_text
from imsync.settings.model import Settings, bounds, fields, tables
from imsync.settings.url import GOOD_URLS, split_url

_PREFIX = "IMSYNC_"
# Variables that are no settings: which file, tracebacks, the shell's completion, and the test suite's own.
_OTHER_VARIABLES = ("IMSYNC_CONFIG", "IMSYNC_DEBUG", "IMSYNC_COMPLETE")
_TEST_PREFIX = "IMSYNC_TEST_"
_WHERE_TO_LOOK = "`imsync config show` lists every setting"


@dataclass(frozen=True)
class Loaded:
    """The settings in force.

    Attributes:
        settings: the values.
        origins: for every dotted key (`consumer.batch`) where its value is from: `default`, the path of a
            file, `environment IMSYNC_CONSUMER_BATCH` or `flag --batch`.
        file: the config file that was read, if any.
    """

    settings: Settings
    origins: Mapping[str, str]
    file: Path | None


@dataclass(frozen=True)
class _Given:
    """One value of one layer. `place` is what messages call its origin: a file's has the line too."""

    value: object = field(repr=False)
    origin: str
    place: str


_Layer = dict[str, _Given]


def load(
    flags: Mapping[str, object], environ: Mapping[str, str], cwd: Path, default_file: Path | None = None
) -> Loaded:
    """Read the settings: defaults < config file < environment `IMSYNC_…` < flags.

    The config file is the one that the flag `config` or `IMSYNC_CONFIG` names, else `imsync.toml` in `cwd`,
    else `config.toml` in the user's configuration folder for imsync, else `default_file`. A file of the last
    three that does not exist is passed over. Relative paths in the file start at its folder, others at `cwd`.
    An empty variable is a value (`IMSYNC_URL=` means the embedded server), not an unset one.

    Args:
        flags: dotted key → value, of the options that were given. A None is an option that was not given.
        environ: the environment; only names that start with `IMSYNC_` are looked at.
        cwd: the current folder, absolute.
        default_file: the config file of last resort; a checkout's `cli.py` names its own.

    Raises:
        ConfigError: the first thing that is wrong, with the number of further ones. No message holds a
            password or a URL.
    """
    problems: list[ConfigError] = []
    file = _find_file(flags, environ, cwd, default_file)
    layers = [
        _from_file(file, problems) if file else {},
        _from_environment(environ, cwd, problems),
        _from_flags(flags, cwd, problems),
    ]
    given: _Layer = {}
    for layer in layers:
        given |= layer
    _choose_password(layers, given, problems)
    settings = _validate(given, cwd, problems)
    origins = {key: given[key].origin if key in given else "default" for key in fields()}
    if settings is not None and not problems:
        _refuse_two_logins(settings, origins, problems)
    if settings is None or problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ConfigError(problems[0].message + more, problems[0].hint)
    return Loaded(settings, origins, file)


def _find_file(
    flags: Mapping[str, object], environ: Mapping[str, str], cwd: Path, default_file: Path | None
) -> Path | None:
    named, by = flags.get("config"), "flag --config"
    if named is None:
        named, by = environ.get("IMSYNC_CONFIG"), "environment IMSYNC_CONFIG"
    if named is not None:
        try:
            file = _absolute(str(named), cwd)
        except ValueError as error:
            raise problem(f"{by}: the config file {error}") from None
        if not os.path.lexists(file):
            raise problem(f"{by}: {file} does not exist", "`imsync config init` writes one to start from")
        return file
    for candidate in (cwd / "imsync.toml", _user_file(), default_file):
        # A dangling link was meant to be read: it is an error, not an absent file.
        if candidate is not None and os.path.lexists(candidate):
            return candidate
    return None


def _user_file() -> Path | None:
    from platformdirs import user_config_path

    try:
        return user_config_path("imsync", appauthor=False) / "config.toml"
    except RuntimeError:  # no home folder
        return None


def _from_file(file: Path, problems: list[ConfigError]) -> _Layer:
    text, private = read_text(file)
    data = parse_toml(file, text)
    layer: _Layer = {}
    known, table_names = fields(), tables()

    def place(key: str) -> str:
        line = line_of(key, text)
        return f"{file}:{line}" if line else str(file)

    def take(prefix: str, items: Mapping[str, object]) -> None:
        for name, value in items.items():
            key = prefix + (f'"{name}"' if "." in name else name)
            if key in table_names and isinstance(value, dict):
                take(f"{name}.", value)
            elif key in table_names:
                problems.append(problem(f"{place(key)}: {key} must be a table, [{key}]"))
            elif key not in known:
                hint = _suggest(key, [*known, *table_names])
                problems.append(problem(f"{place(key)}: unknown key '{key}'", hint))
            else:
                _put(layer, key, value, str(file), place(key), file.parent, problems)

    take("", data)
    for key in ("password", "url"):
        if not private and key in layer and _holds_password(key, layer[key].value):
            what = "password" if key == "password" else "a url with a password"
            problems.append(
                problem(
                    f"{layer[key].place}: {what} is refused, because others may read this file",
                    f"chmod 600 {file}, or use IMSYNC_PASSWORD or password_file",
                )
            )
    return layer


def _from_environment(environ: Mapping[str, str], cwd: Path, problems: list[ConfigError]) -> _Layer:
    known = fields()
    variables = {_PREFIX + key.replace(".", "_").upper(): key for key in known}
    layer: _Layer = {}
    for variable in sorted(environ):
        if not variable.startswith(_PREFIX) or variable.startswith(_TEST_PREFIX):
            continue
        origin = f"environment {variable}"
        if variable in variables:
            key = variables[variable]
            try:
                value = _parse_number(environ[variable], known[key])
            except ValueError as error:
                problems.append(problem(f"{origin}: {key} {error}"))
            else:
                _put(layer, key, value, origin, origin, cwd, problems)
        elif variable not in _OTHER_VARIABLES:
            names = [*variables, *_OTHER_VARIABLES]
            problems.append(problem(f"{origin}: there is no such setting", _suggest(variable, names, _PREFIX)))
    return layer


def _from_flags(flags: Mapping[str, object], cwd: Path, problems: list[ConfigError]) -> _Layer:
    layer: _Layer = {}
    known = fields()
    for key, value in flags.items():
        origin = f"flag --{key.rpartition('.')[2].replace('_', '-')}"
        if value is None or key == "config":
            continue
        if key not in known:
            problems.append(problem(f"{origin}: unknown key '{key}'", _suggest(key, known)))
        elif _holds_password(key, value):
            # Every user of the machine can read the arguments of a process.
            problems.append(problem(f"{origin}: a password is not taken from the command line", "use IMSYNC_PASSWORD"))
        else:
            _put(layer, key, value, origin, origin, cwd, problems)
    return layer


def _put(
    layer: _Layer, key: str, value: object, origin: str, place: str, folder: Path, problems: list[ConfigError]
) -> None:
    kind = fields()[key].annotation
    if kind in (Path, Path | None) and isinstance(value, str | Path):
        try:
            empty = kind != Path and str(value) == ""
            value = None if empty else _absolute(str(value), folder)
        except ValueError as error:
            problems.append(problem(f"{place}: {key} {error}"))
            return
    layer[key] = _Given(value, origin, place)


def _choose_password(layers: list[_Layer], given: _Layer, problems: list[ConfigError]) -> None:
    """Let the highest layer that has `password` or `password_file` decide, and read the file."""
    for layer in reversed(layers):
        mentioned = [layer[key] for key in ("password", "password_file") if key in layer]
        chosen = [one for one in mentioned if one.value not in ("", None)]
        if len(chosen) == 2:
            problems.append(
                problem(f"{chosen[1].place}: password and password_file are both given", "keep one of them")
            )
        elif mentioned and not chosen:
            given["password"] = _Given("", mentioned[0].origin, mentioned[0].place)
        elif chosen and isinstance(chosen[0].value, Path):
            file = chosen[0].value
            try:
                password = read_password(file)
            except ConfigError as error:
                problems.append(problem(f"{chosen[0].place}: password_file {error.message}", error.hint))
            else:
                given["password"] = _Given(password, str(file), chosen[0].place)
        if mentioned:
            return


def _validate(given: _Layer, cwd: Path, problems: list[ConfigError]) -> Settings | None:
    nested: dict[str, dict[str, object]] = {name: {} for name in tables()}
    values: dict[str, object] = {**nested}
    for key, one in given.items():
        table, _, name = key.rpartition(".")
        (nested[table] if table else values)[name] = one.value
    try:
        settings = Settings.model_validate(values)
        if "data_dir" not in given:
            # Without a home folder, some versions of platformdirs return a path that starts with "~", others
            # raise RuntimeError.
            settings = settings.model_copy(update={"data_dir": _absolute(str(settings.data_dir), cwd)})
        return settings
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            key = ".".join(str(part) for part in detail["loc"])
            cause = detail.get("ctx", {}).get("error")
            words, hint = _expected(fields()[key]), ""
            if isinstance(cause, ValueError):
                words, hint = str(cause), GOOD_URLS if key == "url" else ""
            elif detail["type"] in ("int_type", "float_type") and isinstance(given[key].value, str):
                hint = "write the number without quotes"
            problems.append(problem(f"{given[key].place}: {key} {words}", hint))
    except (ValueError, RuntimeError):
        problems.append(problem("data_dir has no default, because there is no home folder", "give --data-dir"))
    return None


def _refuse_two_logins(settings: Settings, origins: Mapping[str, str], problems: list[ConfigError]) -> None:
    if not settings.url:
        return
    parts = split_url(settings.url)
    for key, in_url, apart in (
        ("password", parts.password, settings.password),
        ("username", parts.username, settings.username),
    ):
        if in_url and apart:
            where = f"in url ({origins['url']}) and in {key} ({origins[key]})"
            hint = f"keep one of them (IMSYNC_{key.upper()}= switches the latter off)"
            problems.append(problem(f"the {key} is given twice: {where}", hint))


def _holds_password(key: str, value: object) -> bool:
    if key == "password":
        return value != ""
    if key != "url" or not isinstance(value, str):
        return False
    try:
        return bool(split_url(value).password)
    except ValueError:
        return False


def _parse_number(text: str, info: FieldInfo) -> object:
    if info.annotation is int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise ValueError(_expected(info))
        return int(text)
    if info.annotation is float:
        try:
            return float(text)
        except ValueError:
            raise ValueError(_expected(info)) from None
    return text


def _expected(info: FieldInfo) -> str:
    if info.annotation is int:
        return f"must be a whole number from {bounds(info)}"
    if info.annotation is float:
        return f"must be a number from {bounds(info)}"
    return f"must be {'text' if info.annotation in (str, SecretStr) else 'a path'} in quotes"


def _absolute(path: str, folder: Path) -> Path:
    if not path or "\0" in path:
        raise ValueError("must be a path, and not empty")
    try:
        return folder / Path(path).expanduser()
    except RuntimeError:
        raise ValueError("begins with the home folder of a user who has none") from None


def _suggest(name: str, names: Iterable[str], prefix: str = "") -> str:
    from difflib import get_close_matches

    known = {one.removeprefix(prefix): one for one in names}
    wanted = name.removeprefix(prefix)
    # A key in the wrong table, or in none: `batch` is meant to be `consumer.batch` or `relay.batch`.
    bare = wanted.rpartition(".")[2]
    moved = [one for short, one in known.items() if re.split(r"[._]", short, maxsplit=1)[-1] == bare]
    close = moved or [known[short] for short in get_close_matches(wanted, known, n=1, cutoff=0.7)]
    return f"did you mean {' or '.join(repr(one) for one in close)}?" if close else _WHERE_TO_LOOK

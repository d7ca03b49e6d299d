"""`imsync config acl`: the users of few rights that a Redis server should have for imsync."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imsync.cli.run import Run, command

if TYPE_CHECKING:
    from imsync.bus.acl import Role

FORMATS = ("setuser", "aclfile", "json")


def register(config: typer.Typer) -> None:
    """Adds the command."""
    command(config, "acl")(acl)


def acl(
    run: Run,
    role: Annotated[
        str | None, typer.Option(help="Only this one: producer, consumer or operator.", show_default=False)
    ] = None,
    server: Annotated[
        str, typer.Option("--for", help="The server: 7.0 (Redis from there on, and Valkey), or 6.2.")
    ] = "7.0",
    format: Annotated[
        str, typer.Option(help="setuser: commands for redis-cli; aclfile: lines of users.acl; json.")
    ] = "setuser",
    password_file: Annotated[
        Path | None,
        typer.Option(help="A file with the password of that --role; its SHA-256 is printed.", show_default=False),
    ] = None,
    prompt: Annotated[bool, typer.Option("--prompt", help="Ask for each password; its SHA-256 is printed.")] = False,
) -> None:
    """Print the three least-privilege users of this prefix: a producer, a consumer, an operator.

    Without a password CHANGE-ME stands where it goes. Connects to nothing. For Redis 6.2 the rules are coarser: it
    cannot tie a command to a key, so that a consumer may also add to the stream.
    """
    from imsync.bus.acl import PLACEHOLDER, Dialect, Role, rules, user_name
    from imsync.bus.keys import Keys
    from imsync.errors import UsageError
    from imsync.im.events import DESTINATION

    def choice(what: str, given: str, choices: list[str]) -> str:
        if given not in choices:
            raise UsageError(f"no {what} {given[:40]!a}", f"one of {', '.join(choices)}")
        return given

    dialect = Dialect(choice("server version", server, list(Dialect)))
    format = "json" if run.as_json else choice("format", format, list(FORMATS))
    roles = list(Role) if role is None else [Role(choice("role", role, list(Role)))]
    if password_file is not None and (role is None or prompt):
        raise UsageError("--password-file holds one password", "name its user with --role, and leave out --prompt")
    passwords = {each: _password(each, password_file, prompt) for each in roles}
    keys = Keys(run.settings.prefix, DESTINATION)
    users = [
        (each, user_name(each, keys.prefix), ["on", passwords[each] or PLACEHOLDER, *rules(each, keys, dialect)])
        for each in roles
    ]
    if format == "json":
        run.out.row(
            {
                "prefix": keys.prefix,
                "server": str(dialect),
                "users": [{"role": str(each), "name": name, "rules": granted} for each, name, granted in users],
            }
        )
        return
    for _, name, granted in users:
        start = f"ACL SETUSER {name} reset" if format == "setuser" else f"user {name}"
        print(f"{start} {' '.join(granted)}")
    if not all(passwords.values()):
        run.out.note("put a password in the place of CHANGE-ME, or use --prompt")


def _password(role: Role, file: Path | None, prompt: bool) -> str:
    """The rule of a password; empty when none is given."""
    from imsync.bus.acl import password_rule
    from imsync.errors import UsageError
    from imsync.settings.files import read_password

    if file is not None:
        return password_rule(read_password(file))
    if not prompt:
        return ""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("nobody to ask for a password: no terminal", "use --password-file")
    password: str = typer.prompt(f"password of the {role}", hide_input=True, confirmation_prompt=True, err=True)
    return password_rule(password)

"""`imsync config show|init|acl`: the settings in force, a file to start from, and the server's users."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imsync.cli import config_acl
from imsync.cli.run import Run, command


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    config = typer.Typer(help="The configuration.", no_args_is_help=True)
    command(config, "show")(show)
    command(config, "init")(init)
    config_acl.register(config)
    app.add_typer(config, name="config")


def show(run: Run) -> None:
    """Show every setting with its value and where the value comes from."""
    values = run.settings.public()
    origins = run.loaded.origins
    if run.as_json:
        run.out.row(
            {
                "file": str(run.loaded.file) if run.loaded.file else None,
                "settings": {key: {"value": value, "origin": origins[key]} for key, value in values.items()},
            }
        )
        return
    run.out.table(
        ("setting", "value", "from"),
        [(key, "" if value is None else value, origins[key]) for key, value in values.items()],
    )


def init(
    run: Run,
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("imsync.toml"),
) -> None:
    """Write an annotated configuration file with the defaults. Never overwrites one."""
    from imsync.errors import UsageError
    from imsync.settings import reference

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(reference())
    except FileExistsError:
        raise UsageError(f"{path} exists already", "name another file") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", "name another file") from None
    path.chmod(0o600)
    run.out.result({"file": str(path.resolve())}, f"wrote {path}")

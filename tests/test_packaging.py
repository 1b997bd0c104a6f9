"""What is shipped: the wheel and the source archive are built offline, looked into, and used."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.xdist_group("packaging")  # everything is built once, by one process

ROOT = Path(__file__).resolve().parent.parent
PROFILES = sorted(path.name for path in (ROOT / "targets").glob("*.toml"))
MAKE = shutil.which("make")
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", "*.egg-info", "__pycache__", ".*_cache", ".data", "runs", "build", "dist"
)

# Prints where the profiles are found and which, and that the other data files are there.
LOOK = """
import edgeprune, edgeprune.bundle, edgeprune.demo, edgeprune.report
from importlib.resources import files
from pathlib import Path
from edgeprune.targets import find_target, list_targets, profiles_folder
from edgeprune.workload import load_workload
assert Path(edgeprune.__file__).resolve().is_relative_to({home!r}), edgeprune.__file__
assert find_target("host").name == "host"
assert files("edgeprune.demo").joinpath("digits.npz").is_file()
assert files("edgeprune.demo").joinpath("digits.safetensors").is_file()
assert files("edgeprune.report").joinpath("template.html").is_file()
assert files("edgeprune.bundle").joinpath("predict.cpp.jinja").is_file()
print(profiles_folder().resolve())
print(*(target.name + ".toml" for target in list_targets()))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The source archive, and the wheel that was built from what it holds."""

    archive: Path
    unpacked: Path
    wheel: Path


def build(hook: str, source: Path, output: Path) -> Path:
    """Call a hook of the build backend in a folder, as pip does; return the file it makes."""
    output.mkdir(exist_ok=True)
    code = f"from setuptools import build_meta; print(build_meta.{hook}({str(output)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output / done.stdout.splitlines()[-1]


def look(prepare: str, home: Path, folder: Path) -> tuple[Path, list[str]]:
    """Import edgeprune in a fresh interpreter that knows no installed edgeprune.

    Without the site module no .pth file is read, so an editable install of this checkout stays out of it.

    Args:
        prepare: Code that makes edgeprune importable.
        home: Where it must come from.
    """
    dependencies = f"sys.path.append({sysconfig.get_paths()['purelib']!r})"
    code = f"import sys\n{prepare}\n{dependencies}\n{LOOK.format(home=str(home.resolve()))}"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    where, which = done.stdout.splitlines()
    return Path(where), which.split()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree without what git ignores."""
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("copy") / "source", ignore=LEFT_OUT))


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    archive = build("build_sdist", checkout, folder / "dist")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    unpacked = folder / archive.name.removesuffix(".tar.gz")
    return Built(archive=archive, unpacked=unpacked, wheel=build("build_wheel", unpacked, folder / "dist"))


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed by pip into a folder of its own."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(folder)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    done = subprocess.run([*command, str(built.wheel)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_holds_the_whole_package_and_nothing_else(built: Built) -> None:
    names = {name for name in zipfile.ZipFile(built.wheel).namelist() if ".dist-info/" not in name}
    sources = [path for path in (ROOT / "edgeprune").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    expected = {str(path.relative_to(ROOT)) for path in sources}
    expected |= {f"edgeprune/_targets/{name}" for name in PROFILES}
    assert names == expected


def test_the_wheel_says_what_it_is(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        records = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}
        metadata = message_from_string(wheel.read(records["METADATA"]).decode())
        assert "edgeprune = edgeprune.cli:main" in wheel.read(records["entry_points.txt"]).decode()
        assert wheel.read(records["LICENSE"]) == (ROOT / "LICENSE").read_bytes()
    assert metadata["Name"] == "edgeprune"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "# edgeprune" in str(metadata.get_payload())
    assert {"tflite", "test"} <= set(metadata.get_all("Provides-Extra", []))


def test_the_licence_is_the_apache_licence_in_full() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_source_archive_builds_the_same_wheel(built: Built, checkout: Path, tmp_path: Path) -> None:
    direct = build("build_wheel", checkout, tmp_path / "dist")
    assert set(zipfile.ZipFile(direct).namelist()) == set(zipfile.ZipFile(built.wheel).namelist())


def test_profiles_are_found_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    where, which = look(f"sys.path.insert(0, {str(installed)!r})", installed, tmp_path)
    assert where == (installed / "edgeprune" / "_targets").resolve()
    assert which == PROFILES


def test_profiles_are_found_from_a_bare_checkout(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("bare") / "source", ignore=LEFT_OUT))
    where, which = look(f"sys.path.insert(0, {str(bare)!r})", bare, tmp_path)
    assert where == (bare / "targets").resolve()
    assert which == PROFILES


def test_profiles_are_found_from_an_editable_install(checkout: Path, tmp_path: Path) -> None:
    wheel = build("build_editable", checkout, tmp_path / "dist")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    where, which = look(f"import site; site.addsitedir({str(site)!r})", checkout, tmp_path)
    assert where.is_relative_to(checkout.resolve())
    assert which == PROFILES


def test_the_installed_command_runs(installed: Path, tmp_path: Path) -> None:
    code = "from edgeprune.cli import main; raise SystemExit(main(['targets', '--json']))"
    paths = [str(installed), sysconfig.get_paths()["purelib"]]
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {paths!r}; {code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"host"' in done.stdout
    assert list(tmp_path.iterdir()) == []


def requirements() -> list[Requirement]:
    """Return everything that setup.cfg asks for, extras included."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    return [Requirement(line) for text in lists for line in text.splitlines() if line]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(len(pin.specifier) == 1 and str(pin.specifier).startswith("==") for pin in found)
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in found}


def test_every_requirement_has_a_tested_version_inside_its_bounds() -> None:
    tested = pins()
    assert next(iter(tested.items())) == ("torch", "2.13.0")
    for requirement in requirements():
        assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), requirement


def test_torch_is_bounded_on_both_sides() -> None:
    torch = next(item for item in requirements() if item.name == "torch")
    versions = ("2.7.1", "2.8.0", "2.13.9", "2.14.0")
    assert [torch.specifier.contains(version) for version in versions] == [False, True, True, False]


@pytest.mark.skipif(MAKE is None, reason="make is not installed")
def test_make_says_what_it_can_do() -> None:
    done = subprocess.run([MAKE, "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["demo", "test", "lint", "clean"]


@pytest.mark.skipif(MAKE is None, reason="make is not installed")
def test_make_with_an_old_python_says_what_is_needed(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    programs = tmp_path / "programs"
    programs.mkdir()
    old = programs / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    assert MAKE is not None
    done = subprocess.run(
        [MAKE, "demo"], cwd=tmp_path, capture_output=True, text=True, check=False, env={"PATH": str(programs)}
    )
    assert done.returncode == 2
    assert "needs Python 3.11 or newer; python3 is Python 3.9.2" in done.stdout
    assert "fix:" in done.stdout
    assert not (tmp_path / ".venv").exists()

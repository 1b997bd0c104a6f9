"""The documents do not rot: commands, flags, settings, codes and links exist, and the README is followed literally."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from edgeprune import errors
from edgeprune.cli import cli
from edgeprune.config import load_config
from edgeprune.version import VERSION
from edgeprune.workload import OPTIONAL, REQUIRED

pytestmark = pytest.mark.xdist_group("readme")  # the README is followed once, by one process

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
FLAG = re.compile(r"(?<![\w-])(--[a-z][a-z-]*|-[a-z])(?![\w-])")
FOREIGN = ("pip", "torchrun", "apt-get", "python", "python3", "make", "pytest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block: its language and its text."""

    language: str
    text: str

    def commands(self) -> list[str]:
        """Return the command lines of a console block, without prompts, comments and output."""
        lines = [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]
        return [line.partition("  #")[0].strip() for line in lines]


def blocks(text: str) -> list[Block]:
    return [Block(language=language, text=body) for language, body in FENCE.findall(text)]


def flags_of(command: click.Command) -> set[str]:
    """Return every spelling of every flag that a command takes."""
    context = click.Context(command)
    return {name for option in command.get_params(context) for name in [*option.opts, *option.secondary_opts]}


def all_flags() -> set[str]:
    return flags_of(cli) | {flag for command in cli.commands.values() for flag in flags_of(command)} | {"-h", "--help"}


def console_lines() -> list[str]:
    """Return every edgeprune command line of every document."""
    found = []
    for path in DOCUMENTS:
        for block in blocks(path.read_text(encoding="utf-8")):
            lines = block.commands() if block.language == "console" else block.text.splitlines()
            if block.language in ("console", "bash"):
                found += [line for line in lines if "edgeprune" in shlex.split(line)]
    return found


def test_there_are_blocks_to_check() -> None:
    assert {block.language for block in blocks(README)} == {"bash", "python", "console"}
    assert len(console_lines()) > 5


@pytest.mark.parametrize("line", sorted(set(console_lines())))
def test_commands_in_documents_exist_with_their_flags(line: str) -> None:
    words = shlex.split(line)
    words = words[words.index("edgeprune") + 1 :]
    command = cli.commands[words[0]]
    used = {word.partition("=")[0] for word in words[1:] if word.startswith("-")}
    assert used <= flags_of(command) | {"-h", "--help"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_flag_that_is_mentioned_exists(path: Path) -> None:
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    spans = [span for span in SPAN.findall(prose) if span.split()[0] not in FOREIGN]
    assert {flag for span in spans for flag in FLAG.findall(span)} - all_flags() == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_settings_that_are_mentioned_are_accepted(path: Path) -> None:
    settings = re.findall(r"-s (?:\"([^\"]+)\"|([\w.]+=[^\s`)]+))", path.read_text(encoding="utf-8"))
    chosen = [quoted or plain for quoted, plain in settings if (quoted or plain) != "section.key=value"]
    assert load_config(None, chosen).to_toml()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert [link for link in links if not (path.parent / link).exists()] == []
    paths = re.findall(r"\b(?:benchmarks|tests|edgeprune|targets)/[\w/.]*\w", text)
    assert [name for name in paths if not (ROOT / name).exists() and not re.search(r"weights|/\.", name)] == []


def test_every_command_is_in_the_readme() -> None:
    table = set(re.findall(r"^\| `edgeprune (\w+)` \|", README, re.MULTILINE))
    assert table == set(cli.commands)


def test_every_function_of_a_workload_is_in_the_readme() -> None:
    assert set(re.findall(r"^\| `(\w+)\(", README, re.MULTILINE)) == {*REQUIRED, *OPTIONAL}


def test_the_exit_codes_are_those_of_the_errors() -> None:
    codes = {value.exit_code for _, value in inspect.getmembers(errors, inspect.isclass)}
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert table == codes | {0, 130}


def test_every_command_explains_itself_and_its_options() -> None:
    for name, command in cli.commands.items():
        assert command.help, name
        silent = [option.name for option in command.params if isinstance(option, click.Option) and not option.help]
        assert silent == [], name


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)$", README, re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_changelog_knows_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert headings[0] in ("Unreleased", VERSION)


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Do what the README says, in an empty folder: write its files, run its commands. Output by command."""
    folder = tmp_path_factory.mktemp("reader")
    said = {}
    for block in blocks(README):
        named = re.match(r"# (\w+\.py)\n", block.text)
        if block.language == "python" and named:
            (folder / named[1]).write_text(block.text)
        for line in block.commands() if block.language == "console" else []:
            words = shlex.split(line)
            start = ["-m", "edgeprune"] if words[0] == "edgeprune" else []
            done = run([*start, *words[1:]], folder)
            said[line] = done.stdout
    return folder, said


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done


def test_following_the_readme_gives_verified_files_and_a_verdict(followed: tuple[Path, dict[str, str]]) -> None:
    folder, said = followed
    result = next(text for line, text in said.items() if line.startswith("edgeprune compress"))
    assert "verdict:" in result
    assert "smaller" in result
    names = {path.name for path in (folder / "runs" / "net-r50").iterdir()}
    assert {"baseline.onnx", "baseline.tflite", "model.onnx", "model.tflite", "report.html"} <= names
    assert not any(name.endswith(".rejected") for name in names)
    assert (folder / "report.html").is_file()


def test_the_readme_network_is_worth_pruning(followed: tuple[Path, dict[str, str]]) -> None:
    _, said = followed
    assert float(re.findall(r"[\d.]+", said["python train.py"])[-1]) > 0.9
    assert "conv1" in next(text for line, text in said.items() if line.startswith("edgeprune inspect"))


def test_the_python_of_the_readme_runs(followed: tuple[Path, dict[str, str]]) -> None:
    folder, _ = followed
    unnamed = [block.text for block in blocks(README) if block.language == "python" and block.text[0] != "#"]
    assert len(unnamed) == 1
    said = run(["-c", unnamed[0]], folder).stdout
    assert said.split("\n")[-2] in ("faster", "slower", "no difference shown")
    assert (folder / "small.onnx").stat().st_size < (folder / "dense.onnx").stat().st_size

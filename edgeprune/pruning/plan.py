"""The plan: which blocks go, which units of every group stay. Plain JSON that can be read, edited, applied again."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.errors import ConfigError, ResolveError, StorageError
from edgeprune.values import Json, TensorSpec

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """The kept unit numbers of one group, ascending, in [0, units)."""

    units: int
    keep: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """Kept units per group, with the settings that led there and the inputs it was made for.

    `blocks` are the paths of modules that are removed whole; the groups are those of the network without them.
    """

    network: str
    groups: dict[str, GroupPlan]
    inputs: tuple[TensorSpec, ...]
    settings: Json
    blocks: tuple[str, ...] = ()

    @property
    def keep(self) -> dict[str, tuple[int, ...]]:
        """Kept units of the groups that lose some, by group name."""
        return {name: group.keep for name, group in self.groups.items() if len(group.keep) < group.units}

    @property
    def digest(self) -> str:
        """sha256 of what the plan does to a network: removed blocks, groups and kept units, nothing else."""
        content: Any = {name: [group.units, list(group.keep)] for name, group in sorted(self.groups.items())}
        if self.blocks:
            content = [sorted(self.blocks), content]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def as_dict(self) -> Json:
        return {
            "schema_version": SCHEMA_VERSION,
            "network": self.network,
            "settings": self.settings,
            "inputs": [spec.as_dict() for spec in self.inputs],
            **({"blocks": list(self.blocks)} if self.blocks else {}),
            "groups": {name: {"units": g.units, "keep": list(g.keep)} for name, g in self.groups.items()},
        }

    @classmethod
    def from_dict(cls, data: Json, source: str = "plan") -> PrunePlan:
        """Return the plan that a JSON object means.

        Raises:
            ConfigError: A key is missing or unknown, kept units are out of range, repeated or none, or blocks are no
                names.
        """
        try:
            if data["schema_version"] != SCHEMA_VERSION:
                raise ConfigError(
                    f"{source} has schema_version {data['schema_version']}, this version reads {SCHEMA_VERSION}"
                )
            _refuse_unknown(data, {"schema_version", "network", "settings", "inputs", "blocks", "groups"}, source)
            groups = {name: _group(name, entry, source) for name, entry in data["groups"].items()}
            return cls(
                network=str(data["network"]),
                groups=groups,
                inputs=tuple(TensorSpec.from_dict(spec) for spec in data["inputs"]),
                settings=dict(data["settings"]),
                blocks=_blocks(data.get("blocks", []), source),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"{source} is not a plan: {type(error).__name__}: {error}", fix="edgeprune prune writes one"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, atomically: one line per group, so that it can be edited.

        Raises:
            StorageError: The file cannot be written.
        """
        data = self.as_dict()
        groups = data.pop("groups")
        head = json.dumps(data, indent=1)[:-2]
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in groups.items())
        _write(Path(path), f'{head},\n "groups": {{\n{rows}\n }}\n}}\n')

    @classmethod
    def load(cls, path: str | Path) -> PrunePlan:
        """Read a plan.

        Raises:
            ResolveError: The file cannot be read.
            ConfigError: It is not a plan.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
        except OSError as error:
            raise ResolveError(f"cannot read plan {path}: {error.strerror}") from error
        except ValueError as error:  # also what the decoders of JSON and UTF-8 raise
            raise ConfigError(f"{path} is not JSON: {error}", where=str(path)) from error
        return cls.from_dict(data, str(path))


def _without_repeats(pairs: list[tuple[str, Any]]) -> Json:
    """Return a JSON object; json would silently keep the last of two entries with one name."""
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' stands there twice")
    return data


def _refuse_unknown(data: Json, known: set[str], source: str) -> None:
    unknown = sorted(set(data) - known)
    if unknown:
        raise ConfigError(f"{source} has an unknown key '{unknown[0]}'", fix=f"keys: {', '.join(sorted(known))}")


def _group(name: str, entry: Json, source: str) -> GroupPlan:
    units, keep = entry["units"], entry["keep"]
    _refuse_unknown(entry, {"units", "keep"}, f"{source}: group '{name}'")
    if type(units) is not int or not all(type(unit) is int for unit in keep):
        raise ConfigError(f"{source}: group '{name}' has units or kept units that are not whole numbers")
    if not keep or len(set(keep)) != len(keep) or min(keep) < 0 or max(keep) >= units:
        raise ConfigError(
            f"{source}: group '{name}' must keep different units between 0 and {units - 1}, at least one",
            fix=f"edit \"keep\" of '{name}'",
        )
    return GroupPlan(units=units, keep=tuple(sorted(keep)))


def _blocks(names: Any, source: str) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(type(name) is str and name for name in names):
        raise ConfigError(f'{source}: "blocks" is not a list of module paths', fix='such as  "blocks": ["layer1.1"]')
    if len(set(names)) < len(names):
        raise ConfigError(f'{source}: "blocks" names a module twice')
    return tuple(names)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {path}: {error.strerror}", fix="free space, or choose another folder"
        ) from error

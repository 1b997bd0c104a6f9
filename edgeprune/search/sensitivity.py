"""Sensitivity as data: what every group costs alone. Plain JSON that is written once and read by planning."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeprune.errors import ConfigError, ResolveError
from edgeprune.search.allocate import allocator, predicted
from edgeprune.search.curves import Curve
from edgeprune.values import Json

SCHEMA_VERSION = 1
FILE = "sensitivity.json"
Source = Literal["evaluate", "outputs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The loss of every set of linked groups at a few ratios, pruned alone.

    `metric` is named by `source`: the user's own from `evaluate`, or the relative error of the `outputs` against the
    dense network. `dense` is its value before pruning. A row of `groups` has `names`, `units`, `channels`,
    `macs_share`, `points` (each with `ratio` asked for, `removed`, `kept`, `value`, `loss`, `failed`) and `note`.
    `digests` tell what was measured.
    """

    network: str
    metric: str
    source: Source
    dense: float
    reconstructed: bool
    groups: tuple[Json, ...]
    settings: Json = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def curves(self) -> tuple[Curve, ...]:
        """One curve for every row."""
        return tuple(
            Curve(
                names=tuple(row["names"]),
                units=row["units"],
                measured=tuple((p["removed"], p["loss"]) for p in row["points"] if p["loss"] is not None),
            )
            for row in self.groups
        )

    def as_dict(self) -> Json:
        return {
            "schema_version": SCHEMA_VERSION,
            "network": self.network,
            "metric": self.metric,
            "source": self.source,
            "dense": self.dense,
            "reconstructed": self.reconstructed,
            "settings": self.settings,
            "digests": self.digests,
            "groups": list(self.groups),
        }

    @classmethod
    def from_dict(cls, data: Json, source: str = "sensitivity") -> Sensitivity:
        """Return the sensitivity that a JSON object means.

        Raises:
            ConfigError: A key is missing, or a value has the wrong type.
        """
        try:
            if data["schema_version"] != SCHEMA_VERSION:
                raise ConfigError(
                    f"{source} has schema_version {data['schema_version']}, this version reads {SCHEMA_VERSION}"
                )
            return cls(
                network=str(data["network"]),
                metric=str(data["metric"]),
                source=data["source"],
                dense=float(data["dense"]),
                reconstructed=bool(data["reconstructed"]),
                groups=tuple(_row(row) for row in data["groups"]),
                settings=dict(data["settings"]),
                digests=dict(data["digests"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"{source} is not a sensitivity: {type(error).__name__}: {error}",
                fix="edgeprune sensitivity WORKLOAD writes one",
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> Sensitivity:
        """Read a sensitivity from its file, or from the folder that holds it.

        Raises:
            ResolveError: The file cannot be read.
            ConfigError: It is not a sensitivity.
        """
        place = file_of(path)
        try:
            data = json.loads(place.read_text(encoding="utf-8"))
        except OSError as error:
            raise ResolveError(
                f"cannot read sensitivity {place}: {error.strerror}", fix="edgeprune sensitivity WORKLOAD writes one"
            ) from error
        except ValueError as error:
            raise ConfigError(f"{place} is not JSON: {error}", where=str(place)) from error
        return cls.from_dict(data, str(place))

    def check_fits(self, sizes: Mapping[str, int], *, gone: bool = False) -> None:
        """Check that this was measured on a network with these groups.

        Args:
            sizes: Units of every group, by name.
            gone: Groups may be missing, because blocks were removed.

        Raises:
            ConfigError: A group does not exist, or has another number of units.
        """
        fix = "edgeprune sensitivity WORKLOAD measures this network"
        for row in self.groups:
            for name in row["names"]:
                if name not in sizes and not gone:
                    raise ConfigError(
                        f"the sensitivity is of another network ({self.network}): there is no group '{name}'", fix=fix
                    )
                if sizes.get(name, row["units"]) != row["units"]:
                    raise ConfigError(
                        f"the sensitivity is of another network ({self.network}): "
                        f"group '{name}' had {row['units']} units, here {sizes[name]}",
                        fix=fix,
                    )

    def allocate(
        self, freed: Mapping[str, float], total: float, fixed: Iterable[str] = ()
    ) -> Callable[[float], dict[str, float]]:
        """Return a function from a share of the budget to the ratio of every measured group, as `allocator` does.

        Args:
            freed: What every group frees when it goes completely, by name; groups not named stay whole.
            total: What a share of one means.
            fixed: Groups that have a ratio of their own.
        """
        chosen = set(freed) - set(fixed)
        curves = [curve for curve in self.curves if chosen.issuperset(curve.names)]
        return allocator(curves, [sum(freed[name] for name in curve.names) for curve in curves], total)

    def predicted(self, ratios: Mapping[str, float]) -> float:
        """Return the summed loss that is expected for some ratios."""
        return predicted(self.curves, ratios)


def file_of(path: str | Path) -> Path:
    """Return the file that a path means: itself, or the one in a folder."""
    place = Path(path)
    return place / FILE if place.is_dir() else place


def _row(row: Any) -> Json:
    points = [
        {
            "ratio": float(point["ratio"]),
            "removed": float(point["removed"]),
            "kept": int(point["kept"]),
            "value": None if point["value"] is None else float(point["value"]),
            "loss": None if point["loss"] is None else float(point["loss"]),
            "failed": point["failed"],
        }
        for point in row["points"]
    ]
    if not row["names"] or not all(isinstance(name, str) for name in row["names"]):
        raise ValueError("a row without names")
    return {**row, "names": [*row["names"]], "units": int(row["units"]), "points": points}

"""The shape of the HTML report: what the template receives, already in words.

Owns the frozen values only; `tables.py` and `sections.py` fill them, the template arranges and escapes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edgeprune.report import quantities as q
from edgeprune.report.plots import Figure, Mark, Panel

Tone = Literal["plain", "good", "bad", "warn", "muted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One table cell; `minor` stands beside `text` in a quieter style."""

    text: str
    minor: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One table row: a heading cell, more cells, and a remark below them, such as why something failed."""

    head: Cell
    cells: tuple[Cell, ...]
    remark: str | None = None
    mark: Mark | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Rows of a table that belong together, under an optional heading."""

    lines: tuple[Line, ...]
    title: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table. The first title stands over the row headings; `words` numbers the columns that are not numbers."""

    titles: tuple[str, ...]
    blocks: tuple[Block, ...]
    words: tuple[int, ...] = (0,)

    @property
    def empty(self) -> bool:
        return not any(block.lines for block in self.blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFigure:
    """One number at the top: what it is, the value, and what it comes from."""

    label: str
    value: str
    detail: str
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Channels of one group before and after; widths are percent of the widest group."""

    name: str
    before: int
    after: int
    before_percent: float
    after_percent: float
    share: str
    note: str
    pinned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part that only some reports have: a caption with plots, and a table below them."""

    title: str
    caption: str
    panel: Panel
    table: Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparsity:
    """Single weights that were pruned: what they bring, by file and by layer."""

    note: str
    files: Table
    layers: Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradual:
    """Pruning during training: what happened in words, and the plots of it."""

    note: str
    steps: Panel
    training: Panel | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything the report shows of one run."""

    anchor: str
    name: str
    facts: tuple[str, ...]
    verdict: str
    passed: bool
    budgets: Table
    notices: tuple[tuple[str, str | None], ...]
    figures: tuple[KeyFigure, ...]
    artifacts: Table
    artifacts_note: str
    trade_off: Panel | None
    bars: tuple[Bar, ...]
    bars_note: str
    sparsity: Sparsity | None
    stages: Table
    splits: Table
    gradual: Gradual | None
    training: Panel
    samples: Panel
    cold: Table
    checks: Table
    checks_note: str
    all_checks: Table
    environment: tuple[tuple[str, str], ...]
    packages: tuple[tuple[str, str], ...]
    settings: tuple[tuple[str, str], ...]
    reproduce: tuple[str, ...]
    sections: tuple[Section, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A report: its runs and, where there are several, what compares them."""

    title: str
    facts: tuple[str, ...]
    runs: tuple[Run, ...]
    overview: Table | None
    fronts: tuple[tuple[str, Panel], ...]
    sections: tuple[Section, ...] = ()

    @property
    def figures(self) -> Iterator[Figure]:
        """All plots of the page."""
        for _, panel in self.fronts:
            yield from panel.figures
        for section in self.sections:
            yield from section.panel.figures
        for run in self.runs:
            for section in run.sections:
                yield from section.panel.figures
            for part in (run.trade_off, run.training, run.samples):
                if part is not None:
                    yield from part.figures


def measured(text: str, minor: str = "") -> Cell:
    """Return a cell of a number, muted where it says that nothing was measured."""
    return Cell(text=text, minor=minor, tone="muted" if text == q.NOT_MEASURED else "plain")

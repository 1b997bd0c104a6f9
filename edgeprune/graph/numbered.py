"""Calls of a network that runs again, by the numbers that the recorder gave them."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from edgeprune.graph.capture import UNNUMBERED
from edgeprune.graph.operators import operator_name


class NumberedCalls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts calls as the recorder did and hands each one that has a number to `call`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._index = -1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = operator_name(func)
        if name in UNNUMBERED:
            return func(*args, **(kwargs or {}))
        self._index += 1
        return self.call(self._index, name, func, args, kwargs or {})

    def call(self, index: int, base: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a call and return its result, in a class that has something to add.

        Args:
            index: As `Call.index`.
            base: The operator's base name.
        """
        return func(*args, **kwargs)

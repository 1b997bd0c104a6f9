"""Networks on disk: saved without pickle, shared tensors once, and opened again only where the files fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgeprune.errors import ResolveError
from edgeprune.pipeline.folders import (
    check_prune_output,
    load_state,
    open_network,
    read_program,
    save_state,
    write_program,
)

TINY = Path(__file__).parent / "workloads" / "tiny.py"


def test_a_shared_tensor_is_written_once_and_others_whole(tmp_path: Path) -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    base = torch.arange(8.0)
    state = model.state_dict() | {"front": base[:4], "back": base[4:], "empty": torch.zeros(0), "none": torch.zeros(0)}
    save_state(tmp_path / "w.safetensors", state)
    loaded = load_state(tmp_path / "w.safetensors")
    assert set(loaded) == {"0.weight", "front", "back", "empty", "none"}
    assert torch.equal(loaded["back"], base[4:])


def test_a_program_takes_other_batches(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    assert write_program(tmp_path / "p.pt2", model, (torch.randn(1, 1, 5, 5),)) is None
    program, inputs = read_program(tmp_path / "p.pt2")
    assert inputs[0].shape[1:] == (1, 5, 5)
    for batch in (1, 3):
        x = torch.randn(batch, 1, 5, 5)
        assert torch.allclose(program(x), model(x), atol=1e-6)


def test_a_network_without_a_program_says_why(tmp_path: Path) -> None:
    class Choosing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    reason = write_program(tmp_path / "p.pt2", Choosing(), (torch.randn(2, 2),))
    assert reason is not None
    assert "data-dependent" in reason.lower() or "Guard" in reason or "control flow" in reason
    assert not (tmp_path / "p.pt2").exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [("", "is not the reference"), ("schema_version = 2\nworkload = 'w.py'\n", "is not"), ("[oops", "cannot read")],
)
def test_a_damaged_reference_is_told(tmp_path: Path, content: str, text: str) -> None:
    (tmp_path / "network.toml").write_text(content)
    with pytest.raises(ResolveError, match=text):
        open_network(str(tmp_path))


def test_a_folder_without_a_network_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResolveError, match="holds no network"):
        open_network(str(tmp_path))
    with pytest.raises(ResolveError, match="has its own weights"):
        open_network(str(tmp_path), weights="w.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResolveError, match="is a file"):
        check_prune_output(tmp_path / "file", "w.py")


def test_the_dense_network_of_a_workload_is_repeatable() -> None:
    first, second = open_network(str(TINY)), open_network(str(TINY))
    assert first.plan is None
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert torch.equal(first.inputs[0], second.inputs[0])

"""Five precisions in two formats: how near the files are, what they say of themselves, and what is refused."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.errors import ConfigError, ModelError, StorageError, VerificationError
from edgeprune.export import export, read_artifact, read_record
from edgeprune.export import onnx as onnx_format
from edgeprune.export.opened import open_artifact
from edgeprune.export.quality import sqnr_db
from edgeprune.quantise import Quantisation
from edgeprune.values import PRECISIONS
from tests.export_networks import linear
from tests.quantised_networks import calibration, inputs, lowered, network

FORMATS = [".onnx", ".tflite"]
LEAST_DB = {"fp32": 100, "fp16": 50, "int8": 20, "int8-dynamic": 20, "int8-weights": 25}


def outputs(name: str, path: Path, count: int = 6) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return what a file and its network say of new samples."""
    given = inputs(name, count, seed=9)
    with torch.no_grad():
        known = network(name)(*given)
    leaves = list(known.values()) if isinstance(known, dict) else [known]
    return open_artifact(path).run_all([x.numpy() for x in given]), [leaf.numpy() for leaf in leaves]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["pictures", "words", "loud"])
def test_every_precision_is_near_its_network_and_says_what_it_is(name: str, precision: Any, suffix: str) -> None:
    path, exported = lowered(name, suffix, precision)
    for one, other in zip(*outputs(name, path), strict=True):
        if np.issubdtype(other.dtype, np.floating):
            assert sqnr_db(other, one) > LEAST_DB[precision]
        else:
            assert np.issubdtype(one.dtype, np.integer)  # TFLite has 32 bits where torch has 64
            assert (one == other).mean() > 0.6
    artifact, record = read_artifact(path), read_record(path)
    assert record is not None
    assert artifact.precision == exported.artifact.precision == record.values["precision"] == precision
    assert artifact.metadata["plan"] == "5f0c"
    assert (exported.quantisation is not None) == (precision == "int8")
    assert all(check.passed for check in exported.checks)
    if name == "loud" and precision != "fp32":  # the weights of the others are nothing beside what surrounds them
        assert artifact.size_bytes < 0.6 * lowered(name, suffix, "fp32")[0].stat().st_size


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_facts_of_int8_are_json_and_agree_with_the_file(suffix: str) -> None:
    _, exported = lowered("pictures", suffix, "int8")
    facts = exported.quantisation
    assert facts is not None
    assert json.loads(json.dumps(facts)) == facts
    assert set(facts["methods"]) >= {"minmax", "mse"}
    assert facts["sqnr_db"] >= 20


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("io", ["int8", "uint8"])
@pytest.mark.parametrize("name", ["pictures", "words"])
def test_integer_ends_round_trip_to_the_file_with_float_ends(name: str, io: Any, suffix: str) -> None:
    path, _ = lowered(name, suffix, "int8", io)
    opened, record = open_artifact(path), read_record(path)
    assert record is not None
    kinds = {info[2] for info in opened.infos()[0]}
    assert io in kinds
    assert kinds <= {io, "int64", "int32"}  # tokens are integers of their own and stay
    floats, _ = outputs(name, lowered(name, suffix, "int8")[0])
    integers, _ = outputs(name, path)
    for spec, one, other in zip(opened.outputs, floats, integers, strict=True):
        if not np.issubdtype(one.dtype, np.floating):
            assert (one == other).mean() > 0.6
            continue
        # Rounding the input before or inside the file is the same; so is the output, but for a step.
        step = record.quantisation[spec.name][0] if spec.name in record.quantisation else np.ptp(one) / 255
        assert np.abs(one - other).max() <= 1.01 * step


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("precision", "io"), [("fp32", "float32"), ("int8", "int8")])
def test_channels_last_changes_the_file_and_not_its_results(precision: Any, io: Any, suffix: str) -> None:
    path, exported = lowered("pictures", suffix, precision, io, "nhwc")
    assert [info[1][-3:] for info in open_artifact(path).infos()[0]] == [(8, 8, 3)]
    assert exported.artifact.inputs[0].shape[1:] == (8, 8, 3)
    assert exported.artifact.inputs[0].dtype == io
    for one, other in zip(*outputs("pictures", path), strict=True):
        assert one.shape == other.shape
        if np.issubdtype(other.dtype, np.floating):
            assert sqnr_db(other, one) > LEAST_DB[precision]


@pytest.mark.parametrize("suffix", FORMATS)
def test_inputs_whose_names_are_in_another_order_are_fed_right(suffix: str) -> None:
    """The tokens and the numbers of `words` have other shapes: a wrong order would not run, or not agree."""
    path, _ = lowered("words", suffix, "int8")
    assert [spec.name for spec in open_artifact(path).inputs] == ["tokens", "extra"]
    found, known = outputs("words", path)
    assert sqnr_db(known[0], found[0]) > 20


def test_two_inputs_of_one_shape_are_told_apart_in_every_candidate(tmp_path: Path) -> None:
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, zeta: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
            return self.b(alpha) - 3 * self.a(zeta)

    torch.manual_seed(0)
    model = Swapped().eval()
    data = [((torch.randn(8, 16) * 5, torch.randn(8, 16)),) for _ in range(5)]
    for suffix in FORMATS:
        exported = export(model, (torch.randn(1, 16), torch.randn(1, 16)), tmp_path / f"m{suffix}", precision="int8",
                          calibration=data, quantisation=Quantisation(equalise_db=-100))  # fmt: skip
        assert exported.quantisation is not None
        assert exported.quantisation["sqnr_db"] > 30
        assert exported.quantisation["kept"] == 0


def test_an_equalised_file_is_taken_where_it_is_better(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    model[0].weight.data *= torch.logspace(-2, 2, 32)[:, None]
    model[2].weight.data /= torch.logspace(-2, 2, 32)[None]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data, settings = [torch.randn(8, 16) for _ in range(6)], Quantisation(equalise_db=60, wanted_db=10)
    exported = export(model, (data[0][:1],), tmp_path / "m.onnx", precision="int8", calibration=data,
                      quantisation=settings, min_sqnr_db=10)  # fmt: skip
    facts = exported.quantisation
    assert facts is not None
    assert facts["equalised"]
    assert facts["sqnr_db"] > facts["methods"]["minmax"] + 3
    assert {f"{method}, equalised" for method in settings.methods} <= set(facts["methods"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    found = open_artifact(tmp_path / "m.onnx").run_all([data[0].numpy()])[0]
    assert sqnr_db(model(data[0]).detach().numpy(), found) > facts["methods"]["minmax"] + 3


def test_runs_do_not_leave_traces_in_the_next() -> None:
    path, _ = lowered("pictures", ".tflite", "int8")
    one, other = ([x.numpy() for x in inputs("pictures", 1, seed)] for seed in (3, 4))
    first, _, again = open_artifact(path).run_each([one, other, one])
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_float_file_saves_the_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any) -> None:
    source = lowered("pictures", ".onnx", "fp32")[0]
    before = source.read_bytes()

    def never(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(onnx_format, "convert_to_onnx", never)
    export(
        network("pictures"),
        inputs("pictures"),
        tmp_path / "m.onnx",
        precision=precision,
        source=source,
        calibration=calibration("pictures"),
        quantisation=Quantisation(equalise_db=-100),
    )
    assert source.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def _int8(path: Path, calibration: Any, **settings: Any) -> Any:
    model, example = linear()
    return export(model, example, path, precision="int8", calibration=calibration, **settings)


GOOD = [(torch.randn(4, 6, generator=torch.Generator().manual_seed(place)),) for place in range(12)]


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (None, ConfigError, "needs calibration data"),
        ([], ConfigError, "no samples"),
        ([torch.zeros(0, 6)], ConfigError, "no samples"),
        ([torch.randn(4, 7)], ModelError, r"batch 0: input 'input' has shape \(7,\)"),
        ([torch.randn(4, 6), torch.randn(4, 6).double()], ModelError, "batch 1: .*float64"),
        ([((torch.randn(4, 6), torch.randn(4, 6)),)], ModelError, "2 inputs, the network takes 1"),
        ([torch.full((4, 6), torch.nan)], ModelError, "not finite"),
        ([torch.full((4, 6), torch.inf)], ModelError, "not finite"),
        ([torch.ones(4, 6)] * 3, ConfigError, "is 1 everywhere"),
        ([{"x": torch.ones(4, 6)}], ModelError, "a dict"),
        (["abc"], ModelError, "str"),
    ],
)
def test_calibration_data_that_say_nothing_are_refused(tmp_path: Path, data: Any, kind: type, text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        _int8(tmp_path / "m.onnx", data)
    assert caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_few_samples_are_told(tmp_path: Path) -> None:
    assert [notice.code for notice in _int8(tmp_path / "m.onnx", GOOD).notices] == []
    few = _int8(tmp_path / "m.onnx", GOOD[:2])
    assert [notice.code for notice in few.notices] == ["few-samples"]
    assert "8 samples" in few.notices[0].text


def test_examples_outside_of_the_calibrated_range_are_told(tmp_path: Path) -> None:
    exported = _int8(tmp_path / "m.onnx", [(batch[0] * 0.01,) for batch in GOOD])
    assert [notice.code for notice in exported.notices] == ["calibration-range"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"precision": "fp32", "quantisation": Quantisation(io="int8")}, "float32 inputs and outputs"),
        ({"precision": "int8-weights", "quantisation": Quantisation(io="uint8")}, "float32 inputs and outputs"),
        ({"precision": "int9"}, "did you mean 'int8'"),
        ({"layout": "hwcn"}, "layout 'hwcn'"),
    ],
)
def test_requests_that_contradict_themselves_are_refused(tmp_path: Path, settings: Any, text: str) -> None:
    model, example = linear()
    with pytest.raises(ConfigError, match=text):
        export(model, example, tmp_path / "m.onnx", **settings)
    assert list(tmp_path.iterdir()) == []


def test_too_much_noise_leaves_the_file_as_rejected_with_its_verdict(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    target.write_bytes(b"the file of yesterday")
    with pytest.raises(VerificationError, match="dB"):
        _int8(target, GOOD, min_sqnr_db=150)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.rejected", "m.onnx.verify.json"]
    assert target.read_bytes() == b"the file of yesterday"


def test_operators_stay_in_float_until_the_caller_agrees(tmp_path: Path) -> None:
    asked = list[Path]()

    def accept(path: Path) -> bool:
        asked.append(path)
        return len(asked) > 1

    exported = _int8(tmp_path / "m.onnx", GOOD, quantisation=Quantisation(accept=accept, methods=("minmax",)))
    assert len(asked) >= 2
    assert exported.quantisation["kept"] >= 1
    assert "mixed-precision" in [notice.code for notice in exported.notices]


@pytest.mark.parametrize("suffix", FORMATS)
def test_all_operators_in_float_keep_float_ends_where_integers_were_asked_for(tmp_path: Path, suffix: str) -> None:
    path, settings = tmp_path / f"m{suffix}", Quantisation(io="int8", wanted_db=90.0, methods=("minmax",))
    exported = _int8(path, GOOD, quantisation=settings, min_sqnr_db=17)
    opened, record = open_artifact(path), read_record(path)
    assert exported.quantisation["floats"]
    assert record is not None
    found = opened.run([GOOD[0][0][:1].numpy()])[0]
    model, _ = linear()
    assert sqnr_db(model(GOOD[0][0][:1]).detach().numpy(), found) > 25
    floats = {info[0] for ends in opened.infos() for info in ends if info[2] == "float32"}
    assert floats.isdisjoint(record.quantisation)


@pytest.fixture
def small_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    data = [(torch.randn(8, 200),) for _ in range(4)]
    with pytest.raises(StorageError, match="cannot write"):
        export(nn.Linear(200, 200), (torch.randn(1, 200),), tmp_path / "m.onnx", precision="int8", calibration=data)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_tokens_beyond_the_table_are_the_datas_fault(tmp_path: Path, suffix: str) -> None:
    data = [((tokens + 50, extra),) for (tokens, extra), _ in calibration("words", 2)]
    with pytest.raises(ModelError, match="calibration sample"):
        export(network("words"), inputs("words"), tmp_path / f"m{suffix}", precision="int8", calibration=data,
               source=lowered("words", suffix, "fp32")[0])  # fmt: skip
    assert [path.suffix for path in tmp_path.iterdir()] in ([], [".log"])


def test_samples_of_one_batch_that_differ_in_number_are_told(tmp_path: Path) -> None:
    data = [((inputs("words", 4)[0], inputs("words", 2)[1]),)]
    with pytest.raises(ModelError, match=r"batch 0 has \[2, 4\] samples"):
        export(network("words"), inputs("words"), tmp_path / "m.onnx", precision="int8", calibration=data,
               source=lowered("words", ".onnx", "fp32")[0])  # fmt: skip

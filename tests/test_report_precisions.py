"""What the report and the tables say of files in other precisions than float32."""

from __future__ import annotations

import json
import re

from edgeprune.report import plots, render, sections, tables
from edgeprune.report.quantised import MOST_BARS, quantised_sections
from edgeprune.report.rows import rows_of
from edgeprune.report.stages import stage_text
from edgeprune.report.text import bench_table, compress_table
from edgeprune.values import Json
from tests import sample_results as sample


def _lowered() -> Json:
    return sample.lower(sample.result())


def test_rows_follow_each_other_by_format_role_and_precision() -> None:
    result = sample.lower(_lowered(), "fp16")
    names = [row.name for row in rows_of(result)]
    kinds = ("baseline", "model", "model.fp16", "model.int8")
    assert names == [f"{name}.{form}" for form in ("onnx", "tflite") for name in kinds]
    assert [row.sqnr_db for row in rows_of(result)][:4] == [None, None, 22.8, 22.8]
    assert [row.label for row in rows_of(result)][:4] == ["onnx", "onnx", "onnx fp16", "onnx int8"]


def test_decibels_are_those_of_the_users_inputs_against_the_network() -> None:
    result = _lowered()
    entry = result["artifacts"][4]
    entry["checks"].append(entry["checks"][0] | {"inputs": "random inputs", "sqnr_db": 2.0})
    entry["checks"].append(
        entry["checks"][0] | {"name": "model.int8.onnx against reference arithmetic", "sqnr_db": 1.0}
    )
    assert rows_of(result)[2].sqnr_db == 22.8
    entry["checks"].append(entry["checks"][0] | {"output": "other", "sqnr_db": 19.0})
    assert rows_of(result)[2].sqnr_db == 19.0
    for check in entry["checks"]:
        check["sqnr_db"] = None
    assert rows_of(result)[2].sqnr_db == 23.4


def test_precision_and_decibels_are_columns_only_where_there_are_several() -> None:
    plain = tables.artifacts(rows_of(sample.result()))
    assert "Precision" not in plain.titles
    found = tables.artifacts(rows_of(_lowered()))
    assert found.titles[:4] == ("File", "Precision", "SQNR", "Size")
    cells = {line.head.text: [cell.text for cell in line.cells] for block in found.blocks for line in block.lines}
    assert cells["model.int8.onnx"][:2] == ["int8", "22.8 dB"]
    assert cells["model.onnx"][:2] == ["fp32", "-"]
    assert all(len(row) == len(found.titles) - 1 for row in cells.values())
    text = compress_table(_lowered(), 160)
    assert "SQNR" in text
    assert "precision" not in text
    assert "SQNR" not in compress_table(sample.result(), 160)


def test_bench_shows_the_precision_where_names_do_not() -> None:
    result = _lowered()
    assert "precision" not in bench_table(result["measurements"], result["comparisons"], 160)
    for row in result["measurements"]:
        row["artifact"]["name"] = row["artifact"]["name"].replace(".int8.", ".small.")
    table = bench_table(result["measurements"], result["comparisons"], 160)
    (line,) = (line for line in table.splitlines() if "model.small.onnx" in line)
    assert "int8" in line


def test_a_refused_precision_is_a_row_with_its_reason() -> None:
    result = sample.result()
    result["refused"] = [sample.refusal()]
    table = compress_table(result, 160)
    (line,) = (line for line in table.splitlines() if line.startswith(" model.int8.onnx") and ":" not in line)
    assert line.split() == ["model.int8.onnx", "-", "-", "refused"]
    assert "model.int8.onnx refused: model.int8.onnx against the network: 'logits' has an SQNR of 3.1 dB" in table
    found = tables.artifacts(rows_of(result))
    assert [block.title for block in found.blocks] == ["ONNX Runtime 1.32.0, 1 thread", "TFLite 2.3.0, 1 thread"]
    refused = found.blocks[0].lines[-1]
    assert (refused.head.text, refused.cells[0].text) == ("model.int8.onnx", "int8")
    assert len(refused.cells) == len(found.titles) - 1
    assert refused.remark is not None
    assert refused.remark.startswith("refused: ")
    page = render(result)
    assert "limit 17 dB" in page
    assert len(tables.overview([result, sample.result("other")]).blocks) >= 2


def test_quantisation_shows_every_way_and_marks_the_one_that_was_taken() -> None:
    first, second = quantised_sections("q", _lowered())
    assert first.title == "Quantisation"
    assert first.table.titles == ("Ranges by", "SQNR", "Equalised channels")
    block = first.table.blocks[0]
    assert block.title == "model.int8.onnx: 23.4 dB, 1 operator stays in float32"
    cells = {line.head.text: [(cell.text, cell.minor) for cell in line.cells] for line in block.lines}
    assert cells == {
        "Min/max": [("14.2 dB", ""), ("-", "")],
        "Percentile": [("15.0 dB", ""), ("-", "")],
        "Entropy": [("16.1 dB", "taken"), ("15.9 dB", "")],
        "Squared error": [("15.8 dB", ""), ("-", "")],
    }
    assert [figure.title for figure in second.panel.figures] == ["model.int8.onnx", "model.int8.tflite"]
    lines = second.table.blocks[0].lines
    assert [line.head.text for line in lines] == ["classify_7", "Conv_1 to Conv_4", "Relu"]
    assert [line.cells[-1].text for line in lines] == ["float32", "int8", "int8"]
    assert [line.cells[2].text for line in lines] == ["16.8 dB", "23.4 dB", "exact"]
    (bars,) = second.panel.figures[0].data
    assert bars["x"] == [0.021, 0.0046, 0.0]
    assert len(set(bars["marker"]["color"])) == 2


def test_without_a_ranking_there_are_no_bars_and_without_int8_no_section() -> None:
    result = _lowered()
    for entry in result["artifacts"]:
        if entry.get("quantisation"):
            entry["quantisation"] = sample.quantisation(0) | {"methods": {"minmax": 31.0}, "method": "minmax"}
    (section,) = quantised_sections("q", result)
    assert section.panel.figures == ()
    assert section.table.titles == ("Ranges by", "SQNR")
    assert section.table.blocks[0].title == "model.int8.onnx: 23.4 dB"
    assert list(quantised_sections("q", sample.result())) == []
    assert list(quantised_sections("q", sample.lower(sample.result(), "fp16"))) == []


def test_many_parts_are_cut_and_names_are_disarmed() -> None:
    result = _lowered()
    facts = result["artifacts"][4]["quantisation"]
    names = [f"<script>alert({index})</script>" for index in range(60)]
    facts["ranking"] = [{"name": name, "kind": "Conv", "operators": 1, "noise": 0.5**i} for i, name in enumerate(names)]
    _, second = quantised_sections("q", result)
    (bars,) = second.panel.figures[0].data
    assert len(bars["x"]) == MOST_BARS
    assert second.panel.note is not None
    assert second.table.blocks[0].title == "model.int8.onnx, the dearest 48 of 60"
    assert "<script>" not in json.dumps(second.panel.figures[0].as_dict())
    page = render(result)
    embedded = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page)
    assert embedded is not None
    assert "run0-quantised-0" in json.loads(embedded.group(1))


def test_marks_of_other_precisions_are_named_beside_them() -> None:
    rows = rows_of(_lowered())
    points = [plots.Point(run=0, run_name="a", row=row, latency_s=row.latency["p50_s"]) for row in rows]
    panel = plots.trade_off("t", points, ["top1"])
    dots = [trace for trace in panel.figures[0].data if trace["mode"].startswith("markers")]
    assert [dot["text"] for dot in dots] == [[""], [""], ["int8"]] * 2
    assert [dot["mode"] for dot in dots] == ["markers", "markers", "markers+text"] * 2
    labels = [mark.label for mark in panel.legend]
    assert "model.onnx, model.int8.onnx" in labels
    page = sections.page([_lowered()])
    assert [figure.label for figure in page.runs[0].figures][:2] == ["ONNX Runtime", "ONNX Runtime int8"]


def test_a_finished_stage_says_what_became_of_a_precision() -> None:
    refused = {"refused": {"path": "model.int8.onnx", "message": "too noisy"}}
    assert stage_text("export", refused) == "no model.int8.onnx: too noisy"

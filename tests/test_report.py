"""The HTML report as a file: what it says, what it escapes, what it refuses."""

from __future__ import annotations

import html
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgeprune.errors import ConfigError, StorageError
from edgeprune.report import plots, render, sections, write_report
from edgeprune.report.html import EMBEDDED_BYTES, embed
from edgeprune.report.lanes import MOST_SAMPLES, clean_runs, latency_samples
from edgeprune.report.rows import rows_of
from tests import sample_results as sample

HOSTILE = '</script><script>hacked = 1</script><img src=x onerror="hacked=2"><!-- {{ 7*7 }} %{y} &lt;b&gt; \u2028 \x00'
MOST_BYTES = 6_000_000


@pytest.fixture(autouse=True)
def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the 5 MB of plotly.js out where the test is not about them."""
    monkeypatch.setattr("edgeprune.report.html._plotly", lambda: "/* plotly */ '</script>' ; '<!--'")


def embedded(text: str, name: str) -> Any:
    """Return the JSON of a script element, read as a browser reads it: up to the first end tag."""
    start = text.index(f'id="{name}">') + len(f'id="{name}">')
    return json.loads(text[start : text.index("</script", start)])


class Visible(HTMLParser):
    """Gathers the text outside of script and style, and every tag."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.text.append(data)


def visible(text: str) -> tuple[str, list[tuple[str, dict[str, str | None]]]]:
    parser = Visible()
    parser.feed(text)
    return " ".join(" ".join(parser.text).split()), parser.tags


def hostile_result() -> sample.Json:
    """A run in which everything that a user or a device can name is hostile."""
    result = sample.result(name=HOSTILE)
    result["network"]["name"] = result["workload"]["source"] = HOSTILE
    result["verdict"] = {
        "text": HOSTILE,
        "passed": False,
        "budgets": [{"kind": "size", "name": HOSTILE, "limit": 1.0, "measured": None, "passed": False}],
    }
    result["groups"][0]["name"] = result["groups"][3]["pinned"] = HOSTILE
    result["notices"] = [{"code": "x", "text": HOSTILE, "fix": HOSTILE}]
    result["reproduce"] = [HOSTILE]
    result["settings"][HOSTILE] = HOSTILE
    result["environment"]["cpu"] = HOSTILE
    for entry in result["artifacts"]:
        entry["metrics"] = {HOSTILE: 0.5}
    for record in result["history"]:
        record["train"] = record["validation"] = {HOSTILE: 0.5}
    result["measurements"][0]["runtime"]["name"] = result["measurements"][0]["device"]["cpu"] = HOSTILE
    result["artifacts"][0]["checks"][0].update(passed=False, output=HOSTILE, name=HOSTILE)
    return result


def test_the_report_says_what_the_run_found() -> None:
    shown, _ = visible(render(sample.result()))
    for words in (
        "digits-r50",
        "onnx 2.51x faster (2.47 to 2.55)",
        "ONNX Runtime 1.32.0, 1 thread",
        "model.tflite 150 kB 0.9861 35.2 µs ± 0.3 37.0 µs 2.51x ± 0.04 faster",
        "128 of 256 prunable channels were removed, in 3 of 4 groups.",
        "64 → 32",
        "model output at workload.py:72",
        "After BatchNorm recalibration 0.9208 0.3100",
        "model.onnx pruned network 4 of 4 2.4e-07 1.0e-04 equal",
        "governor, temperature, throttling not measured",
        "edgeprune compress workload.py --ratio 0.5 --target host",
    ):
        assert words in shown


def test_one_file_without_any_address_of_another() -> None:
    _, tags = visible(render([sample.result(), sample.result("other", 0.25, 0.6)]))
    assert not [attrs for _, attrs in tags if attrs.keys() & {"src", "href", "srcset", "data", "action"}]
    assert not [tag for tag, _ in tags if tag in ("link", "img", "iframe", "object", "base")]
    policies = [attrs["content"] for tag, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies
    assert all(policy is not None and policy.startswith("default-src 'none'") for policy in policies)


def test_hostile_names_stay_text() -> None:
    result = hostile_result()
    text = render(result)
    shown, tags = visible(text)
    assert [tag for tag, _ in tags].count("script") == 4
    assert not any(key.startswith("on") for _, attrs in tags for key in attrs)
    assert "img" not in {tag for tag, _ in tags}
    assert "</script><script>hacked = 1" in shown
    assert "{{ 7*7 }}" in shown
    assert embedded(text, "results")[0]["name"] == HOSTILE
    for figure in embedded(text, "figures").values():
        for trace in figure["data"]:
            assert not any("<script" in word or "<img" in word for word in trace.get("text", []))
            assert "hacked" not in trace.get("hovertemplate", "")
            assert "<script" not in trace.get("name", "")
        assert "<script" not in json.dumps(figure["layout"])


def test_plotly_cannot_end_its_own_script_element() -> None:
    text = render(sample.result())
    assert "/* plotly */ '<\\/script>' ; '<\\!--'" in text


def test_raw_results_are_embedded_whole_and_without_values_json_lacks() -> None:
    result = sample.result()
    result["metrics"]["dense"]["top1"] = math.nan
    (found,) = embedded(render(result), "results")
    assert found["metrics"]["dense"]["top1"] is None
    result["metrics"]["dense"]["top1"] = None
    assert found == json.loads(json.dumps(result))


def test_long_samples_are_thinned_and_say_so() -> None:
    result = sample.result()
    item = result["artifacts"][0]["artifact"]
    result["measurements"][0] = sample.measurement(item, "baseline", 1e-3, runs=12_000)
    (copy,), step = embed([result])
    assert step > 1
    assert len(json.dumps(copy["measurements"])) < EMBEDDED_BYTES * 1.3
    assert copy["measurements"][0]["samples"][0]["wall_s"] == result["measurements"][0]["samples"][0]["wall_s"][::step]
    assert copy["measurements"][0]["samples_kept_every"] == step
    assert "samples_kept_every" not in result["measurements"][0]
    shown, _ = visible(render(result))
    assert f"every {step}th is kept here" in shown
    assert f"At most {MOST_SAMPLES} runs of each process are drawn" in shown


def test_missing_values_are_named_not_zero() -> None:
    result = sample.result()
    result.update(measurements=[], comparisons=[], history=[], best_epoch=None, notices=[], verdict=None)
    result["metrics"] = dict.fromkeys(("dense", "pruned", "recalibrated", "finetuned"))
    for entry in result["artifacts"]:
        entry.update(metrics=None, metrics_source=None)
    shown, _ = visible(render(result))
    assert "baseline.onnx 428 kB not measured not measured –" in shown
    for words in (
        "No latency was measured, so there is nothing to plot.",
        "No metrics of the PyTorch network were measured.",
        "There was no fine-tuning in this run.",
        "No raw samples were recorded.",
        "No verdict was recorded.",
    ):
        assert words in shown


def test_a_failed_measurement_shows_its_error_and_no_number() -> None:
    result = sample.result()
    result["measurements"][1].update(
        dict.fromkeys(("latency", "cpu", "cold", "memory", "env", "aa")),
        quality="failed",
        samples=[],
        reasons=["the agent ended"],
        error={"message": "agent exited with 139", "fix": None},
    )
    result["comparisons"] = result["comparisons"][1:]
    result["measurements"][3].update(quality="noisy", reasons=["clean share 62 %"])
    shown, _ = visible(render(result))
    assert "model.onnx 154 kB 0.9861 failed – – failed: the agent ended; agent exited with 139" in shown
    assert "± 0.3 noisy" in shown
    assert "noisy: clean share 62 %" in shown


@pytest.mark.parametrize("key", ["cold", "memory", "aa", "env", "cpu"])
def test_any_part_of_a_measurement_may_be_missing(key: str) -> None:
    result = sample.result()
    for item in result["measurements"]:
        item[key] = None
    shown, _ = visible(render(result))
    assert "67.9 µs ± 0.6" in shown


def test_partial_intervals_and_histories_render() -> None:
    result = sample.result()
    result["measurements"][0]["latency"].update(ci95_s=None, p90_s=None, clock="cpu")
    result["history"][1]["validation"] = {}
    result["history"][2]["train"] = {"loss": None}
    result["artifacts"][1]["metrics"] = {"top1": None}
    result["best_epoch"] = None
    shown, _ = visible(render(result))
    assert "67.9 µs CPU time not measured" in shown


def test_a_failed_check_names_its_output() -> None:
    result = sample.result()
    result["artifacts"][1]["checks"][2].update(passed=False, max_rel=0.3)
    shown, _ = visible(render(result))
    assert "model.onnx pruned network 3 of 4 3.0e-01 1.0e-04 differs differs on output 'logits'" in shown


def test_budgets_are_shown_in_their_units() -> None:
    result = sample.result()
    result["verdict"].update(
        passed=False,
        budgets=[
            {
                "kind": "latency",
                "name": "latency p50 of model.onnx",
                "limit": 0.015,
                "measured": 0.0129,
                "passed": True,
            },
            {"kind": "size", "name": "size of model.onnx", "limit": 1e5, "measured": 154_000, "passed": False},
            {"kind": "drop", "name": "drop of top1", "limit": 0.01, "measured": None, "passed": False},
        ],
    )
    shown, _ = visible(render(result))
    assert "Budget missed." in shown
    assert "latency p50 of model.onnx 15.0 ms 12.9 ms met" in shown
    assert "size of model.onnx 100 kB 154 kB missed" in shown
    assert "drop of top1 0.0100 not measured missed" in shown


def test_several_runs_share_a_table_and_one_front_for_each_device() -> None:
    runs = [sample.result(), sample.result("digits-r75", 0.75, 0.16, 0.955), sample.result("on-a-pi", 0.25, 0.6)]
    for item in runs[2]["measurements"]:
        item.update(target="raspberry-pi-4", device={**item["device"], "id": "pi", "board": "Raspberry Pi 4"})
    page = sections.page(runs)
    assert [place for place, _ in page.fronts] == [
        "host (Intel Xeon 2.10 GHz), 1 thread",
        "raspberry-pi-4 (Raspberry Pi 4), 1 thread",
    ]
    assert page.overview is not None
    assert [line.head.text for line in page.overview.blocks[0].lines] == ["digits-r50", "digits-r75", "on-a-pi"]
    shown, tags = visible(render(runs))
    assert "3 runs" in shown
    assert [attrs for tag, attrs in tags if tag == "details" and attrs.get("class") == "run"] != []
    names = [figure.name for figure in page.figures]
    assert len(names) == len(set(names))


def test_every_run_of_a_plot_has_a_shape_of_its_own() -> None:
    marks = [plots.run_mark(run) for run in range(8)]
    assert len({color for color, _ in marks}) == len({shape for _, shape in marks}) == 8
    assert plots.DENSE not in marks
    assert plots.DENSE[1] not in {shape for _, shape in marks}


def test_figures_are_valid_plotly_figures() -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    page = sections.page([sample.result(), sample.result("other", 0.25, 0.6)])
    figures = [graph_objects.Figure(figure.as_dict()) for figure in page.figures]
    assert len(figures) >= 8
    assert all(len(figure.data) >= 1 for figure in figures)


def test_the_front_is_drawn_through_the_points_that_nothing_beats() -> None:
    result = sample.result()
    (trade_off,) = [run.trade_off for run in sections.page([result]).runs]
    assert trade_off is not None
    line = trade_off.figures[0].data[0]
    latencies = {item["artifact"]["name"]: item["latency"]["p50_s"] * 1e6 for item in result["measurements"]}
    assert line["x"] == pytest.approx([latencies["model.onnx"], latencies["baseline.onnx"]])
    assert line["y"] == [0.9861, 0.9944]


def test_training_curves_start_before_training_and_show_both_sides() -> None:
    result = sample.result()
    panel = plots.training("t", result["history"], result["metrics"], 2)
    assert [figure.title for figure in panel.figures] == [
        "training loss, validation cross_entropy_loss",
        "validation top1",
    ]
    dense, train, validation, ring = panel.figures[0].data
    assert dense["y"] == [0.041, 0.041]
    assert train["x"] == [1, 2, 3]
    assert validation["x"] == [0, 1, 2, 3]
    assert validation["y"][0] == 0.31
    assert (ring["x"], ring["y"]) == ([2], [validation["y"][2]])
    assert train["marker"]["symbol"] != validation["marker"]["symbol"]


def test_a_run_counts_when_it_had_a_core_to_itself() -> None:
    assert clean_runs({"wall_s": [1.0, 1.0], "cpu_s": [0.99, 0.97]}) == [True, False]
    assert clean_runs({"wall_s": [1.0, 1.0], "cpu_s": [2.0, 2.0], "switches": [1, 0]}) == [False, True]
    assert clean_runs({"wall_s": [1.0], "cpu_s": []}) == [True]


def test_lanes_mark_preempted_runs_and_count_what_lies_above() -> None:
    result = sample.result()
    item = result["measurements"][0]
    for sample_of_process in item["samples"]:
        sample_of_process.update(wall_s=[1e-3] * 99 + [5e-3], cpu_s=[1e-3] * 100)
    panel = latency_samples("s", rows_of({**result, "measurements": [item], "comparisons": []}))
    clean, lost, medians = panel.figures[0].data
    assert len(clean["y"]) == 5 * 99
    assert lost["y"] == [5000.0] * 5
    assert {y for y in medians["y"] if y is not None} == {1000.0}
    assert clean["marker"]["symbol"] != lost["marker"]["symbol"]
    assert panel.note == "5 slow runs lie above the plots, up to 5.00 ms."


def test_write_report_replaces_the_file_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    assert write_report([sample.result()], target) == target
    before = target.read_text(encoding="utf-8")
    assert before.startswith("<!doctype html>")

    def full(self: Path, *args: object, **kwargs: object) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="No space left on device"):
        write_report([sample.result("another")], target)
    assert target.read_bytes().decode("utf-8") == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_folder_that_does_not_exist_is_an_error_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as error:
        write_report(sample.result(), tmp_path / "none" / "report.html")
    assert error.value.fix is not None


def test_results_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(ConfigError, match="no result"):
        render([])
    with pytest.raises(ConfigError, match="schema version 99"):
        render({**sample.result(), "schema_version": 99})


def test_lone_surrogates_do_not_stop_the_report(tmp_path: Path) -> None:
    target = write_report(sample.result(name="a\ud800b"), tmp_path / "report.html")
    assert "<h1>a?b</h1>" in target.read_text(encoding="utf-8")


def test_titles_are_escaped_once() -> None:
    assert f"<h1>{html.escape('R&D <1>')}</h1>" in render(sample.result(name="R&D <1>"))


def test_the_whole_file_stays_below_six_megabytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from plotly.offline import get_plotlyjs

    monkeypatch.setattr("edgeprune.report.html._plotly", get_plotlyjs)
    result = sample.result()
    for index, entry in enumerate(result["artifacts"]):
        result["measurements"][index] = sample.measurement(entry["artifact"], entry["role"], 1e-3, runs=1000)
    path = write_report([result], tmp_path / "report.html")
    assert len(get_plotlyjs()) < path.stat().st_size < MOST_BYTES

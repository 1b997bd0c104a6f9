"""Results for the tests of the report: plausible, seeded, and changed by each test as it needs."""

from __future__ import annotations

import math
import random
from typing import Any

Json = dict[str, Any]
SCHEMA = 1


def spec(name: str, shape: list[int | None]) -> Json:
    return {"name": name, "shape": shape, "dtype": "float32", "low": 0.0, "high": 1.0}


def check(name: str, inputs: str, size: int, difference: float, passed: bool = True) -> Json:
    return {
        "name": name,
        "inputs": inputs,
        "batch_size": size,
        "max_abs": difference * 3,
        "max_rel": difference,
        "tolerance": 1e-4,
        "output": "logits",
        "passed": passed,
    }


def artifact(role: str, kind: str, size_bytes: int) -> Json:
    return {
        "path": f"runs/digits-r50/{role}.{kind}",
        "format": kind,
        "precision": "fp32",
        "sha256": f"{role}-{kind}".encode().hex().ljust(64, "0"),
        "size_bytes": size_bytes,
        "inputs": [spec("x", [None if kind == "onnx" else 1, 1, 8, 8])],
        "outputs": [spec("logits", [None if kind == "onnx" else 1, 10])],
        "metadata": {"edgeprune": "0.1.0"},
    }


def samples(rng: random.Random, p50_s: float, processes: int, runs: int) -> list[Json]:
    """Per process: a slightly different centre, a short warm tail, and now and then a preempted run."""
    out = []
    for process in range(processes):
        centre = p50_s * rng.uniform(0.985, 1.02)
        wall, cpu = [], []
        for run in range(runs):
            seconds = centre * (1 + abs(rng.gauss(0, 0.015)) + 0.04 * math.exp(-run / 6))
            lost = centre * rng.uniform(0.3, 6) if rng.random() < 0.03 else 0.0
            wall.append(round(seconds + lost, 9))
            cpu.append(round(seconds * rng.uniform(0.99, 1.0), 9))
        out.append({"process": process, "wall_s": wall, "cpu_s": cpu})
    return out


def measurement(item: Json, role: str, p50_s: float, *, runs: int = 60, seed: int = 0) -> Json:
    rng = random.Random(f"{item['path']} {seed}")
    onnx = item["format"] == "onnx"
    state = {
        "governor": None,
        "frequency_hz": [2.1e9, 2.4e9],
        "temperature_c": None,
        "throttled": None,
        "loadavg": [0.42, 0.5, 0.4],
        "steal_ticks": 12,
        "total_ticks": 90_000,
    }
    return {
        "schema_version": SCHEMA,
        "row_id": f"{role}-{item['format']}-{seed}",
        "occasion_id": f"occasion-{seed}",
        "time": "2026-11-20T10:21:07+00:00",
        "role": role,
        "artifact": {
            "name": item["path"].rpartition("/")[2],
            **{key: item[key] for key in ("sha256", "size_bytes", "format", "precision", "path")},
        },
        "target": "host",
        "device": {
            "id": "0f9c52b1a7de",
            "machine": "x86_64",
            "cpu": "Intel Xeon 2.10 GHz",
            "board": None,
            "cores": 2,
            "os": "Debian GNU/Linux 12",
            "kernel": "6.18.5",
            "emulated": False,
        },
        "runtime": {
            "name": "onnxruntime" if onnx else "tflite",
            "version": "1.32.0" if onnx else "2.3.0",
            "threads": 1,
        },
        "method": {"processes": 5, "min_runs": 50, "min_seconds": 1.0, "batch_size": 1},
        "latency": {
            "p10_s": p50_s * 0.98,
            "p50_s": p50_s,
            "p90_s": p50_s * 1.05,
            "p99_s": p50_s * 2.3,
            "min_s": p50_s * 0.96,
            "mean_s": p50_s * 1.1,
            "n": 5 * runs,
            "clean_share": 0.97,
            "ci95_s": [p50_s * 0.991, p50_s * 1.008],
            "clock": "wall",
        },
        "cpu": {"p50_s": p50_s * 0.996},
        "cold": {"import_s": 0.11, "load_s": 0.004, "first_s": p50_s * 9},
        "memory": {"rss_before_bytes": 41_000_000, "peak_rss_bytes": 48_500_000},
        "env": {"before": state, "after": {**state, "loadavg": [0.61, 0.5, 0.4]}},
        "quality": "ok",
        "reasons": [],
        "aa": {"ratio": 1.003, "ci95": [0.995, 1.01]},
        "samples": samples(rng, p50_s, 5, runs),
        "error": None,
    }


def comparison(baseline: Json, other: Json) -> Json:
    ratio = baseline["latency"]["p50_s"] / other["latency"]["p50_s"]
    return {
        "baseline_row": baseline["row_id"],
        "row": other["row_id"],
        "format": other["artifact"]["format"],
        "threads": 1,
        "clock": "wall",
        "ratio": ratio,
        "ci95": [ratio * 0.985, ratio * 1.015],
        "threshold": 0.03,
        "noise_floor": 0.01,
        "verdict": "faster" if ratio > 1.03 else "slower" if ratio < 0.97 else "no difference shown",
        "size_ratio": baseline["artifact"]["size_bytes"] / other["artifact"]["size_bytes"],
        "paired": True,
        "allowed": [],
    }


GROUPS = (
    ("stem.0", 64, 32, None, None, 0.79),
    ("block1.conv1", 64, 32, None, None, 0.90),
    ("down.pointwise", 128, 64, None, None, 0.09),
    ("classify", 10, 10, "model output", "workload.py:72", 0.0003),
)


def groups() -> list[Json]:
    return [
        {
            "name": name,
            "units_before": before,
            "units_after": after,
            "channels_before": before,
            "channels_after": after,
            "pinned": pinned,
            "where": where,
            "fix": None,
            "statistics": False,
            "params": before * 590,
            "macs_share": macs_share,
        }
        for name, before, after, pinned, where, macs_share in GROUPS
    ]


OUTPUT: Json = {"mode": "swapped", "captured": ["attend"], "reason": "the smaller network cannot run", "where": None}


def history(epochs: int = 3) -> list[Json]:
    return [
        {
            "epoch": epoch,
            "train": {"loss": 0.21 / (epoch + 0.4)},
            "validation": {"top1": 0.985 - 0.012 / epoch, "cross_entropy_loss": 0.16 / (epoch + 0.6)},
            "lr": 1e-3 * (1 - epoch / (epochs + 1)),
            "seconds": 1.4,
        }
        for epoch in range(1, epochs + 1)
    ]


def result(name: str = "digits-r50", ratio: float = 0.5, scale: float = 0.36, top1: float = 0.9861) -> Json:
    """A whole run: dense and pruned network, two formats, verified, measured and compared."""
    dense = {"onnx": (428_240, 67.9e-6), "tflite": (415_896, 88.4e-6)}
    artifacts, measured = [], []
    for kind, (size_bytes, p50_s) in dense.items():
        for role, share in (("baseline", 1.0), ("model", scale)):
            item = artifact(role, kind, round(size_bytes * share))
            noise = 1.4e-7 if kind == "onnx" else 4.6e-7
            artifacts.append(
                {
                    "role": role,
                    "artifact": item,
                    "checks": [
                        check("artifact equals network", "user inputs", 1, noise),
                        check("artifact equals network", "random", 1, noise * 1.7),
                        check("artifact equals network", "random", 4, noise * 1.2),
                        check("second sample in one interpreter", "random", 1, noise * 1.1),
                    ],
                    "metrics": {"top1": 0.9944 if role == "baseline" else top1},
                    "metrics_source": "test_data",
                }
            )
            measured.append(measurement(item, role, p50_s * share**0.9, seed=round(1000 * ratio)))
    return {
        "schema_version": SCHEMA,
        "edgeprune": "0.1.0",
        "created": "2026-11-20T10:21:30+00:00",
        "name": name,
        "workload": {"name": "digits", "source": "workload.py"},
        "settings": {
            "workload": "workload.py",
            "target": "host",
            "seed": 0,
            "prune": {"ratio": ratio, "criterion": "l2", "scope": "local", "align": 16, "keep": []},
            "finetune": {"epochs": 3, "optimizer": "adamw", "lr": 0.001, "metric": None},
            "bench": {"threads": [1], "processes": 5},
        },
        "target": {"name": "host", "description": "this machine", "align": 16, "transport": "local"},
        "network": {
            "name": "DigitsNet",
            "params": {"dense": 103_178, "pruned": round(103_178 * scale**1.3)},
            "macs": {"dense": 5_236_000, "pruned": round(5_236_000 * scale**1.3)},
            "size_bytes": {"dense": 412_712, "pruned": round(412_712 * scale**1.3)},
            "inputs": [spec("x", [None, 1, 8, 8])],
        },
        "groups": groups(),
        "metrics": {
            "dense": {"top1": 0.9917, "cross_entropy_loss": 0.041},
            "pruned": {"top1": 0.4125, "cross_entropy_loss": 1.92},
            "recalibrated": {"top1": 0.9208, "cross_entropy_loss": 0.31},
            "finetuned": {"top1": 0.981, "cross_entropy_loss": 0.044},
        },
        "history": history(),
        "best_epoch": 3,
        "artifacts": artifacts,
        "compaction": {"output": dict(OUTPUT), "check": check("pruned equals masked", "user inputs", 1, 8e-8)},
        "measurements": measured,
        "comparisons": [comparison(measured[0], measured[1]), comparison(measured[2], measured[3])],
        "verdict": {
            "text": "onnx 2.51x faster (2.47 to 2.55), tflite 2.51x faster (2.47 to 2.55), 2.78x smaller, "
            "top1 0.994 -> 0.986 (-0.008)",
            "passed": True,
            "budgets": [],
        },
        "notices": [],
        "environment": {
            "python": "3.11.7",
            "platform": "Linux-6.18-x86_64-glibc2.36",
            "cpu": "Intel Xeon 2.10 GHz",
            "cores": 2,
            "packages": {
                "torch": "2.13.0",
                "onnxruntime": "1.32.0",
                "ai-edge-litert": "2.3.0",
                "numpy": "2.4.6",
            },
        },
        "reproduce": ["edgeprune compress workload.py --ratio 0.5 --target host"],
        "stages": [
            {"name": "prune", "seconds": 0.6, "state": "done"},
            {"name": "finetune", "seconds": 4.4, "state": "done"},
            {"name": "export", "seconds": 14.2, "state": "done"},
            {"name": "bench", "seconds": 21.0, "state": "done"},
        ],
    }


def quantisation(kept: int = 1) -> Json:
    """How an int8 file was made: four ways to choose ranges, and three parts of which the first may stay in float32."""
    parts = [("classify_7", "Gemm", 1, 0.021), ("Conv_1 to Conv_4", "Conv", 4, 0.0046), ("Relu", "Relu", 3, 0.0)]
    ranking = [{"name": name, "kind": kind, "operators": count, "noise": noise} for name, kind, count, noise in parts]
    return {
        "method": "entropy",
        "methods": {"minmax": 14.2, "percentile": 15.0, "entropy": 16.1, "mse": 15.8, "entropy, equalised": 15.9},
        "sqnr_db": 23.4,
        "equalised": False,
        "ranking": ranking if kept else [],
        "kept": kept,
        "floats": ["classify_7"][:kept],
    }


def lower(found: Json, precision: str = "int8", scale: float = 0.3, speed: float = 2.0, top1: float = 0.982) -> Json:
    """Add to a result, in every format, the pruned network in another precision."""
    models = [entry for entry in found["artifacts"] if entry["role"] == "model"]
    for entry in [entry for entry in models if entry["artifact"]["precision"] == "fp32"]:
        exact, kind = entry["artifact"], entry["artifact"]["format"]
        item = exact | {
            "path": f"runs/digits-r50/model.{precision}.{kind}",
            "precision": precision,
            "sha256": f"{precision}-{kind}".encode().hex().ljust(64, "0"),
            "size_bytes": round(exact["size_bytes"] * scale),
        }
        quality = {"sqnr_db": 22.8, "cosine": 0.997, "argmax": 1.0, "min_sqnr_db": 17.0}
        name = f"model.{precision}.{kind} against the network"
        found["artifacts"].append(
            {
                "role": "model",
                "artifact": item,
                "checks": [check(name, "user inputs", 1, 0.05) | quality],
                "metrics": {"top1": top1},
                "metrics_source": "test_data",
                "quantisation": quantisation() if precision == "int8" else None,
            }
        )
        rows = {row["role"]: row for row in found["measurements"] if row["artifact"]["sha256"] == exact["sha256"]}
        fast = measurement(item, "model", rows["model"]["latency"]["p50_s"] / speed)
        fast["row_id"] = f"{precision}-{kind}"
        dense = next(r for r in found["measurements"] if (r["role"], r["artifact"]["format"]) == ("baseline", kind))
        found["measurements"].append(fast)
        found["comparisons"].append(comparison(dense, fast))
    return found


def refusal(kind: str = "onnx", precision: str = "int8", error: str = "VerificationError") -> Json:
    """A file that a precision did not become."""
    return {
        "role": "model",
        "format": kind,
        "precision": precision,
        "path": f"model.{precision}.{kind}",
        "error": error,
        "message": f"model.{precision}.{kind} against the network: 'logits' has an SQNR of 3.1 dB, limit 17 dB",
        "fix": None,
        "where": f"runs/digits-r50/model.{precision}.{kind}.rejected",
        "exit_code": 4,
    }

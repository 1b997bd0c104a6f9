"""The steps that make and check networks, one by one: inspect, prune, finetune, verify.

Each takes what the step before wrote, and returns plain data for the console. Checks come before work.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from edgeprune import rundir
from edgeprune.config import FinetuneConfig, ReconstructConfig, RunConfig
from edgeprune.errors import ConfigError, ResolveError
from edgeprune.pipeline import distributed, folders, planning
from edgeprune.pipeline.advising import facts_of, proposal
from edgeprune.pipeline.digests import code_digest, seeded, state_digest
from edgeprune.pipeline.events import Event, Listener
from edgeprune.pipeline.folders import Loaded, open_network
from edgeprune.pipeline.gradual import gradual_settings, pruned_weights, recipe_of
from edgeprune.pipeline.measuring import ARTIFACT_SUFFIXES
from edgeprune.pipeline.networks import describe_groups, evaluate, macs_of
from edgeprune.pipeline.prepare import align_of, check_functions, check_settings
from edgeprune.pipeline.sparsity import sparsified
from edgeprune.pipeline.trials import layerwise_of
from edgeprune.pipeline.tuning import (
    folder_features,
    history_rows,
    recalibrated,
    recalibrates,
    reconstructed,
    training_source,
    tuned,
    tuning_notice,
)
from edgeprune.targets import TFLITE_RUNTIME_PYTHON, find_target, tflite_runtime_python
from edgeprune.values import Json, Notice, finite
from edgeprune.workload import load_workload


def inspect(config: RunConfig) -> Json:
    """Return the channel groups and blocks of a network: what can be pruned, what not and why. Nothing is written.

    Args:
        config: `workload`, `weights`, `trust_pickle`, `seed`, `prune.keep` and `prune.rules` count.

    Raises:
        TraceError: The forward cannot be followed.
    """
    from edgeprune.compact import analyse
    from edgeprune.graph.cost import count_macs, count_params
    from edgeprune.graph.rules.custom import load_rules
    from edgeprune.pruning.select import describe, hold

    loaded = open_network(config.workload, weights=config.weights, trust_pickle=config.trust_pickle, seed=config.seed)
    rules = load_rules(config.prune.rules)
    blocks = planning.block_rows(loaded.model, loaded.inputs, config.prune)
    graph = analyse(loaded.model, loaded.inputs, config.prune.output, rules)
    graph = hold(graph, config.prune.keep, [row["name"] for row in blocks])
    params = count_params(loaded.model)
    network = {
        "name": type(loaded.model).__name__,
        "params": params,
        "macs": count_macs(loaded.model, loaded.inputs),
        "size_bytes": params * 4,
        "prunable_share": graph.prunable_share,
        "inputs": [spec.as_dict() for spec in describe(loaded.inputs)],
    }
    groups = [row | {"channels": row["channels_before"]} for row in describe_groups(graph, None, config.prune)]
    facts = facts_of(loaded.model, graph, loaded.workload, config)
    return {
        "workload": config.workload,
        "pruned": loaded.plan is not None,
        "advice": proposal(config, facts) if loaded.plan is None else None,
        "network": network,
        "groups": groups,
        "blocks": [row | {"macs_share": macs_of(graph, row["name"])} for row in blocks],
    }


def _check_at_once(config: RunConfig) -> None:
    if config.gradual.of_units:
        raise ConfigError(
            f"gradual.method = '{config.gradual.method}' prunes during training, and prune does not train",
            fix="edgeprune compress, or ep.Gradual in a training loop of your own",
        )


def prune(config: RunConfig, plan_path: str | None, *, listen: Listener) -> Json:
    """Prune a network without training it, into the folder `config.output`.

    Args:
        plan_path: A plan, perhaps edited by hand, that is applied as it is.

    Raises:
        NothingToPrune: Every group is pinned.
        VerificationError: The pruned network differs from the masked dense one.
    """
    from edgeprune.compact import apply as compact
    from edgeprune.graph.cost import count_macs, count_params
    from edgeprune.graph.rules.custom import load_rules
    from edgeprune.pruning import PrunePlan
    from edgeprune.pruning.criteria import check_name

    check_settings(config)
    check_name(config.prune.criterion)
    _check_at_once(config)
    workload = load_workload(config.workload)
    check_functions(config, workload)
    folder = Path(config.output or "pruned")
    folders.check_prune_output(folder, folders.workload_reference(workload))
    chosen = PrunePlan.load(plan_path) if plan_path is not None else None
    measured = planning.read_sensitivity(config.prune)
    align = align_of(config, find_target(config.target))
    loaded = open_network(config.workload, weights=config.weights, trust_pickle=config.trust_pickle, seed=config.seed)
    model, inputs = loaded.model, loaded.inputs
    listen(Event(stage="plan", state="begin"))
    for notice in loaded.notices:
        listen(Event(stage="plan", state="notice", notice=notice))
    rules = load_rules(config.prune.rules)
    if chosen is None:
        with seeded(config.seed, "plan"):
            data, step = training_source(workload)
            planned = planning.make(
                model, inputs, config.prune, align=align, step=step, data=data, seed=config.seed, rules=rules,
                sensitivity=measured,
                layerwise=layerwise_of(config, workload, model, inputs, {}, None, listen),
            )  # fmt: skip
    else:
        planned = planning.given(model, inputs, chosen, rules)
    groups = describe_groups(planned.graph, planned.plan, config.prune)
    told = {"groups": groups, "blocks": planned.blocks, "align": align}
    listen(Event(stage="plan", state="done", facts=told, seconds=None))
    compacted = compact(model, planned.plan, inputs, planned.graph)
    masks, sparse = None, None
    if config.sparsify.method is not None and not config.gradual.of_weights:  # else they go in fine-tuning
        masks, sparse = sparsified(compacted.model, config.sparsify)
        for found in sparse["notices"]:
            listen(Event(stage="sparsify", state="notice", notice=Notice(**found)))
    files = folders.write_network(folder, workload, planned.plan, compacted.model, config, masks)
    reason = folders.write_program(folder / folders.PROGRAM, compacted.model, inputs)
    facts = {
        "params": {"dense": count_params(model), "pruned": count_params(compacted.model)},
        "macs": {"dense": count_macs(model, inputs), "pruned": count_macs(compacted.model, inputs)},
    }
    return {
        "folder": str(folder),
        "files": files if reason is not None else [*files, folders.PROGRAM],
        "plan_digest": planned.plan.digest,
        "network": {"name": type(model).__name__, **facts},
        **compacted.facts(),
        "groups": groups,
        "blocks": planned.blocks,
        "layerwise": planned.layerwise,
        "sparsity": sparse,
        "no_program": reason,
    }


def finetune(source: str, config: RunConfig, *, listen: Listener) -> Json:
    """Recalibrate and train the network of a folder of `prune`; goes on from a checkpoint where there is one.

    Args:
        source: The folder. `config.output` names another one to write to; by default the same.

    Raises:
        ResolveError: There is no pruned network, or the output holds something else.
        TrainingError: The loss or the weights are not finite.
    """
    _check_gradual(config)
    folder = _finetune_folder(Path(source), config.output)
    with rundir.locked(folder):
        loaded = folders.open_pruned(folder, folders.WEIGHTS)
        notice = tuning_notice(loaded.workload, config.finetune.epochs)
        if notice is not None and training_source(loaded.workload)[0] is None:
            raise ConfigError(notice.text, where=loaded.workload.source, fix=notice.fix)
        if notice is not None:
            listen(Event(stage="finetune", state="notice", notice=notice))
        reference, again = str(folder / folders.REFERENCE), "the same command"
        listen(Event(stage="run", state="run", facts={"folder": str(folder), "settings": reference, "resume": again}))
        metrics = {"pruned": evaluate(loaded.workload, loaded.model)}
        start = _reconstruct(folder, loaded, config.reconstruct, metrics, listen)
        if start is None:
            start = _recalibrate(folder, loaded, config.finetune, metrics, listen)
        loaded = folders.open_pruned(folder, start)
        recipe = recipe_of(config, loaded.model, loaded.inputs, 1) if config.gradual.of_weights else None
        features = folder_features(loaded, config.finetune)
        checkpoint = folder / f"{rundir.CHECKPOINT}{_finetune_key(loaded, config)}"
        rundir.remove_checkpoints(folder, checkpoint)
        listen(Event(stage="finetune", state="begin"))
        distributed.announce(folder, start, config.finetune, checkpoint, config if recipe is not None else None)
        with seeded(loaded.seed, "finetune"):
            result = tuned(
                loaded.workload,
                loaded.model,
                loaded.dense,
                config.finetune,
                checkpoint=checkpoint,
                seed=loaded.seed,
                listen=listen,
                masks=loaded.masks if recipe is None else None,
                recipe=recipe,
                features=features,
            )
        for told in result.notices:
            listen(Event(stage="finetune", state="notice", notice=told))
        history = history_rows(result)
        folders.save_state(folder / rundir.FINETUNED, result.model.state_dict())
        _, gradual = pruned_weights(folder, result, config)
        for found in gradual.get("notices", ()):
            listen(Event(stage="finetune", state="notice", notice=Notice(**found)))
        rundir.write_atomic(folder / rundir.HISTORY, json.dumps(finite(history), indent=1) + "\n")
        rundir.remove_checkpoints(folder)
        metrics["finetuned"] = evaluate(loaded.workload, result.model)
    done = {"folder": str(folder), "metrics": metrics, "history": history, "best_epoch": result.best_epoch}
    return done | {name: gradual.get(name) for name in ("sparsity", "gradual")}


def _check_gradual(config: RunConfig) -> None:
    """Check that nothing but single weights is to go in fine-tuning."""
    if config.gradual.of_units:
        raise ConfigError(
            f"gradual.method = '{config.gradual.method}' prunes the dense network, and this one is cut already",
            fix="edgeprune compress, or ep.Gradual in a training loop of your own",
        )
    if config.gradual.of_weights and config.finetune.epochs == 0:
        raise ConfigError(
            f"gradual.method = '{config.gradual.method}' prunes during training, and there is no epoch",
            fix="-s finetune.epochs=3",
        )


def _reconstruct(
    folder: Path, loaded: Loaded, config: ReconstructConfig, metrics: Json, listen: Listener
) -> str | None:
    """Solve for the weights that are left; return the file of weights to train from, None where that did not help."""
    if config.samples == 0 or loaded.plan is None or loaded.masks is not None:  # it would fill the pruned weights
        return None
    listen(Event(stage="reconstruct", state="begin"))
    with seeded(loaded.seed, "reconstruct"):
        model, facts = reconstructed(
            loaded.workload, loaded.model, loaded.dense, loaded.plan, loaded.inputs, config, rules=loaded.rules,
            listen=listen,
        )  # fmt: skip
    for notice in facts["notices"]:
        listen(Event(stage="reconstruct", state="notice", notice=Notice(**notice)))
    if facts["improved"]:
        folders.save_state(folder / rundir.RECONSTRUCTED, model.state_dict())
        metrics["reconstructed"] = facts["metrics"] = evaluate(loaded.workload, model)
    listen(Event(stage="reconstruct", state="done", facts=facts))
    return rundir.RECONSTRUCTED if facts["improved"] else None


def _recalibrate(folder: Path, loaded: Loaded, config: FinetuneConfig, metrics: Json, listen: Listener) -> str:
    """Renew the BatchNorm statistics, where there are any; return the file of weights to train from."""
    if not recalibrates(loaded.workload, loaded.model, config.recalibrate_batches):
        return folders.WEIGHTS
    listen(Event(stage="recalibrate", state="begin"))
    with seeded(loaded.seed, "recalibrate"):
        model = recalibrated(loaded.workload, loaded.model, config.recalibrate_batches)
    folders.save_state(folder / rundir.RECALIBRATED, model.state_dict())
    metrics["recalibrated"] = evaluate(loaded.workload, model)
    listen(Event(stage="recalibrate", state="done", facts={"metrics": metrics["recalibrated"]}))
    return rundir.RECALIBRATED


def _finetune_key(loaded: Loaded, config: RunConfig) -> str:
    found = config.finetune.model_dump(mode="json").items()
    settings = {key: value for key, value in found if key != "checkpoint_every_s"}
    settings |= gradual_settings(config) if config.gradual.of_weights else {}
    inputs = {
        "workload code": code_digest(loaded.workload, loaded.dense),
        "weights": state_digest(loaded.model.state_dict()),
    }
    return rundir.StageKey(stage="finetune", settings=settings, inputs=inputs).digest()[:12]


def _finetune_folder(source: Path, output: str | None) -> Path:
    """Return the folder to fine-tune in; with an output, the pruned network is copied there first."""
    if not (source / folders.REFERENCE).is_file():
        raise ResolveError(
            f"{source} holds no pruned network (no {folders.REFERENCE})",
            fix=f"edgeprune prune workload.py -o {source}",
        )
    if output is None or Path(output).resolve() == source.resolve():
        return source
    folder = Path(output)
    names = (rundir.PLAN, folders.WEIGHTS, folders.REFERENCE, rundir.MASKS)
    if folder.exists() and any(folder.iterdir()):
        if any(rundir.file_digest(folder / name) != rundir.file_digest(source / name) for name in names):
            raise ResolveError(
                f"{folder} is not empty and holds something else", fix="choose another directory with -o"
            )
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in filter(lambda name: (source / name).is_file(), names):
        with rundir.replacing(folder / name) as temporary:
            shutil.copyfile(source / name, temporary)
    return folder


def verify(
    first: str,
    second: str,
    *,
    tolerance: float,
    min_sqnr_db: float | None = None,
    output: str | None = None,
    target: str | None = None,
    trust_pickle: bool = False,
) -> Json:
    """Compare any two of `.onnx`, `.tflite`, `.pt2`, a folder of `prune`, a run or a workload.

    Args:
        min_sqnr_db: Decibels that decide, instead of those of the files' precision.
        output: A `.json` file for the result.
        target: Where its TFLite runtime is tflite-runtime, `.tflite` files are compared with themselves in that too.

    Raises:
        ResolveError: One of them cannot be read.
        ConfigError: A limit is not a number that can be compared with.
    """
    from edgeprune.export.limits import check_limits
    from edgeprune.export.tflite_runtime import verify_in_tflite_runtime

    check_limits(tolerance, min_sqnr_db)
    python = _tflite_runtime(target) if target is not None else None
    if output is not None and not output.endswith(".json"):
        raise ConfigError(f"'{output}' is no .json file", fix=f"-o {output}.json")
    from edgeprune.export import verify_pair

    sides: list[Any] = []
    inputs = None
    for reference in (first, second):
        if reference.endswith(ARTIFACT_SUFFIXES):
            if not Path(reference).is_file():
                raise ResolveError(f"no file {reference}")
            sides.append(Path(reference))
            continue
        if reference.endswith(".pt2"):
            module, example = folders.read_program(Path(reference), trust_pickle)
        else:
            loaded = open_network(reference, trust_pickle=trust_pickle)
            module, example = loaded.model, loaded.inputs
        sides.append(module)
        inputs = inputs if inputs is not None else example
    checks = verify_pair(sides[0], sides[1], inputs=inputs, tolerance=tolerance, min_sqnr_db=min_sqnr_db)
    for side in sides:
        if python is not None and isinstance(side, Path) and side.suffix == ".tflite":
            examples = [inputs] if inputs is not None else []
            checks += verify_in_tflite_runtime(side, examples=examples, python=python)
    passed = all(check.passed for check in checks)
    found: Json = {"first": first, "second": second, "passed": passed, "checks": [c.as_dict() for c in checks]}
    if output is not None:
        rundir.write_atomic(Path(output), json.dumps(found, indent=2, allow_nan=False) + "\n")
    return found


def _tflite_runtime(name: str) -> str | None:
    """Return the interpreter with tflite-runtime that stands for a target; None where the target has ai-edge-litert.

    Raises:
        ConfigError: None is known for a target that needs one.
    """
    target = find_target(name)
    if target.tflite_package != "tflite-runtime":
        return None
    python = tflite_runtime_python(target)
    if python is None:
        raise ConfigError(
            f"{name} runs files in tflite-runtime, and no interpreter with it is known",
            fix=f"export {TFLITE_RUNTIME_PYTHON}=FOLDER/bin/python, with tflite-runtime==2.14.0 in it",
        )
    return python

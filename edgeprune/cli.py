"""The `edgeprune` command: parse, call one function, show. Knows no stage and formats no result.

Imports click and light modules only, so that `--help` and shell completion answer at once.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprune.console import INTERRUPTED, Console, width
from edgeprune.errors import ConfigError, EdgePruneError
from edgeprune.version import VERSION

if TYPE_CHECKING:
    from edgeprune.config import RunConfig

Command = Callable[..., Any]
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def console_options(function: Command) -> Command:
    """Add --json, -q and -v, and call the command with a console; stdout is kept for the result."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
    @click.option("-v", "--verbose", is_flag=True, help="Log what happens; show tracebacks.")
    @functools.wraps(function)
    def command(*, as_json: bool, quiet: bool, verbose: bool, **values: Any) -> int:
        console = click.get_current_context().obj
        console.as_json, console.quiet, console.verbose = as_json, quiet, verbose
        return int(function(console, **values) or 0)

    return command


def options(*chosen: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Combine options into one decorator, shown in this order."""

    def decorate(function: Command) -> Command:
        for option in reversed(chosen):
            function = option(function)
        return function

    return decorate


def _setting(*names: str, **attributes: Any) -> Callable[[Command], Command]:
    return click.option(*names, **attributes)


settings_option = _setting(
    "-s", "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Any other setting; repeatable."
)
network_options = options(
    _setting("--weights", metavar="FILE", help="Weights to load into model(): .safetensors or .pt."),
    _setting("--trust-pickle", is_flag=True, default=None, help="Allow pickled code in files you made yourself."),
)
goal_options = options(
    _setting("--target", metavar="NAME", help="Device profile, or a TOML file of yours."),
    _setting("--ratio", type=float, help="Fraction of units to remove, in [0, 1).  [default: 0.5]"),
    _setting("--max-macs", metavar="LIMIT", help="Instead of a ratio, what may be left: 0.5x, 120M or 1.2G."),
    _setting("--max-params", metavar="LIMIT", help="The same for parameters: 0.5x or 2M."),
)
prune_options = options(
    goal_options,
    _setting("--depth", type=float, help="Fraction of the residual blocks to remove whole.  [default: 0]"),
    _setting("--sensitivity", metavar="PATH", help="Choose ratios by what  edgeprune sensitivity  measured."),
)
budget_options = options(
    _setting("--max-latency", metavar="TIME", help="Exit 5 if the median latency is above, such as 15ms."),
    _setting("--max-size", metavar="SIZE", help="Exit 5 if a file is larger, such as 2MB."),
    _setting(
        "--max-drop",
        type=float,
        metavar="VALUE",
        help="Exit 5 if the metric drops by more, such as 0.01; int8 keeps to it.",
    ),
)


calibration_option = _setting("--calibration", metavar="FILE", help="True inputs for int8: .npz, .npy or .safetensors.")
precision_options = options(
    _setting("--precision", metavar="LIST", help="Of fp32, fp16, int8, int8-dynamic, int8-weights.  [default: fp32]"),
    calibration_option,
)


def output_option(what: str) -> Callable[[Command], Command]:
    """Return the option -o with its meaning for one command."""
    return _setting("-o", "--output", metavar="PATH", help=what)


class InOrder(click.Group):
    """A group that lists its commands in the order of the work."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=InOrder, context_settings=_CONTEXT)
@click.version_option(VERSION, prog_name="edgeprune", message="%(prog)s %(version)s")
def cli() -> None:
    """Prune a trained PyTorch network, prove every exported file equal to it, and measure it on the device.

    Start with  edgeprune demo,  or with  edgeprune init  for a network of your own.
    """


@cli.command()
@click.argument("folder", default=".", type=click.Path(file_okay=False))
@console_options
def init(console: Console, folder: str) -> None:
    """Write a workload.py and an edgeprune.toml to start from; overwrites nothing."""
    from edgeprune.pipeline import start

    done = start.init(Path(folder))
    workload, settings = done["files"]
    console.show(
        f"wrote {workload}      your model, inputs, training step and metric: seven functions, two required\n"
        f"wrote {settings}   every setting with its default\n"
        f"next: edit {workload}, then  edgeprune inspect {workload}",
        done,
    )


@cli.command()
@output_option("Run directory.  [default: runs/digitsnet-r50]")
@console_options
def demo(console: Console, output: str | None) -> int:
    """Run everything on the small network that comes with edgeprune: handwritten digits."""
    from edgeprune.pipeline.start import demo_config

    return _compress(console, demo_config(output))


@cli.command()
@click.argument("network", required=False)
@network_options
@settings_option
@console_options
def inspect(console: Console, network: str | None, overrides: tuple[str, ...], **values: Any) -> None:
    """Show which channels and blocks can be pruned, which not, and why. NETWORK: a workload, or a file."""
    from edgeprune.report.commands import artifact_text, inspect_text

    if network is not None and network.endswith((".onnx", ".tflite", ".ort")):
        from edgeprune.pipeline.measuring import inspect_artifact

        with console.work():
            found = inspect_artifact(Path(network))
        console.show(artifact_text(found, width()), found)
        return
    config = _settings(overrides, {"workload": network, **values})
    from edgeprune.pipeline import steps

    with console.work():
        found = steps.inspect(config)
    console.show(inspect_text(found, width()), found)


@cli.command()
@click.argument("workload", required=False)
@network_options
@goal_options
@_setting("--max-size", metavar="SIZE", help="A file may have, such as 2MB.")
@_setting("--max-latency", metavar="TIME", help="A forward may take, such as 15ms.")
@settings_option
@console_options
def advise(console: Console, overrides: tuple[str, ...], **values: Any) -> None:
    """Propose how to compress WORKLOAD: settings for its network, data and budget, and what they rest on."""
    from edgeprune.report.commands import advice_text

    config = _settings(overrides, values)
    from edgeprune.pipeline import advising

    with console.work():
        found = advising.advice(config)
    console.show(advice_text(found, width()), found)


@cli.command()
@click.argument("workload", required=False)
@network_options
@_setting("--target", metavar="NAME", help="Device profile, or a TOML file of yours: widths are rounded for it.")
@_setting("--ratios", metavar="LIST", help="Ratios to measure.  [default: 0.25,0.5,0.75]")
@_setting("--reconstruct", is_flag=True, default=None, help="Reconstruct before each measurement.")
@output_option("Folder to write.  [default: sensitivity]")
@settings_option
@console_options
def sensitivity(console: Console, overrides: tuple[str, ...], ratios: str | None, **values: Any) -> None:
    """Measure what each group of WORKLOAD costs alone, at a few ratios. Goes on where it was interrupted."""
    from edgeprune.report.search import sensitivity_text

    if ratios is not None:
        values["sensitivity.ratios"] = [_number(text, "--ratios") for text in ratios.split(",")]
    values["sensitivity.reconstruct"] = values.pop("reconstruct")
    config = _settings(overrides, values)
    from edgeprune.pipeline import sensitivity as step

    with console.work():
        found = step.sensitivity(config, listen=console.listen)
    console.show(sensitivity_text(found, width()), found)


@cli.command()
@click.argument("workload", required=False)
@network_options
@prune_options
@precision_options
@_setting("--qat-epochs", type=int, help="Epochs of quantisation-aware training for the int8 files.  [default: 0]")
@budget_options
@output_option("Run directory.  [default: runs/NAME-r50]")
@settings_option
@console_options
def compress(console: Console, overrides: tuple[str, ...], **values: Any) -> int:
    """Prune, fine-tune, export, verify and measure WORKLOAD, and write a report. The one command.

    An interrupted run goes on with the same command, or with  edgeprune resume RUN.
    """
    return _compress(console, _settings(overrides, values))


@cli.command()
@click.argument("run", type=click.Path())
@console_options
def resume(console: Console, run: str) -> int:
    """Go on with the run in the directory RUN, with the settings in its run.toml."""
    from edgeprune.pipeline.compress import resume as go_on

    with console.work():
        result = go_on(Path(run), listen=console.listen)
    return console.show_run(result.data, str(result.folder))


@cli.command()
@click.argument("workload", required=False)
@network_options
@prune_options
@_setting("--plan", metavar="FILE", help="Apply this plan.json, perhaps edited, instead of making one.")
@output_option("Folder to write.  [default: pruned]")
@settings_option
@console_options
def prune(console: Console, overrides: tuple[str, ...], plan: str | None, **values: Any) -> None:
    """Prune WORKLOAD without training it: plan.json, weights.safetensors, pruned.pt2."""
    from edgeprune.report.commands import prune_text

    config = _settings(overrides, values)
    from edgeprune.pipeline import steps

    with console.work():
        done = steps.prune(config, plan, listen=console.listen)
    console.show(prune_text(done), done)


@cli.command()
@click.argument("folder", type=click.Path())
@_setting("--epochs", type=int, help="Passes over train_data().  [default: 3]")
@_setting("--lr", type=float, help="Learning rate.  [default: 0.001]")
@output_option("Folder to write.  [default: FOLDER itself]")
@settings_option
@console_options
def finetune(console: Console, folder: str, overrides: tuple[str, ...], **values: Any) -> None:
    """Train the pruned network in FOLDER (from  edgeprune prune). Goes on where it was interrupted."""
    from edgeprune.report.commands import finetune_text

    config = _settings(overrides, values)
    from edgeprune.pipeline import steps

    with console.work():
        done = steps.finetune(folder, config, listen=console.listen)
    console.show(finetune_text(done), done)


@cli.command()
@click.argument("network")
@network_options
@output_option("File to write: .onnx, .tflite or .ort.  [default: model.onnx]")
@_setting("--precision", metavar="NAME", help="fp32, fp16, int8, int8-dynamic or int8-weights.  [default: fp32]")
@calibration_option
@_setting("--io", metavar="TYPE", help="Ends of an int8 file: float32, int8 or uint8.  [default: float32]")
@_setting("--target", metavar="NAME", help="Refuse what its runtimes get wrong, and verify in them.  [default: host]")
@_setting("--layout", metavar="NAME", help="Of 4-D inputs and outputs: nchw or nhwc.  [default: nchw]")
@settings_option
@console_options
def export(console: Console, network: str, overrides: tuple[str, ...], **values: Any) -> None:
    """Write NETWORK (a folder of prune, a run, a workload or a .pt2 program) as a verified file."""
    from edgeprune.report.commands import export_text

    config = _settings(overrides, values)
    from edgeprune.pipeline import writing

    with console.work():
        done = writing.export(network, config, listen=console.listen)
    console.show(export_text(done, width()), done)


@cli.command()
@click.argument("first")
@click.argument("second")
@_setting("--tolerance", type=float, default=1e-4, show_default=True, help="Largest relative difference.")
@_setting("--min-sqnr", type=float, metavar="DB", help="Judge by decibels instead.  [default: by the file's precision]")
@output_option("A .json file for all the checks.")
@_setting("--target", metavar="NAME", help="Also compare .tflite files in this target's TFLite runtime.")
@_setting("--trust-pickle", is_flag=True, help="Allow pickled code in files you made yourself.")
@console_options
def verify(
    console: Console,
    first: str,
    second: str,
    tolerance: float,
    min_sqnr: float | None,
    output: str | None,
    target: str | None,
    trust_pickle: bool,
) -> int:
    """Compare any two of .onnx, .tflite, .pt2 files, folders of prune, runs or workloads. Exit 4 if they differ."""
    from edgeprune.pipeline import steps

    with console.work():
        done = steps.verify(
            first,
            second,
            tolerance=tolerance,
            min_sqnr_db=min_sqnr,
            output=output,
            target=target,
            trust_pickle=trust_pickle,
        )
    return console.show_verification(done)


@cli.command()
@click.argument("files", nargs=-1, required=True)
@_setting("--target", metavar="NAME", help="Device profile, or a TOML file of yours.  [default: host]")
@_setting("--baseline", metavar="FILE", help="The file to compare with.  [default: baseline.*, else the first]")
@output_option("A .jsonl file to append the measurements to.")
@settings_option
@console_options
def bench(
    console: Console, files: tuple[str, ...], baseline: str | None, overrides: tuple[str, ...], **values: Any
) -> int:
    """Measure .onnx and .tflite FILES against each other, interleaved and in fresh processes."""
    config = _settings(overrides, values)
    from edgeprune.pipeline import measuring

    with console.work():
        done = measuring.bench(files, config, baseline=baseline, listen=console.listen)
    return console.show_measurements(done)


@cli.command()
@click.argument("files", nargs=-1, required=True)
@_setting("--allow", metavar="LIST", default="", help="Differences to accept: threads, runtime, device, precision.")
@_setting("--practical", type=float, default=0.03, show_default=True, help="Smallest ratio that is a difference.")
@console_options
def compare(console: Console, files: tuple[str, ...], allow: str, practical: float) -> int:
    """Compare measurements (.jsonl FILES or runs): the later ones with the first, one with its baseline."""
    from edgeprune.pipeline import measuring

    names = _words(allow)
    with console.work():
        done = measuring.compare(files, allow=names, practical=practical)
    return console.show_measurements(done)


@cli.command()
@click.argument("runs", nargs=-1, required=True)
@_setting("-o", "--output", metavar="FILE", default="report.html", show_default=True, help="File to write.")
@console_options
def report(console: Console, runs: tuple[str, ...], output: str) -> None:
    """Write one HTML report over the finished RUNS."""
    from edgeprune.pipeline import measuring

    with console.work():
        done = measuring.report(runs, Path(output))
    console.show(f"wrote {done['report']} over {len(runs)} run{'' if len(runs) == 1 else 's'}", done)


@cli.command()
@click.argument("sources", nargs=-1, required=True)
@output_option("Zip to write.  [default: model.zip]")
@_setting("--baseline", is_flag=True, help="Pack the dense files of the run, too.")
@_setting("--labels", metavar="FILE", help="Names of the classes, one a line.  [default: labels() of the workload]")
@_setting(
    "--preprocessing", metavar="FILE", help="TOML with mean, std, ...  [default: preprocessing() of the workload]"
)
@_setting("--workload", metavar="WORKLOAD", help="For single files: what they were exported from, for true samples.")
@_setting("--trust-pickle", is_flag=True, help="Allow pickled code in files you made yourself.")
@console_options
def package(console: Console, sources: tuple[str, ...], output: str | None, **values: Any) -> None:
    """Pack a finished run, or files of one network, with a script that runs them on a device.

    SOURCES: a run directory, or .onnx and .tflite files.
    """
    from edgeprune.report.commands import package_text

    with console.work():
        from edgeprune.pipeline import packaging

        wishes = packaging.Wishes(output=Path(output or "model.zip"), **values)
        done = packaging.package(sources, wishes, listen=console.listen)
    console.show(package_text(done), done)


@cli.command()
@click.argument("name", required=False)
@console_options
def targets(console: Console, name: str | None) -> None:
    """List the device profiles, or show the one called NAME."""
    from edgeprune.report.commands import target_text, targets_text
    from edgeprune.targets import find_target, list_targets

    if name is None:
        found = list_targets()
        console.show(targets_text(found, width()), [target.model_dump(mode="json") for target in found])
    else:
        target = find_target(name)
        console.show(target_text(target), target.model_dump(mode="json"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every failure is shown in one way."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    console = Console(as_json="--json" in words)
    if os.environ.get("RANK", "0") != "0" and os.environ.get("WORLD_SIZE", "1") != "1":
        return _follow(console, words)
    try:
        code = cli.main(args=words, prog_name="edgeprune", standalone_mode=False, obj=console)
    except (KeyboardInterrupt, click.Abort):
        return console.show_interrupted()
    except EdgePruneError as error:
        return console.show_error(error)
    except click.ClickException as error:
        return console.show_error(_usage_error(error))
    except Exception as error:  # noqa: BLE001 the last resort: a bug is shown in one line, with a log
        return console.show_bug(error)
    return code if isinstance(code, int) else 0


def _follow(console: Console, words: list[str]) -> int:
    """Take part in what the first process of torchrun does; only training needs more than one."""
    from edgeprune.pipeline.distributed import follow

    if words[:1] not in (["compress"], ["resume"], ["finetune"], ["demo"]):
        return 0
    console.quiet = True
    try:
        with console.work():
            follow()
    except EdgePruneError as error:
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _compress(console: Console, config: RunConfig) -> int:
    with console.work():
        from edgeprune.pipeline.compress import compress as run

        result = run(config, listen=console.listen)
    return console.show_run(result.data, str(result.folder))


_KEYS = {
    "ratio": "prune.ratio",
    "max_macs": "prune.max_macs",
    "max_params": "prune.max_params",
    "depth": "prune.depth",
    "sensitivity": "prune.sensitivity",
    "epochs": "finetune.epochs",
    "lr": "finetune.lr",
    "precision": "export.precisions",
    "qat_epochs": "qat.epochs",
    "calibration": "quantise.calibration",
    "io": "quantise.io",
    "layout": "export.layout",
}


def _settings(overrides: tuple[str, ...], values: dict[str, Any]) -> RunConfig:
    """Return edgeprune.toml, changed by -s and then by the flags that were given."""
    from edgeprune.pipeline.start import read_settings

    given = {_KEYS.get(name, name): value for name, value in values.items() if value is not None}
    if "export.precisions" in given:
        given["export.precisions"] = _words(given["export.precisions"])
    goals = {"prune.ratio": "--ratio", "prune.max_macs": "--max-macs", "prune.max_params": "--max-params"}
    if len(asked := [goals[key] for key in goals if key in given]) > 1:
        raise ConfigError(f"{' and '.join(asked)} exclude each other", fix="give one of them")
    if asked:
        given |= {key: None for key in ("prune.max_macs", "prune.max_params") if key not in given}
    return read_settings(overrides, given)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{option}: '{text}' is not a number", fix=f"{option} 0.25,0.5,0.75") from None


def _usage_error(error: click.ClickException) -> ConfigError:
    context = getattr(error, "ctx", None)
    place = context.command_path if context is not None else "edgeprune"
    return ConfigError(error.format_message(), fix=f"{place} --help")

"""The subcommands: passes, inspect, bench, unpack. Heavy imports are late."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graphopt.command import Number, reports_errors
from graphopt.errors import UsageError

if TYPE_CHECKING:
    from graphopt.inspection import Figure
    from graphopt.model import Model

TARGET_HELP = "Where it will run: cpu (this machine's), cpu-avx2, cpu-avx512, cpu-vnni, cuda, tensorrt or openvino."
_FILE = click.Path(path_type=Path)
shape_option = click.option(
    "--shape",
    "sizes",
    multiple=True,
    metavar="NAME=SIZES",
    help="Shape of a made-up input, as x=1,3,224,224, or size of a symbol, as batch=4.  [default: small sizes]",
)


@click.command("passes", short_help="List the passes, or tell all about one.")
@click.argument("name", required=False)
@reports_errors
def passes(name: str | None) -> None:
    """List the passes with their options, or tell all about one."""
    from graphopt.catalogue import describe, describe_all
    from graphopt.console import result_console, warn
    from graphopt.report.listing import render_pass, render_passes

    if name is not None:
        render_pass(describe(name), result_console())
        return
    found, broken = describe_all()
    render_passes(found, result_console())
    warn(broken)


@click.command("inspect", short_help="Show what is in a model and what it costs.")
@click.argument("model", type=_FILE)
@shape_option
@click.option("--data", metavar="SAMPLES", help="Inputs to run on, as for the main command.  [default: random]")
@click.option("--sort", "by", type=click.Choice(["time", "macs", "parameters", "bytes"]), help="Order of the nodes.")
@click.option("--top", type=Number(0), default=15, show_default=True, metavar="N", help="Nodes; 0 for all.")
@click.option("--no-run", is_flag=True, help="Only read the model: no times.")
@click.option("--threads", type=Number(1, 1024), default=1, show_default=True, metavar="N", help="Threads.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every node.")
@reports_errors
def inspect(
    model: Path,
    sizes: tuple[str, ...],
    data: str | None,
    by: Figure | None,
    top: int,
    no_run: bool,
    threads: int,
    as_json: bool,
) -> None:
    """Show what is in a model: interface, operators, and what each node costs.

    For every node: its share of the time and of the multiply-accumulate operations (MACs), parameters, bytes, and what
    its weight looks like: zeros, values around zero (within half a step of 8 bits), range, output channels that repeat
    another one.
    """
    import json

    from graphopt.console import result_console
    from graphopt.inspection import inspect_model
    from graphopt.report.inspection import render_inspection

    found = inspect_model(model, sizes, data=data, run=not no_run, threads=threads)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        render_inspection(found, result_console(), by=by, top=top)


@click.command("bench", short_help="Time two models against each other.")
@click.argument("before", type=_FILE)
@click.argument("after", type=_FILE)
@click.option("--data", default="random", show_default=True, metavar="SAMPLES", help="Inputs, as for the main command.")
@shape_option
@click.option("--target", default="cpu", show_default=True, metavar="NAME", help=TARGET_HELP)
@click.option("--threads", type=Number(1, 1024), default=1, show_default=True, metavar="N", help="Threads.")
@click.option(
    "--seconds", type=Number(0.1, 600, whole=False), default=5.0, show_default=True, metavar="S", help="Time."
)
@click.option("--seed", type=Number(0), default=0, show_default=True, metavar="N", help="Of random inputs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@reports_errors
def bench(
    before: Path,
    after: Path,
    data: str,
    sizes: tuple[str, ...],
    target: str,
    threads: int,
    seconds: float,
    seed: int,
    as_json: bool,
) -> None:
    """Time two models against each other in interleaved pairs of runs."""
    import json

    from graphopt.evaluate import Evaluator
    from graphopt.evaluate.inputs import open_inputs
    from graphopt.reader import load
    from graphopt.report import Timing
    from graphopt.report.encode import timing_json
    from graphopt.report.terminal import timing_line
    from graphopt.samples.sized import sized
    from graphopt.targets import get_target

    chosen = get_target(target)
    first, second = load(before), load(after)
    _check_same_inputs(first, second)
    samples = open_inputs(data, first, sized(first.interface, sizes, data), seed=seed, threads=threads)
    evaluator = Evaluator(first, chosen, samples=samples, seed=seed, threads=threads)
    ratio = evaluator.latency(first, second, seconds=seconds)
    if ratio is None:
        raise UsageError(f"this machine cannot run the target {chosen.name}: it needs {chosen.provider}")
    timing = Timing(chosen.provider, threads, samples.is_random, ratio, "", evaluator.inputs.chosen())
    if as_json:
        click.echo(json.dumps(timing_json(timing), indent=2))
    else:
        click.echo(f"'{after}' takes {timing_line(timing)}".replace(" x (", " x the time (", 1))


@click.command("unpack", short_help="Turn a packed model into the plain one.")
@click.argument("model", type=_FILE)
@click.option("-o", "--output", type=_FILE, required=True, metavar="FILE", help="The plain model.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@reports_errors
def unpack(model: Path, output: Path, quiet: bool) -> None:
    """Turn a packed model into the plain one that it decodes to, bit by bit."""
    from graphopt.destinations import Files, check_files
    from graphopt.passes.pack.unpack import unpack as unpacked
    from graphopt.reader import load

    if output.exists() and model.exists() and output.samefile(model):
        raise UsageError(f"--output '{output}' is the input; give another name")
    check_files(Files(model, output, None), in_place=True)
    loaded = load(model)
    with tempfile.TemporaryDirectory(prefix=".graphopt-", dir=output.parent) as folder:
        count = unpacked(loaded, Path(folder))
        saved = loaded.save(output)
        del loaded
    if not quiet:
        click.echo(f"'{output}': {count} weights decoded, {saved.nbytes} bytes")


def _check_same_inputs(first: Model, second: Model) -> None:
    wanted, found = ({spec.name: spec.dtype for spec in model.interface.inputs} for model in (first, second))
    if wanted != found:
        texts = [", ".join(f"{name}: {dtype}" for name, dtype in inputs.items()) for inputs in (wanted, found)]
        raise UsageError(f"the two models have different inputs: {texts[0]} and {texts[1]}")

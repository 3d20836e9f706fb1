"""The command ``graphopt``: a thin shell over `graphopt.api`. Heavy imports are late, so that ``--help`` is quick."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graphopt import __version__
from graphopt.command import Fraction, MainCommand, MainGroup, Number, reports_errors
from graphopt.commands import TARGET_HELP, shape_option
from graphopt.commands import bench as bench_command
from graphopt.commands import inspect as inspect_command
from graphopt.commands import passes as passes_command
from graphopt.commands import unpack as unpack_command
from graphopt.destinations import Files, check_files, output_path, prove_writable, spare_weights, write_text
from graphopt.errors import ModelError, UsageError, did_you_mean

if TYPE_CHECKING:
    from graphopt.api import Result
    from graphopt.report import Report

_PATH = click.Path(path_type=Path)
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_GROUP = {**_CONTEXT, "ignore_unknown_options": True}  # they are the main command's, given before MODEL
_EPILOG = """\b
Examples:
  graphopt model.onnx -p fold,share
  graphopt model.onnx -p fold,share,prune:ratio=0.3,quant --data samples.npz
  graphopt model.onnx -p fold,quant --data samples/ --metric evaluate:accuracy --max-drop 0.5% -o small.onnx
  graphopt passes quant

\b
Exit status:
  0  done; warnings name the passes that were rolled back
  1  the model or the samples cannot be used, or with --strict a pass failed; nothing was written
  2  wrong usage; nothing was written
"""
_version = click.version_option(__version__, prog_name="graphopt", message="%(prog)s %(version)s")


@click.command(cls=MainCommand, epilog=_EPILOG)
@click.argument("model", type=_PATH)
@click.argument("extra", nargs=-1, metavar="")
@click.option("-p", "--passes", multiple=True, metavar="PASS[:OPTION=VALUE...][,PASS...]", help="What to do, in order.")
@click.option("-o", "--output", type=_PATH, metavar="FILE", help="Result.  [default: MODEL.opt.onnx beside the input]")
@click.option("--in-place", is_flag=True, help="Replace the input by the result.")
@click.option(
    "--data",
    metavar="SAMPLES",
    help="Inputs to calibrate and judge on: .npz, .npy, a folder, module:function, or random.",
)
@shape_option
@click.option("--metric", metavar="MODULE:FUNCTION", help="Score to keep; higher is better.  [default: agreement]")
@click.option(
    "--max-drop", type=Fraction(), metavar="LOSS", default="1%", show_default=True, help="Largest loss, as 1% or 0.01."
)
@click.option("--target", default="cpu", show_default=True, metavar="NAME", help=TARGET_HELP)
@click.option("--seed", type=Number(0), metavar="N", default=0, show_default=True, help="Root of all randomness.")
@click.option("--threads", type=Number(1, 1024), metavar="N", default=1, show_default=True, help="Threads to run with.")
@click.option("--no-benchmark", is_flag=True, help="Do not measure latency.")
@click.option("--strict", is_flag=True, help="Fail when a pass is rolled back.")
@click.option("--report", type=_PATH, metavar="FILE.json", help="Write everything that was measured as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", count=True, help="Print every skipped place; -vv: also debug messages.")
@_version
@click.pass_context
@reports_errors
def compress(
    ctx: click.Context,
    model: Path,
    extra: tuple[str, ...],
    passes: tuple[str, ...],
    output: Path | None,
    in_place: bool,
    data: str | None,
    sizes: tuple[str, ...],
    metric: str | None,
    max_drop: float,
    target: str,
    seed: int,
    threads: int,
    no_benchmark: bool,
    strict: bool,
    report: Path | None,
    quiet: bool,
    verbose: int,
) -> None:
    """Compress an ONNX model: smaller, faster, and measured.

    Runs the passes over MODEL, checks after each that the result is still right, rolls back what is not, and writes the
    compressed model.
    """
    _refuse_extra(ctx, model, extra)
    spec = _spec(ctx, model, passes)
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other")
    if data == "":
        raise UsageError("--data is empty; give samples, or leave it out")
    files = Files(model, output_path(model, output, in_place=in_place), report)
    check_files(files, in_place=in_place)

    from graphopt import api, console

    _show_debug_messages(verbose)
    messages = console.message_console()
    bars = console.BarProgress(messages) if messages.is_terminal and not quiet else None
    loaded = api.load(model)
    spare_weights(loaded, files)
    with bars or contextlib.nullcontext():
        result = api.compress(
            loaded,
            spec,
            data=data,
            target=target,
            seed=seed,
            max_drop=max_drop,
            metric=metric,
            benchmark=not no_benchmark,
            threads=threads,
            shapes=sizes,
            strict=strict,
            zstd_level=None if quiet and report is None else 3,  # nobody would see the figure
            progress=bars,
        )
    saved = _write(result, files)
    if not quiet:
        _show(saved, verbose)


def _refuse_extra(ctx: click.Context, model: Path, extra: Sequence[str]) -> None:
    """Tell apart a command that is written wrong and passes without ``-p``."""
    if not extra:
        return
    if not model.exists() and not model.suffix:
        raise UsageError(f"there is no command '{model}'; {_commands(ctx, model)}")
    passes = ",".join(extra)
    raise UsageError(f"'{extra[0]}' is one argument too many; one model a run, and passes follow -p: -p {passes}")


def _spec(ctx: click.Context, model: Path, passes: Sequence[str]) -> str:
    """Return the text of the pipeline; several ``-p`` add up."""
    spec = ",".join(text.strip() for text in passes if text.strip())
    if spec:
        return spec
    if not model.exists():
        raise UsageError(f"there is no file and no command '{model}'; {_commands(ctx, model)}")
    from graphopt.registry import available

    raise UsageError(f"give the passes to run with -p; available: {', '.join(available())}; see: graphopt passes")


def _commands(ctx: click.Context, given: Path) -> str:
    """Return the subcommands, and which of them may be meant."""
    group = ctx.find_root().command
    names = list(group.commands) if isinstance(group, click.Group) else []
    return f"commands: {', '.join(names)}{did_you_mean(str(given), names)}"


def _write(result: Result, files: Files) -> Report:
    if files.report is not None:
        prove_writable(files.report, result.report.to_text())
    report = result.save(files.output).report
    if files.report is not None:
        try:
            write_text(files.report, report.to_text())
        except ModelError as error:
            raise ModelError(f"{error}; the model itself was written to '{files.output}'") from error
    return report


def _show(report: Report, verbose: int) -> None:
    from graphopt.console import result_console, warn
    from graphopt.report.terminal import render

    render(report, result_console(), verbose)
    warn(report.warnings)


def _show_debug_messages(verbose: int) -> None:
    if verbose > 1:
        import logging

        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("graphopt").setLevel(logging.DEBUG)


@click.group(cls=MainGroup, main=compress, context_settings=_GROUP)
@_version
def main() -> None:
    """Compress ONNX models."""


for subcommand in (passes_command, inspect_command, bench_command, unpack_command):
    main.add_command(subcommand)

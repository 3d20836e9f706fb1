"""Click classes of the command: a bare model path is the main command, and errors become one line and a status."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from graphopt.errors import GraphoptError, RegistryError, UsageError

P = ParamSpec("P")
ResultT = TypeVar("ResultT")

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class Failure(click.ClickException):
    """An error of graphopt that is no usage error, shown in one line."""

    exit_code = GraphoptError.exit_code

    def __init__(self, error: GraphoptError) -> None:
        super().__init__(_one_line(error))

    def show(self, file: Any = None) -> None:
        """Print the line to standard error."""
        click.echo(f"graphopt: error: {self.format_message()}", file=file or sys.stderr)


def reports_errors(function: Callable[P, ResultT]) -> Callable[P, ResultT]:
    """Turn the errors of graphopt into those of click; anything else is a bug and keeps its traceback."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> ResultT:
        try:
            return function(*args, **kwargs)
        except UsageError as error:
            raise click.UsageError(_one_line(error), click.get_current_context()) from error
        except GraphoptError as error:
            raise Failure(error) from error
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as error:  # a full disk, a lost folder: the surroundings, not a bug
            raise Failure(GraphoptError(str(error))) from error
        except MemoryError as error:
            raise Failure(GraphoptError(f"out of memory: {error}" if str(error) else "out of memory")) from error
        except KeyboardInterrupt:
            raise click.exceptions.Exit(INTERRUPTED) from None

    return call


def _one_line(error: GraphoptError) -> str:
    from graphopt.report.text import visible

    return visible(" ".join(str(error).split()))


class _MainContext(click.Context):
    """Context of the main command, which has no name of its own on the command line."""

    @property
    def command_path(self) -> str:
        """Path that usage lines show."""
        return self.parent.command_path if self.parent is not None else super().command_path


class MainCommand(click.Command):
    """The command that runs when the first argument is no subcommand; its help is that of the whole program."""

    context_class = _MainContext

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the usage line with the passes, without which nothing runs."""
        return ["MODEL", "-p", "PASS[:OPTION=VALUE...][,PASS...]", "[OPTIONS]"]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, then the passes and the subcommands."""
        super().format_options(ctx, formatter)
        with formatter.section("Passes"):
            formatter.write_text(_known_passes())
        if ctx.parent is not None and isinstance(ctx.parent.command, click.Group):
            ctx.parent.command.format_commands(ctx.parent, formatter)


def _known_passes() -> str:
    from graphopt.registry import available

    try:
        return f"{', '.join(available())}; graphopt passes tells about them"
    except RegistryError as error:  # of a plugin: no reason to withhold the help
        return str(error)


class MainGroup(click.Group):
    """A group that takes a first argument that is no subcommand as an argument of its main command."""

    def __init__(self, *args: Any, main: MainCommand, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.main_command = main

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the subcommand that the first argument names, or else the main command."""
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return "", self.main_command, args

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the main command's help."""
        self.main_command.format_help(_MainContext(self.main_command, parent=ctx), formatter)


if TYPE_CHECKING:
    FloatType = click.ParamType[float]
else:
    FloatType = click.ParamType  # older versions of click have it without a parameter


class Number(FloatType):
    """A number within bounds, which click's own types show as ``1<=x<=1024``.

    Args:
        low: Smallest that is allowed.
        high: Largest; None: there is no limit.
        whole: Whether it must be a whole number.
    """

    name = "number"

    def __init__(self, low: float, high: float | None = None, *, whole: bool = True) -> None:
        self.low = low
        self.high = math.inf if high is None else high
        self.whole = whole

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        try:
            number = int(value) if self.whole else float(value)
        except ValueError:
            number = math.nan
        if not self.low <= number <= self.high:
            kind = "a whole number" if self.whole else "a number"
            bounds = f"of {self.low} or more" if math.isinf(self.high) else f"from {self.low} to {self.high}"
            self.fail(f"'{value}' is not allowed; write {kind} {bounds}", param, ctx)
        return number


class Fraction(FloatType):
    """A fraction between 0 and 1, as ``0.01`` or ``1%``."""

    name = "fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the fraction."""
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            self.fail(f"'{value}' is not allowed; write a percentage such as 1% or a fraction such as 0.01", param, ctx)
        return number

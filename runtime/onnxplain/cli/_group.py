"""A click group whose errors are one line on stderr, with the exit codes of the design."""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

import click

from onnxplain.cli._signals import closing_line, exit_code, interruption_behind, signals_raised
from onnxplain.cli._text import CLEAR_LINE, printable
from onnxplain.errors import OnnxplainError

FAILURE, WRONG_CALL, INTERRUPTED = 1, 2, 130


class OneLineErrors(click.Group):
    """A group that answers every error in one line; with `--debug`, a traceback comes before it.

    Parameters
    ----------
    commands_of
        The package with a module for each command, which is its `command`; imported when asked for.
    names
        The commands, in the order in which they are used, not of the alphabet.
    """

    def __init__(self, *args: Any, commands_of: str, names: Sequence[str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._package, self._names = commands_of, names

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, which takes `--debug` too."""
        cmd.params.append(debug_option())
        super().add_command(cmd, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names."""
        return list(self._names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, from its module."""
        if cmd_name in self._names and cmd_name not in self.commands:
            self.add_command(import_module(f"{self._package}.{cmd_name}").command)
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that `args` name; of an unknown name the error proposes what it is like."""
        name = str(args[0])
        if name not in self._names and not name.startswith("-"):
            near = get_close_matches(name, self._names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; where it is interrupted, end with a line and the exit code that say so."""
        try:
            with signals_raised():
                return super().invoke(ctx)
        except BaseException as error:
            interruption = interruption_behind(error)
            if interruption is None:
                raise
            click.echo(f"{_own_line()}{closing_line(interruption)}", err=True)
            ctx.exit(exit_code(interruption))

    def main(self, args: Sequence[str] | None = None, *extra: Any, **settings: Any) -> NoReturn:
        """Run the command line `args` (default: the process's own) and exit."""
        given = sys.argv[1:] if args is None else args
        args = args if given else ["--help"]
        settings["standalone_mode"] = False
        _print_anything(sys.stdout, sys.stderr)
        warnings.formatwarning = _one_line_warning
        try:
            code = super().main(args, *extra, **settings)
            sys.stdout.flush()
        except (click.Abort, KeyboardInterrupt):
            code = INTERRUPTED
        except BrokenPipeError:
            code = _close_quietly()
        except Exception as error:
            code = _report(error, debug="--debug" in given)
        sys.exit(code if isinstance(code, int) else 0)


def debug_option() -> click.Option:
    """Return the `--debug` option; `OneLineErrors` looks for it in the arguments themselves."""
    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, help="Print a traceback where something fails."
    )


def _report(error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    line, code = _describe(error)
    click.echo(f"{_own_line()}Error: {printable(line)}", err=True)
    return code


def _describe(error: Exception) -> tuple[str, int]:
    """Return the line that an error is answered with, and the exit code."""
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "onnxplain"
        return f"{_sentence(error.format_message())} See `{command} --help`.", WRONG_CALL
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, OnnxplainError):
        return str(error), FAILURE
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{os.fspath(error.filename)}: "
        return f"{where}{error.strerror}", FAILURE
    name = type(error).__name__
    return f"{_sentence(f'unexpected {name}: {error}')} Run it again with --debug for the traceback.", FAILURE


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!", "?)")) else f"{text}."


def _one_line_warning(message: Warning | str, *place: object, **more: object) -> str:
    return f"{_own_line()}Warning: {printable(str(message))}\n"


def _own_line() -> str:
    """Return what a line on stderr begins with, so that no progress stands in it."""
    return CLEAR_LINE * sys.stderr.isatty()


def _print_anything(*streams: Any) -> None:
    """Let names that the terminal's encoding lacks be printed escaped, not fail."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _close_quietly() -> int:
    """Point stdout at nothing, so that the interpreter's last flush finds no closed pipe either."""
    with open(os.devnull, "w") as nothing:  # noqa: PTH123 (os.devnull is no file)
        os.dup2(nothing.fileno(), sys.stdout.fileno())
    return FAILURE

"""The commands by name, each loaded when it is used, and what surrounds every one of them."""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from prunedeploy.cli.failures import handle
from prunedeploy.cli.streams import prepare_streams
from prunedeploy_engines.version import __version__

# In the order of use. The short help stands here, so that `prunedeploy --help` loads no command.
COMMANDS = {
    "build": "Make a detector robust, prune it, export it and measure it.",
    "evaluate": "Measure mAP of a model, on clean and on attacked images.",
    "bench": "Measure the latency of bundles or ONNX files against each other.",
    "detect": "Find objects in images or videos, and draw them.",
    "engine": "Build TensorRT engines from a bundle or an ONNX file.",
    "export": "Write a bundle for Triton, or a manifest for KServe.",
    "serve": "Answer detection requests over HTTP and gRPC.",
    "sweep": "Build every model of a study, in parallel and resumable.",
    "report": "Write the report of a build or of a sweep.",
    "import": "Make a network of a detector exported to ONNX: YOLOv5, v7, v8, 11, YOLOX.",
    "inspect": "Show what a cfg, a bundle or an ONNX file holds.",
    "data": "Check a data set, write one as COCO, or make the demo set.",
    "weights": "Download public Darknet weights, checked and resumable.",
    "store": "Show or tidy the results that builds share.",
    "doctor": "Say what works on this machine, and what to install.",
}

_MODULES = {"import": "import_onnx"}  # where a name cannot be a module's


@dataclass
class Session:
    """What all commands of one call share; ``ctx.find_object(Session)``.

    Attributes:
        debug: Show tracebacks.
        command: The command line, as it could be typed again.
        began: When it was called, in seconds since the epoch.
    """

    debug: bool = False
    command: str = "prunedeploy"
    began: float = field(default_factory=time.time)
    _resumable: list[tuple[Path, str]] = field(default_factory=list)

    def resumes_from(self, folder: Path, *patterns: str) -> None:
        """Say where a command keeps what the same command goes on with after it was interrupted."""
        self._resumable += [(folder, pattern) for pattern in patterns]

    def has_kept(self) -> bool:
        """Whether there is something there that was written or used since the command began."""
        for folder, pattern in self._resumable:
            for path in folder.glob(pattern):
                with contextlib.suppress(OSError):  # another process has just removed it
                    if path.stat().st_mtime >= self.began:
                        return True
        return False


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Session).debug |= value


def _debug_option() -> click.Option:
    text = "Show the traceback of an error (also: PRUNEDEPLOY_DEBUG=1)."
    return click.Option(["--debug"], is_flag=True, is_eager=True, expose_value=False, callback=_set_debug, help=text)


def _json_option() -> click.Option:
    text = "Print one JSON document on stdout, and nothing else there."
    return click.Option(["--json", "as_json"], is_flag=True, help=text)


class Command(click.Command):
    """A command that takes ``--json``, passed as ``as_json``, and ``--debug``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [_json_option(), _debug_option()]


@click.pass_context
def _show_help_without_command(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


class Group(click.Group):
    """A group that takes ``--debug``; without a command it shows its help.

    Of the decorated function only the docstring is used.
    """

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"invoke_without_command": True, **kwargs, "callback": _show_help_without_command})
        self.params.append(_debug_option())


class RootGroup(Group):
    """Loads a command when it is used, and turns every failure into a line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"prunedeploy.cli.{_MODULES.get(cmd_name, cmd_name)}").command
        command.short_help = COMMANDS[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and exit with 0, 2 (the user can fix it), 3 (delivered in part), 130 (interrupted) or 1 (a bug)."""
        given = list(sys.argv[1:] if args is None else args)
        session = Session(
            debug=os.environ.get("PRUNEDEPLOY_DEBUG", "") not in ("", "0"),
            command=shlex.join(["prunedeploy", *given]),
        )
        extra.setdefault("obj", session)
        try:
            code = super().main(given, prog_name or "prunedeploy", complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()  # a reader that is gone is noticed here, not when the interpreter ends
        except _FailedError as failed:
            code = handle(failed.error, session.debug, session.has_kept)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  whatever it is, it gets its line
            code = handle(error, session.debug, session.has_kept)
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, EOFError, OSError) as error:
            # click has words of its own for these three, and they are not ours.
            raise _FailedError(error) from error


class _FailedError(Exception):
    """Carries an error past click."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def examples(*lines: str) -> str:
    """Return the epilog that lists command lines, not wrapped."""
    return "\n".join(["\b", f"Example{'s' * (len(lines) > 1)}:", *(f"  {line}" for line in lines)])


def command_with_examples(name: str, *lines: str) -> Callable[[Callable[..., Any]], Command]:
    """Make a `Command` of a function; its help ends with these command lines."""
    return click.command(name, cls=Command, epilog=examples(*lines))


EPILOG = f"""{
    examples(
        "prunedeploy build --ratio 0.75          the demo: about 7 minutes",
        "prunedeploy build --cfg yolov3-tiny --weights yolov3-tiny.weights --data DIR",
        "prunedeploy detect runs/demo-structured-bn-scale-0.75-s0 photo.jpg --out drawn",
    )
}

Exit codes: 0 success, 2 something that you can fix (one line says what), 3 a build that delivered but left something
out (a line says what and why), 1 a bug, 130 interrupted.
"""


@click.command(
    "prunedeploy",
    cls=RootGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, prog_name="prunedeploy", message="%(prog)s %(version)s")
def cli() -> None:
    """Prune YOLO detectors so that they stay right under attack, and deploy them, measured.

    A detector goes in as Darknet cfg and weights; out comes a smaller one, trained against PGD, exported to
    ONNX and TensorRT, with its accuracy (clean and attacked) and latency before and after.
    """


def main() -> None:
    """Run the program ``prunedeploy``."""
    prepare_streams()
    warnings.formatwarning = _one_line_warning
    cli()


def _one_line_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"prunedeploy: warning: {' '.join(str(message).split())}\n"

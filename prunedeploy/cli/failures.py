"""What a failure looks like: one line on stderr and an exit code, a traceback only on request.

0 is success, 2 what the user can fix, 3 a build that delivered but left something out, 130 an interrupt, 1 a bug of
ours.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator

import click

from prunedeploy_engines.errors import PrunedeployError

BUG, USER, INCOMPLETE, INTERRUPTED, BROKEN_PIPE = 1, 2, 3, 130, 141

# What a missing library is needed for is what its extra installs.
EXTRA_OF = {
    **dict.fromkeys(
        ("torch", "onnx", "captum", "pycocotools", "scipy", "safetensors", "matplotlib", "accelerate"),
        "train",
    ),
    "onnxruntime": "cpu",
    "av": "video",
    "tensorrt": "gpu",
    "cuda": "gpu",
    "tensorrt_rtx": "rtx",
}
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def handle(error: BaseException, debug: bool, has_kept: Callable[[], bool]) -> int:
    """Print what there is to say about an error and return the exit code.

    Args:
        error: What ended the command.
        debug: Print the traceback too.
        has_kept: Says of an interrupted command whether the same command would go on where it was.
    """
    if isinstance(error, BrokenPipeError):
        _silence_stdout()
        return BROKEN_PIPE
    line, code = explain(error)
    if code == INTERRUPTED and has_kept():
        line += "; the same command resumes"
    if debug and not isinstance(error, click.ClickException):
        traceback.print_exception(error)
    click.echo(line, err=True)
    return code


def explain(error: BaseException) -> tuple[str, int]:
    """Return the line for an error, and the exit code."""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return "interrupted", INTERRUPTED
    if isinstance(error, PrunedeployError):
        return _line(str(error)), error.exit_code
    if isinstance(error, click.ClickException):
        return _line(_usage(error)), USER
    for cause in _chain(error):
        if isinstance(cause, ImportError) and (text := _missing_extra(cause)) is not None:
            return _line(text), USER
        if isinstance(cause, OSError) and cause.errno in _DISK_FULL:
            where = f"{cause.filename}: " if cause.filename else ""
            return _line(f"{where}no space is left on this disk; free space, or write to another one"), USER
    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename:
        return _line(f"{error.filename}: {error.strerror}; check its permissions"), USER
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _line("memory is used up; use smaller batches, or a machine with more of it"), USER
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return _line(f"{what} (this is a bug in prunedeploy; add --debug to see the traceback)"), BUG


def _line(text: str) -> str:
    return f"prunedeploy: error: {text}"


def _usage(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    return text if context is None else f"{text}; see `{context.command_path} --help`"


def _missing_extra(error: ImportError) -> str | None:
    library = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(library)
    if extra is None:
        return None
    install = f"pip install 'prunedeploy[{extra}]'"
    if isinstance(error, ModuleNotFoundError) and error.name == library:
        return f"this needs {library}, which is not installed; {install}"
    return f"{library} is installed but does not load ({error}); install it again: {install}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _silence_stdout() -> None:
    """Nobody reads on: let the interpreter's last flush go nowhere."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        return

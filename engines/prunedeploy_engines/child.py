"""A module of ours in a process beside this one, which answers requests one by one; `Child` is it from the outside.

What the two send each other is a line of JSON, then the bytes of the arrays that it announces.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.processes import how_it_ended, same_imports

_SECONDS_TO_END = 5.0  # between the end of its output and its own

Array = npt.NDArray[Any]


class Child:
    """The process.

    Args:
        module: What it runs; it takes requests from stdin and answers on stdout, with `receive` and `send`.

    Attributes:
        process: The system's.
    """

    def __init__(self, module: str) -> None:
        # A file, not a pipe: a process that prints a lot must not block.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=same_imports(),
        )

    def ask(self, request: dict[str, Any], arrays: Sequence[Array] = ()) -> tuple[dict[str, Any], list[Array]]:
        """Send a request and wait for its answer.

        Raises:
            EOFError: The process has ended; how, is told.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if self.process.returncode is not None:
            raise EOFError(self._how_it_ended())
        try:
            send(self.process.stdin, request, arrays)
            return receive(self.process.stdout)
        except (EOFError, OSError):
            raise EOFError(self._how_it_ended()) from None
        except BaseException:
            self._kill()  # e.g. Ctrl-C: what it is still to say would be taken for the next answer
            raise

    def close(self) -> None:
        """End the process, which holds nothing but memory."""
        self._kill()
        self._stderr.close()

    def _how_it_ended(self) -> str:
        try:
            code = self.process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._stderr.seek(0)
        return how_it_ended(code, self._stderr.read())

    def _kill(self) -> None:
        """End the process and this side of its pipes."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):  # what was written last never got through
                if pipe is not None:
                    pipe.close()


def send(stream: IO[bytes], message: dict[str, Any], arrays: Sequence[Array] = ()) -> None:
    """Write a message and what comes with it.

    Args:
        stream: Buffered.
        message: JSON values; ``arrays`` is not among its keys.
        arrays: Numbers, of any shape and layout.
    """
    contiguous = [np.ascontiguousarray(array) for array in arrays]
    told = [{"dtype": array.dtype.str, "shape": array.shape} for array in contiguous]
    stream.write(json.dumps({**message, "arrays": told}).encode() + b"\n")
    for array in contiguous:
        stream.write(_bytes_of(array))
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[Array]]:
    """Read a message; the arrays are new ones.

    Raises:
        EOFError: The stream ended before it or within it.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    message = json.loads(line)
    return message, [_read_array(stream, **told) for told in message.pop("arrays")]


def _read_array(stream: Any, dtype: str, shape: Sequence[int]) -> Array:
    array: Array = np.empty(shape, dtype)
    missing = _bytes_of(array)
    while len(missing):
        count = stream.readinto(missing)
        if not count:
            raise EOFError
        missing = missing[count:]
    return array


def _bytes_of(array: Array) -> memoryview:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data

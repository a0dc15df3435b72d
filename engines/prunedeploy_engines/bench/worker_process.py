"""A measuring process, seen from its parent."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import TYPE_CHECKING, Any

from prunedeploy_engines.errors import EngineError, RuntimeUnavailableError
from prunedeploy_engines.processes import how_it_ended, same_imports

if TYPE_CHECKING:
    from typing_extensions import Self


class Worker:
    """A process that holds one model; a context manager that ends it."""

    def __init__(self, name: str) -> None:
        self.name = name
        # A file, not a pipe: a worker that prints a lot must not block.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "prunedeploy_engines.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=same_imports(),
            text=True,
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            EngineError: The worker answers with an error, or ends; the message names the model.
            RuntimeUnavailableError: The worker says that what it needs is not there.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise EngineError(f"{self.name}: the measuring process ended ({self._last_words()})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            error = answer["error"]
            missing = error["kind"] == RuntimeUnavailableError.__name__
            kind = RuntimeUnavailableError if missing else EngineError
            raise kind(f"{self.name}: {error['what']}", where=error["where"], fix=error["fix"])
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        return how_it_ended(code, self._stderr.read())

    def close(self) -> None:
        """End the process: politely, then not."""
        try:
            # communicate() closes stdin, which ends a worker that waits for a command.
            self._process.communicate(timeout=2)
        except (subprocess.TimeoutExpired, BrokenPipeError, ValueError):
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self.close()

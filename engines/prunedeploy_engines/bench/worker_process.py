"""A measuring process, seen from its parent."""

from __future__ import annotations

from typing import Any

from prunedeploy_engines.child import Child
from prunedeploy_engines.errors import EngineError, RuntimeUnavailableError


class Worker:
    """A process that holds one model; a context manager that ends it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._child = Child("prunedeploy_engines.bench.worker")

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            EngineError: The worker answers with an error, or ends; the message names the model.
            RuntimeUnavailableError: The worker says that what it needs is not there.
        """
        try:
            answer, _ = self._child.ask({"do": do, **arguments})
        except EOFError as end:
            raise EngineError(f"{self.name}: the measuring process ended ({end})") from None
        if "error" in answer:
            error = answer["error"]
            missing = error["kind"] == RuntimeUnavailableError.__name__
            kind = RuntimeUnavailableError if missing else EngineError
            raise kind(f"{self.name}: {error['what']}", where=error["where"], fix=error["fix"])
        return answer

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

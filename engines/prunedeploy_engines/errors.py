"""The error tree: everything a user can fix derives from `PrunedeployError`.

The command line prints such an error as one line and exits with code 2; any other
exception is a bug of ours and exits with code 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class PrunedeployError(Exception):
    """Something the user can fix.

    Args:
        what: What is wrong, in one clause.
        where: The file, option or object it is wrong in, ``path:line`` if there is a line.
        fix: What to do about it, as an imperative clause.
    """

    exit_code = 2

    def __init__(self, what: str, where: object = None, fix: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix
        line = what if self.where is None else f"{self.where}: {what}"
        if fix is not None:
            line = f"{line}; {fix}"
        super().__init__(" ".join(line.split()))


class ConfigError(PrunedeployError):
    """A configuration key, value or command-line option is wrong."""


class DarknetFormatError(PrunedeployError):
    """A Darknet ``.cfg`` or ``.weights`` file cannot be used."""


class OnnxImportError(PrunedeployError):
    """An ONNX file of another project is no detector that can be read."""


class DataError(PrunedeployError):
    """A data set, annotation file or image cannot be used."""


class DownloadError(PrunedeployError):
    """A file could not be fetched, or is not the file that was asked for."""


class PruningError(PrunedeployError):
    """A pruning request that no network can satisfy, e.g. an unreachable ratio."""


class GateError(PrunedeployError):
    """An exported artefact does not compute what its parent computes.

    Args:
        what: As of every error; ``where`` and ``fix`` too.
        where: See there.
        fix: See there.
        gate: Which limit was missed: ``tensor``, ``detections``, ``map`` or ``budget``; None where no limit would help.
    """

    def __init__(self, what: str, where: object = None, fix: str | None = None, *, gate: str | None = None) -> None:
        super().__init__(what, where, fix)
        self.gate = gate


class BundleError(PrunedeployError):
    """A bundle is incomplete, altered, or of another schema."""


class EngineError(PrunedeployError):
    """An engine cannot be built, loaded or run."""


class RuntimeUnavailableError(EngineError):
    """The runtime, provider or device that was asked for is not there."""


class StoreError(PrunedeployError):
    """The stage store or an output folder cannot be used as asked."""


@contextmanager
def store_errors_as(kind: type[PrunedeployError]) -> Iterator[None]:
    """Raise a `StoreError` of the block as one of another kind, with its own words."""
    try:
        yield
    except StoreError as error:
        raise kind(error.what, error.where, error.fix) from error


def error_to_json(error: PrunedeployError) -> dict[str, str | None]:
    """An error as JSON values, for another process."""
    return {"kind": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}


def error_from_json(told: Mapping[str, str | None]) -> PrunedeployError:
    """The error of `error_to_json`, with its own words; of its own class if that stands here."""
    named = globals().get(str(told["kind"]))
    kind = named if isinstance(named, type) and issubclass(named, PrunedeployError) else PrunedeployError
    return kind(str(told["what"]), told["where"], told["fix"])

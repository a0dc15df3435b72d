"""The timing cache of full TensorRT: what its builder measured once it need not measure again.

Times of one GPU and version say nothing about another, so a cache file has a note beside it of where it comes
from; one from elsewhere, or damaged, is not used and is written anew.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from prunedeploy_engines.errors import EngineError, store_errors_as
from prunedeploy_engines.files import write_atomically
from prunedeploy_engines.runtimes.tensorrt.library import TensorRTLibrary


class TimingCache:
    """A timing cache in a file.

    Args:
        path: The file; it need not exist.
        library: The library that builds.
        device: Name of the GPU that is built on.
    """

    def __init__(self, path: str | Path, library: TensorRTLibrary, device: str) -> None:
        self.path = Path(path)
        self._origin = {"library": library.name, "version": library.version, "device": device}

    @property
    def note_path(self) -> Path:
        """``<file>.json``: where the cache comes from."""
        return self.path.with_name(self.path.name + ".json")

    def attach(self, config: Any) -> bool:
        """Give the cache to a builder configuration, filled from the file if that fits.

        Args:
            config: ``IBuilderConfig``.

        Returns:
            Whether the file was used.

        Raises:
            EngineError: Not even an empty cache is taken.
        """
        stored = self._read()
        if stored and config.set_timing_cache(config.create_timing_cache(stored), False):
            return True
        if not config.set_timing_cache(config.create_timing_cache(b""), False):
            raise EngineError("the timing cache is refused", where=self.path, fix="build without it")
        return False

    def save(self, config: Any) -> None:
        """Write what the configuration's cache holds now.

        Raises:
            EngineError: The disk refuses.
        """
        content = bytes(config.get_timing_cache().serialize())
        note = {**self._origin, "sha256": hashlib.sha256(content).hexdigest()}
        with store_errors_as(EngineError):
            write_atomically(self.path, content)
            write_atomically(self.note_path, (json.dumps(note, indent=2) + "\n").encode())

    def _read(self) -> bytes:
        """Content of the file; empty if it is not there, damaged, or of another version or GPU."""
        try:
            content = self.path.read_bytes()
            note = json.loads(self.note_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return b""
        expected = {**self._origin, "sha256": hashlib.sha256(content).hexdigest()}
        return content if note == expected else b""

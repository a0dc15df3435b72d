"""A TensorRT plan on disk and the sidecar that says what it is.

The plan stays the bare bytes that the library made (a header of ours would stop Triton from loading it); what
we know of it goes into ``<plan>.json`` beside it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.files import file_sha256, write_atomically
from prunedeploy_engines.runtimes.tensorrt.library import LibraryName

SCHEMA_VERSION = 2
REBUILD = "build it again with `prunedeploy engine`"

Batch = tuple[int, int, int]
Profile = dict[str, list[list[int]]]


@dataclass(frozen=True)
class EngineFile:
    """A plan on disk and where it came from: the content of its sidecar.

    Attributes:
        path: The plan.
        library: ``"tensorrt"`` or ``"tensorrt_rtx"``.
        version: The library's version, all parts.
        target: E.g. ``"sm86"``.
        device: Name of the GPU it was built on; None if built ahead of time.
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"`` or ``"fp8"``: what was ordered, and found
            when the network was read back.
        layers: Number of convolutions by the precision they compute in, e.g. ``{"int8": 70, "fp32": 5}``.
        layers_from: ``"engine"`` where the built engine told, ``"network"`` where only the network that it was
            built from could be read back.
        uint8_input: It takes ``(N, H, W, 3)`` uint8 images.
        nms: The suppression in it, as `onnx_file.NmsInGraph` has it; None if it gives boxes and scores.
        class_names: As the ONNX file has them; empty if it has none.
        sparsity: ``"2:4 asked for"`` or None. The library may use 2:4 kernels then; it does not say whether
            it did.
        bytes: Size of the plan.
        sha256: SHA-256 of the plan.
        key: Key of everything that went into it, see `from_onnx.engine_key`.
        onnx_sha256: SHA-256 of the ONNX file.
        profile: Per input the smallest, best and largest shape that it accepts.
        flags: Builder settings, among them the library's own flags that were on (``builder_flags``, e.g.
            TF32).
        created: UTC, ISO 8601.
        cached: True if it was already there and nothing was built; not stored.
    """

    path: Path
    library: LibraryName
    version: str
    target: str
    device: str | None
    precision: str
    layers: dict[str, int]
    layers_from: str
    uint8_input: bool
    nms: dict[str, Any] | None
    class_names: list[str]
    sparsity: str | None
    bytes: int
    sha256: str
    key: str
    onnx_sha256: str
    profile: Profile
    flags: dict[str, Any]
    created: str
    cached: bool = False

    @property
    def computes_in(self) -> dict[str, float] | None:
        """Share of the convolutions by precision, e.g. ``{"int8": 0.93, "fp32": 0.07}``; None without any."""
        total = sum(self.layers.values())
        return {name: count / total for name, count in self.layers.items()} if total else None


_UNSTORED = ("path", "cached")
_KINDS: dict[str, type | tuple[type, ...]] = {
    "profile": dict,
    "bytes": int,
    "layers": dict,
    "flags": dict,
    "nms": (dict, type(None)),
    "class_names": list,
}


def sidecar_path(plan_path: Path) -> Path:
    """``<plan>.json``."""
    return plan_path.with_name(plan_path.name + ".json")


def write_engine_file(engine: EngineFile, plan: bytes) -> None:
    """Write plan and sidecar.

    Plan first: killed in between, the old sidecar does not match the new plan and the next call builds again.
    """
    content = {name: value for name, value in asdict(engine).items() if name not in _UNSTORED}
    text = json.dumps({"schema_version": SCHEMA_VERSION, "plan": engine.path.name, **content}, indent=2)
    write_atomically(engine.path, plan)
    write_atomically(sidecar_path(engine.path), f"{text}\n".encode())


def read_engine_file(plan_path: str | Path, *, verify: bool = True) -> EngineFile:
    """Read a plan's sidecar.

    Args:
        plan_path: The plan.
        verify: Also compare the plan's size and sha256 with it.

    Raises:
        EngineError: Plan or sidecar is missing or unreadable, or the plan is not the one that was built.
    """
    plan_path = Path(plan_path)
    if not plan_path.is_file():
        raise EngineError("there is no such engine", where=plan_path, fix="build it with `prunedeploy engine`")
    engine = _read_sidecar(plan_path)
    if verify:
        size = plan_path.stat().st_size
        if size != engine.bytes:
            raise EngineError(f"has {size} bytes, was built with {engine.bytes}", where=plan_path, fix=REBUILD)
        if file_sha256(plan_path) != engine.sha256:
            raise EngineError("was changed after it was built (sha256 differs)", where=plan_path, fix=REBUILD)
    return engine


def _read_sidecar(plan_path: Path) -> EngineFile:
    sidecar = sidecar_path(plan_path)
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            raise EngineError(f"sidecar has schema {content['schema_version']}", where=sidecar, fix=REBUILD)
        fields = {name: content[name] for name in EngineFile.__annotations__ if name not in _UNSTORED}
        for name, kind in _KINDS.items():
            if not isinstance(fields[name], kind):
                raise TypeError(f"{name} is of another type")
        return EngineFile(path=plan_path, **fields)
    except FileNotFoundError as error:
        raise EngineError("has no sidecar that says what it is", where=plan_path, fix=REBUILD) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"sidecar cannot be read ({error!r})", where=sidecar, fix=REBUILD) from error

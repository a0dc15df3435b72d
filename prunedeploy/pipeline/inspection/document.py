"""What a path is, and the document of what is in it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from prunedeploy_engines.bundle.source import find_model
from prunedeploy_engines.errors import ConfigError


def inspect(path: Path) -> dict[str, Any]:
    """Look into a file or folder; only what its kind needs is imported.

    Args:
        path: A Darknet cfg, a bundle, a build's output folder or an ONNX file.

    Returns:
        ``kind`` (``cfg``, ``bundle``, ``build`` or ``onnx``), ``path``, and what `network_document`, `bundle_document`
        or the file's contents say.

    Raises:
        ConfigError: There is nothing, or something else.
        DarknetFormatError: The cfg is not one that this project supports.
        BundleError: The bundle is incomplete or altered.
        EngineError: The ONNX file is broken or cut off.
    """
    if path.suffix == ".cfg" and not path.is_dir():
        from prunedeploy.models.darknet_cfg import read_cfg
        from prunedeploy.pipeline.inspection.network import network_document

        return {"kind": "cfg", "path": path, **network_document(read_cfg(path))}
    if path.suffix == ".weights" and path.is_file():
        raise ConfigError("are weights, which do not say of which network", path, "give the .cfg file")
    source = find_model(path)
    if source.onnx is not None:
        return {"kind": "onnx", "path": path, **_onnx_document(source.onnx)}
    from prunedeploy.pipeline.inspection.bundle import bundle_document, results_beside

    bundle = source.load_bundle()
    results = source.results or results_beside(bundle.path)
    return {"kind": source.kind, "path": path, "cfg": source.cfg, **bundle_document(bundle, results)}


def _onnx_document(path: Path) -> dict[str, Any]:
    from prunedeploy_engines.runtimes.onnx_file import read_onnx_header
    from prunedeploy_export.graph.contents import read_contents

    header = read_onnx_header(path)
    return {
        "bytes": path.stat().st_size,
        **asdict(read_contents(path)),
        "classes": list(header.class_names),
        "uint8_input": header.uint8_input,
        "nms": None if header.nms is None else asdict(header.nms),
        "metadata": header.metadata,
    }

"""A client may go from `prunedeploy serve` to Triton and back: the model for encoded images is the same in both."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from detector_variants import save_uint8_detector
from export.cluster.test_triton_models import bundle_of
from export.cluster.triton_models import model_config, read_config
from prunedeploy_engines.serving.core.repository import ModelRepository
from prunedeploy_engines.serving.core.service import Service
from prunedeploy_engines.serving.core.settings import ServingSettings
from prunedeploy_engines.serving.telemetry.metrics import Metrics
from prunedeploy_export.cluster.triton_repository import write_triton_repository


def of_the_server(bundle: Path, model: str) -> dict[str, Any]:
    """What the server says of a model, as the protocol's JSON."""

    async def ask() -> dict[str, Any]:
        repository = ModelRepository({"tiny": bundle}, ServingSettings(runtime="onnxruntime"), Metrics())
        await repository.load("tiny")
        try:
            return Service(repository).metadata(model, None)
        finally:
            await repository.close()

    return asyncio.run(ask())


def test_names_types_and_shapes_are_the_servers(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", save_uint8_detector(tmp_path / "source.onnx"))
    written = write_triton_repository(bundle, tmp_path / "models", name="tiny")
    config = read_config(written.path, written.models[-1])
    kinds = {"TYPE_STRING": "BYTES"}
    said = of_the_server(tmp_path / "bundle", written.models[-1])
    for part, tensors in (("inputs", config.input), ("outputs", config.output)):
        ours = []
        for tensor in tensors:
            kind = model_config.DataType.Name(tensor.data_type)
            datatype = kinds.get(kind, kind.removeprefix("TYPE_"))
            ours.append({"name": tensor.name, "datatype": datatype, "shape": list(tensor.dims)})
        assert ours == said[part]
    assert (config.name, config.platform, ["1"]) == (said["name"], said["platform"], said["versions"])

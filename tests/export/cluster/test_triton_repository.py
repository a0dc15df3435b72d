"""The model repository: read by Triton's own schema, whole or not there, and nothing that Triton cannot load."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from detector_variants import MAX_DETECTIONS, save_nms_detector, save_uint8_detector
from export.cluster.test_triton_models import DETECTORS, HEIGHT, WIDTH, bundle_of
from export.cluster.triton_models import model_config, read_config
from prunedeploy_engines.bundle import Bundle, BundleFile, load_bundle
from prunedeploy_engines.errors import BundleError, ConfigError, EngineError, StoreError
from prunedeploy_engines.files import file_sha256
from prunedeploy_engines.runtimes.tensorrt.engine_file import EngineFile, sidecar_path, write_engine_file
from prunedeploy_export.cluster.triton_config import TritonSettings
from prunedeploy_export.cluster.triton_repository import write_triton_repository
from tiny_detector import cell_boxes, save_tiny_detector

CELLS = len(cell_boxes(HEIGHT, WIDTH))
FLOAT, BYTE, INT32, INT64, STRING = (
    model_config.DataType.Value(f"TYPE_{name}") for name in ("FP32", "UINT8", "INT32", "INT64", "STRING")
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return bundle_of(tmp_path / "bundle", save_tiny_detector(tmp_path / "source.onnx"))


def add_plan(
    bundle: Bundle, library: str = "tensorrt", *, batches: tuple[int, int, int] = (1, 4, 8), **fields: Any
) -> None:
    """Put a plan into the bundle. Its bytes are no real plan: nothing here can build or open one of full TensorRT."""
    scratch = bundle.path.parent / f"{library}.plan"
    content = (b"vtrt" if library == "tensorrt_rtx" else b"ftrt") + bytes(64)
    described: dict[str, Any] = {
        "path": scratch,
        "library": library,
        "version": "10.3.0.26",
        "target": "sm86",
        "device": None,
        "precision": "fp32",
        "layers": {"fp32": 2},
        "layers_from": "engine",
        "uint8_input": False,
        "nms": None,
        "class_names": [],
        "sparsity": None,
        "bytes": len(content),
        "sha256": "",
        "key": "",
        "onnx_sha256": file_sha256(bundle.path / "model.onnx"),
        "profile": {"images": [[batch, 3, HEIGHT, WIDTH] for batch in batches]},
        "flags": {},
        "created": "2026-01-01T00:00:00+00:00",
    }
    write_engine_file(EngineFile(**{**described, **fields}), content)
    name = f"engines/sm86/model.{library}.plan"
    bundle.add_files(
        {
            name: BundleFile(scratch, "engine", "fp32", "sm86"),
            f"{name}.json": BundleFile(sidecar_path(scratch), "metadata", None, "sm86"),
        }
    )


def tensors(declared: Any) -> dict[str, tuple[int, list[int]]]:
    return {value.name: (value.data_type, list(value.dims)) for value in declared}


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_detector_is_batched_queued_and_warmed_up_as_asked(tmp_path: Path, bundle: Bundle) -> None:
    settings = TritonSettings(
        max_batch=12, preferred_batch=(12, 3), max_delay_ms=0.5, max_queue=7, timeout_s=1.5, instances=2, threads=3
    )
    written = write_triton_repository(bundle, tmp_path / "models", name="tiny", settings=settings, version=4)
    config = read_config(tmp_path / "models", "tiny")
    assert (config.name, config.backend, config.platform) == ("tiny", "onnxruntime", "onnxruntime_onnx")
    assert config.max_batch_size == 12
    assert tensors(config.input) == {"images": (FLOAT, [3, HEIGHT, WIDTH])}
    assert tensors(config.output) == {"boxes": (FLOAT, [CELLS, 4]), "scores": (FLOAT, [CELLS, 3])}
    assert list(config.dynamic_batching.preferred_batch_size) == [3, 12]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (7, 1_500_000)
    assert policy.timeout_action == model_config.ModelQueuePolicy.REJECT
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (2, model_config.ModelInstanceGroup.KIND_CPU)
    ]
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    assert config.version_policy.latest.num_versions == 1
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 3, 12]
    for warmup in config.model_warmup:
        assert (list(warmup.inputs["images"].dims), warmup.inputs["images"].data_type) == ([3, HEIGHT, WIDTH], FLOAT)
    assert (tmp_path / "models" / "tiny" / "4" / "model.onnx").read_bytes() == (bundle.path / "model.onnx").read_bytes()
    assert written.models == ("tiny", "tiny-preprocess", "tiny-postprocess", "tiny-detect")
    ensemble = read_config(tmp_path / "models", written.models[-1])
    assert {step.model_version for step in ensemble.ensemble_scheduling.step} == {4}


def test_every_queue_has_an_end(tmp_path: Path, bundle: Bundle) -> None:
    settings = TritonSettings(max_queue=7, timeout_s=0.25, python_instances=5)
    written = write_triton_repository(bundle, tmp_path / "models", name="tiny", settings=settings)
    for model in written.models[:3]:
        policy = read_config(tmp_path / "models", model).dynamic_batching.default_queue_policy
        assert (policy.max_queue_size, policy.default_timeout_microseconds) == (7, 250_000)
    for model in written.models[1:3]:
        config = read_config(tmp_path / "models", model)
        assert (config.backend, config.max_batch_size, config.instance_group[0].count) == ("python", 0, 5)


@pytest.mark.parametrize(("max_batch", "preferred"), [(1, [1]), (2, [1, 2]), (8, [4, 8]), (9, [4, 9])])
def test_preferred_batches_unless_told(tmp_path: Path, bundle: Bundle, max_batch: int, preferred: list[int]) -> None:
    settings = TritonSettings(max_batch=max_batch)
    write_triton_repository(bundle, tmp_path / "models", name="tiny", settings=settings)
    config = read_config(tmp_path / "models", "tiny")
    assert list(config.dynamic_batching.preferred_batch_size) == preferred


def test_types_and_shapes_are_those_of_the_file(tmp_path: Path) -> None:
    uint8 = bundle_of(tmp_path / "uint8", save_uint8_detector(tmp_path / "uint8.onnx"))
    write_triton_repository(uint8, tmp_path / "models", name="tiny")
    assert tensors(read_config(tmp_path / "models", "tiny").input) == {"images": (BYTE, [HEIGHT, WIDTH, 3])}
    warmup = read_config(tmp_path / "models", "tiny").model_warmup[0]
    assert warmup.inputs["images"].data_type == BYTE

    nms = bundle_of(tmp_path / "nms", save_nms_detector(tmp_path / "nms.onnx"))
    write_triton_repository(nms, tmp_path / "models", name="tiny", overwrite=True)
    config = read_config(tmp_path / "models", "tiny")
    # One number per image: Triton has no batched tensor of one dimension, so the client sees (N, 1).
    assert tensors(config.output) == {"detections": (FLOAT, [MAX_DETECTIONS, 6]), "num_detections": (INT32, [1])}
    assert config.output[1].HasField("reshape")
    assert list(config.output[1].reshape.shape) == []
    assert not config.output[0].HasField("reshape")


@pytest.mark.parametrize("kind", [*DETECTORS, "fixed batch"])
def test_tensors_of_the_steps_fit_each_other(tmp_path: Path, kind: str) -> None:
    """What an ensemble's tensor is, all steps must agree on: by name, type and shape with the batch in it.

    The rule is that of Triton (it compares the dims, or the dims with the batch before them).
    """
    model = fixed_batch(tmp_path, 2) if kind == "fixed batch" else DETECTORS[kind](tmp_path / "source.onnx")
    written = write_triton_repository(bundle_of(tmp_path / "bundle", model), tmp_path / "models", name="tiny")
    ensemble = read_config(written.path, written.models[-1])
    known: dict[str, tuple[int, list[int]]] = {}

    def agree(tensor: str, declared: Any, batching: bool) -> None:
        dims = [*([-1] if batching else []), *declared.dims]
        kind, shape = known.setdefault(tensor, (declared.data_type, dims))
        assert kind == declared.data_type, tensor
        assert len(shape) == len(dims), (tensor, shape, dims)
        for one, other in zip(shape, dims, strict=True):
            assert one == other or -1 in (one, other), (tensor, shape, dims)

    for value in (*ensemble.input, *ensemble.output):
        agree(value.name, value, ensemble.max_batch_size > 0)
    made = {value.name for value in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        config = read_config(written.path, step.model_name)
        inputs, outputs = ({value.name: value for value in part} for part in (config.input, config.output))
        assert set(step.input_map) == set(inputs)  # every input, once
        assert set(step.output_map) <= set(outputs)
        assert set(step.input_map.values()) <= made  # by a step before
        for name, tensor in step.input_map.items():
            agree(tensor, inputs[name], config.max_batch_size > 0)
        for name, tensor in step.output_map.items():
            agree(tensor, outputs[name], config.max_batch_size > 0)
            assert tensor not in made, f"{tensor} is made twice"
            made.add(tensor)
    assert {value.name for value in ensemble.output} <= made


def test_ensemble_takes_and_gives_what_the_server_does(tmp_path: Path, bundle: Bundle) -> None:
    written = write_triton_repository(bundle, tmp_path / "models", name="tiny")
    ensemble = read_config(written.path, written.models[-1])
    assert (ensemble.name, ensemble.platform, ensemble.max_batch_size) == ("tiny-detect", "ensemble", 0)
    assert tensors(ensemble.input) == {"image": (STRING, [-1])}
    assert tensors(ensemble.output) == {
        "boxes": (FLOAT, [-1, -1, 4]),
        "scores": (FLOAT, [-1, -1]),
        "classes": (INT64, [-1, -1]),
        "num_detections": (INT32, [-1]),
    }
    assert json.loads(ensemble.parameters["class_names"].string_value) == ["red", "green", "blue"]
    assert any((written.path / written.models[-1] / "1").iterdir()), "object stores keep no empty folder"


def test_class_names_of_any_kind_survive(tmp_path: Path) -> None:
    names = ['a "quoted" one', "back\\slash", "Bär\n🐻"]
    model = save_tiny_detector(tmp_path / "source.onnx")
    from prunedeploy_engines.bundle import write_bundle

    files = {"model.onnx": BundleFile(model, "onnx", "fp32")}
    bundle = write_bundle(tmp_path / "b", files, class_names=names, input={"height": HEIGHT, "width": WIDTH})
    written = write_triton_repository(bundle, tmp_path / "models", name="tiny")
    parameters = read_config(written.path, written.models[-1]).parameters
    assert json.loads(parameters["class_names"].string_value) == names


def fixed_batch(folder: Path, batch: int) -> Path:
    """The tiny detector for one batch size."""
    model = onnx.load(save_tiny_detector(folder / "any.onnx"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(model, folder / "fixed.onnx")
    return folder / "fixed.onnx"


def test_file_of_one_batch_size_is_not_batched_by_triton(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", fixed_batch(tmp_path, 2))
    write_triton_repository(bundle, tmp_path / "models", name="tiny")
    config = read_config(tmp_path / "models", "tiny")
    assert config.max_batch_size == 0
    assert tensors(config.input) == {"images": (FLOAT, [2, 3, HEIGHT, WIDTH])}
    assert tensors(config.output)["scores"] == (FLOAT, [2, CELLS, 3])
    assert not config.dynamic_batching.preferred_batch_size
    assert list(config.model_warmup[0].inputs["images"].dims) == [2, 3, HEIGHT, WIDTH]
    settings = json.loads(read_config(tmp_path / "models", "tiny-preprocess").parameters["detector"].string_value)
    assert (settings["batch"], settings["max_batch"]) == (2, 2)


def test_precision_and_processor_choose_the_file(tmp_path: Path, bundle: Bundle) -> None:
    for_gpu = save_uint8_detector(tmp_path / "gpu.onnx")  # another file that can be told apart
    bundle.add_files({"model.int8.gpu.onnx": BundleFile(for_gpu, "onnx", "int8", "gpu")})
    bundle = bundle.add_files({"model.int8.onnx": BundleFile(tmp_path / "source.onnx", "onnx", "int8", "cpu")})
    kinds = model_config.ModelInstanceGroup
    for target, kind, source in (("gpu", kinds.KIND_GPU, for_gpu), ("cpu", kinds.KIND_CPU, tmp_path / "source.onnx")):
        write_triton_repository(
            bundle, tmp_path / "models", name="tiny", target=target, precision="int8", overwrite=True
        )
        config = read_config(tmp_path / "models", "tiny")
        assert config.instance_group[0].kind == kind
        assert (tmp_path / "models" / "tiny" / "1" / "model.onnx").read_bytes() == source.read_bytes()


def test_plan_of_full_tensorrt_without_its_sidecar(tmp_path: Path, bundle: Bundle) -> None:
    add_plan(bundle)
    add_plan(bundle, "tensorrt_rtx")  # is passed over
    settings = TritonSettings(max_batch=4, threads=2)
    written = write_triton_repository(
        load_bundle(bundle.path), tmp_path / "models", name="tiny", target="sm86", settings=settings
    )
    config = read_config(written.path, "tiny")
    assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
    assert (config.default_model_filename, config.max_batch_size) == ("model.plan", 4)
    assert config.instance_group[0].kind == model_config.ModelInstanceGroup.KIND_GPU
    assert tensors(config.output) == {"boxes": (FLOAT, [CELLS, 4]), "scores": (FLOAT, [CELLS, 3])}
    assert not config.parameters  # threads are the CPU's
    assert files_in(written.path / "tiny") == ["1", "1/model.plan", "config.pbtxt"]
    assert (written.path / "tiny" / "1" / "model.plan").read_bytes().startswith(b"ftrt")
    assert "TensorRT 10.3.0.26 for sm86" in (written.path / "tiny" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("plan", "asked", "error", "said"),
    [
        ({"library": "tensorrt_rtx"}, {}, BundleError, "TensorRT for RTX, which Triton's tensorrt backend cannot load"),
        ({"library": "tensorrt"}, {"target": "sm89"}, BundleError, "no plan in fp32 for 'sm89'; .* sm86 [(]fp32[)]"),
        ({"library": "tensorrt"}, {"precision": "int8"}, BundleError, "no plan in int8 for 'sm86'"),
        ({"batches": (2, 4, 8)}, {}, EngineError, "takes batches from 2, not from 1"),
        ({"batches": (1, 2, 4)}, {}, ConfigError, "batches of up to 4, not 8"),
        ({"onnx_sha256": "0" * 64}, {}, BundleError, "the ONNX file that .* was built from is not in it"),
    ],
)
def test_plan_that_triton_cannot_use(
    tmp_path: Path, bundle: Bundle, plan: dict, asked: dict, error: type[Exception], said: str
) -> None:
    add_plan(bundle, **plan)
    with pytest.raises(error, match=said):
        write_triton_repository(
            load_bundle(bundle.path), tmp_path / "models", name="tiny", **{"target": "sm86", **asked}
        )
    assert not list(tmp_path.glob("*models*"))


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"name": "a/b"}, ConfigError, "'a/b' is not a name"),
        ({"name": ".."}, ConfigError, "'[.][.]' is not a name"),
        ({"name": ""}, ConfigError, "'' is not a name"),
        ({"name": "x" * 101}, ConfigError, "is not a name"),
        ({"version": 0}, ConfigError, "0 is not a version"),
        (
            {"target": "tpu"},
            BundleError,
            "no plan in fp32 for 'tpu'; targets are cpu, gpu and those of its plans: none",
        ),
        ({"precision": "int8"}, BundleError, "has no onnx of precision int8"),
        ({"settings": TritonSettings(max_batch=4, preferred_batch=(8,))}, ConfigError, "8 is not between 1 and .* 4"),
        ({"settings": TritonSettings(preferred_batch=(0,))}, ConfigError, "0 is not between 1 and"),
    ],
)
def test_what_is_not_possible_is_one_line_and_leaves_nothing(
    tmp_path: Path, bundle: Bundle, asked: dict, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        write_triton_repository(bundle, tmp_path / "models", **{"name": "tiny", **asked})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*models*"))


def test_model_of_another_size_than_the_bundle_says(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", save_tiny_detector(tmp_path / "source.onnx", 64, 64))
    with pytest.raises(BundleError, match=r"input is \(64, 64\), bundle.json says \(32, 48\)"):
        write_triton_repository(bundle, tmp_path / "models", name="tiny")


def test_repository_is_replaced_only_when_told_and_nothing_else_ever(tmp_path: Path, bundle: Bundle) -> None:
    folder = tmp_path / "models"
    folder.mkdir()  # empty is as good as none
    write_triton_repository(bundle, folder, name="old")
    before = files_in(folder)
    with pytest.raises(StoreError, match="exists and is not empty"):
        write_triton_repository(bundle, folder, name="new")
    assert files_in(folder) == before
    write_triton_repository(bundle, folder, name="new", overwrite=True)
    assert {path.name for path in folder.iterdir()} == {"new", "new-preprocess", "new-postprocess", "new-detect"}
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds thesis.txt, so it is not a Triton repository"):
        write_triton_repository(bundle, folder, name="new", overwrite=True)
    assert (folder / "thesis.txt").read_text() == "years of work"
    (tmp_path / "link").symlink_to(folder)
    for place in (tmp_path / "link", tmp_path / "source.onnx"):
        with pytest.raises((StoreError, ConfigError)):
            write_triton_repository(bundle, place, name="new", overwrite=True)


@pytest.mark.parametrize("there", [False, True])
def test_full_disk_leaves_what_was_there(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    folder = tmp_path / "models"
    if there:
        write_triton_repository(bundle, folder, name="old")
    before = files_in(tmp_path)

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StoreError, match=r"cannot be written .No space left on device"):
        write_triton_repository(bundle, folder, name="new", overwrite=True)
    assert files_in(tmp_path) == before


def test_written_file_is_one_that_onnx_runtime_opens(tmp_path: Path, bundle: Bundle) -> None:
    write_triton_repository(bundle, tmp_path / "models", name="tiny")
    config = read_config(tmp_path / "models", "tiny")
    session = onnxruntime.InferenceSession(str(tmp_path / "models" / "tiny" / "1" / "model.onnx"))
    images = np.zeros((config.max_batch_size, *config.input[0].dims), np.float32)
    for output, value in zip(
        config.output, session.run([o.name for o in config.output], {"images": images}), strict=True
    ):
        assert list(value.shape[1:]) == list(output.dims)
        assert value.dtype == np.float32

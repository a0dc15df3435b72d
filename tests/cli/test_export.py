"""`export triton` and `export kserve` as they are typed, on a machine with the base install."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

NOT_NEEDED = ("torch", "onnx", "captum", "pycocotools", "scipy", "safetensors", "tritonclient", "google", "kserve")
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx, which builds without a GPU"
)


def one_line(done: Any, said: str) -> None:
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("prunedeploy: error: ")
    assert said in line


def test_triton_repository_with_the_base_install(run_process: Any, tmp_path: Path, bundle: Path) -> None:
    done = run_process("export", "triton", bundle, "models", "--name", "tiny", "--json", blocked=NOT_NEEDED)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "path": "models",
        "models": ["tiny", "tiny-preprocess", "tiny-postprocess", "tiny-detect"],
        "version": 1,
        "file": str(bundle / "model.onnx"),
        "backend": "onnxruntime",
        "device": "cpu",
        "precision": "fp32",
        "uint8_input": False,
        "nms": False,
    }
    written = {path.relative_to(tmp_path / "models").as_posix() for path in (tmp_path / "models").glob("*/*")}
    assert written >= {f"{model}/config.pbtxt" for model in json.loads(done.stdout)["models"]}


def test_options_reach_the_configuration(run: Any, tmp_path: Path, bundle: Path) -> None:
    options = ["--max-batch", 12, "--preferred-batch", "3,6", "--max-delay-ms", 1.5, "--max-queue", 9]
    options += ["--timeout-s", 0.5, "--instances", 2, "--threads", 4, "--python-instances", 3, "--model-version", 7]
    done = run("export", "triton", bundle, tmp_path / "models", "--target", "gpu", *options)
    assert done.exit_code == 0, done.stderr
    name = tmp_path.name  # the folder `bundle` says nothing, the one that it lies in does
    assert f"{name}-detect" in done.stdout
    text = (tmp_path / "models" / name / "config.pbtxt").read_text()
    for line in (
        "max_batch_size: 12",
        "preferred_batch_size: [3, 6]",
        "max_queue_delay_microseconds: 1500",
        "max_queue_size: 9",
        "default_timeout_microseconds: 500000",
        "count: 2",
        "kind: KIND_GPU",
    ):
        assert line in text
    assert "intra_op_thread_count" not in text  # threads are the CPU's
    assert (tmp_path / "models" / name / "7" / "model.onnx").is_file()
    assert "count: 3" in (tmp_path / "models" / f"{name}-postprocess" / "config.pbtxt").read_text()


def test_existing_folder_is_replaced_only_when_told(run: Any, tmp_path: Path, bundle: Path) -> None:
    arguments = ("export", "triton", bundle, tmp_path / "models", "--name", "tiny")
    assert run(*arguments).exit_code == 0
    one_line(run(*arguments), "exists and is not empty; choose another folder, or --overwrite it")
    assert run(*arguments, "--overwrite", "--target", "gpu").exit_code == 0
    assert "KIND_GPU" in (tmp_path / "models" / "tiny" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", "tpu"), "has no plan in fp32 for 'tpu'; targets are cpu, gpu and those of its plans: none"),
        (("--precision", "int8"), "has no onnx of precision int8"),
        (("--precision", "fp64"), "'fp64' is not one of"),
        (("--name", "a b"), "'a b' is not a name for a Triton model"),
        (("--max-batch", "0"), "0 is not in the range"),
        (("--preferred-batch", "16"), "16 is not between 1 and the largest batch, 8"),
        (("--preferred-batch", "1,x"), "--preferred-batch 'x' is not a whole number"),
        (("--max-delay-ms", "-1"), "-1.0 is not in the range"),
        (("--timeout-s", "0"), "0.0 is not in the range"),
        (("--timeout-s", "nan"), "a timeout of nan s are not possible"),
    ],
)
def test_bad_triton_options_are_one_line_and_leave_nothing(
    run: Any, tmp_path: Path, bundle: Path, options: tuple[str, ...], said: str
) -> None:
    one_line(run("export", "triton", bundle, tmp_path / "models", *options), said)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(("command", "rest"), [("triton", ("models",)), ("kserve", ("--image", "x:1"))])
def test_bad_bundles_are_one_line(
    run: Any, tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, command: str, rest: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    one_line(run("export", command, tmp_path / "nothing", *rest), "there is no such model")
    (tmp_path / "empty").mkdir()
    one_line(run("export", command, tmp_path / "empty", *rest), "is neither a bundle nor a build's output folder")
    shutil.copyfile(bundle / "model.onnx", tmp_path / "alone.onnx")
    one_line(run("export", command, tmp_path / "alone.onnx", *rest), "is not a bundle and contains none")
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    one_line(run("export", command, bundle, *rest), "model.onnx was changed (SHA-256 differs)")
    assert not (tmp_path / "models").exists()


@needs_rtx
def test_plan_of_tensorrt_for_rtx_is_refused_with_what_to_do(run: Any, tmp_path: Path) -> None:
    from engine_networks import CLASS_NAMES, SIZE, write_precisions
    from prunedeploy_engines.bundle import BundleFile, write_bundle

    onnx_file = write_precisions(tmp_path)["fp32"]
    write_bundle(
        tmp_path / "bundle",
        {"model.onnx": BundleFile(onnx_file, "onnx", "fp32")},
        class_names=CLASS_NAMES,
        input={"height": SIZE, "width": SIZE},
    )
    assert run("engine", tmp_path / "bundle", "--target", "sm86").exit_code == 0
    done = run("export", "triton", tmp_path / "bundle", tmp_path / "models", "--target", "sm86")
    one_line(done, "TensorRT for RTX, which Triton's tensorrt backend cannot load; build one with")
    one_line(
        run("export", "triton", tmp_path / "bundle", tmp_path / "models", "--target", "sm75"),
        "has no plan in fp32 for 'sm75'; targets are cpu, gpu and those of its plans: sm86 (fp32)",
    )
    assert run("export", "triton", tmp_path / "bundle", tmp_path / "models", "--target", "gpu").exit_code == 0
    # The own server can run it.
    files = ("--gpus", "1", "--dockerfile", tmp_path / "Dockerfile")
    done = run("export", "kserve", tmp_path / "bundle", "--image", "x:1", *files)
    arguments = yaml.safe_load(done.stdout)["spec"]["predictor"]["containers"][0]["args"]
    assert arguments[-4:] == ["--runtime", "tensorrt", "--precision", "fp32"]
    assert "[rtx,serve]" in (tmp_path / "Dockerfile").read_text()


def test_manifest_is_printed_or_written(run_process: Any, tmp_path: Path, bundle: Path) -> None:
    blocked = (*NOT_NEEDED, "onnxruntime")
    options = ("--image", "registry.example/tiny:1", "--max-replicas", "5", "--storage-uri", "s3://models/tiny")
    printed = run_process("export", "kserve", bundle, "--name", "tiny", *options, blocked=blocked)
    assert printed.returncode == 0, printed.stderr
    manifest = yaml.safe_load(printed.stdout)
    assert (manifest["metadata"]["name"], manifest["spec"]["predictor"]["maxReplicas"]) == ("tiny", 5)
    files = ("--out", "isvc.yaml", "--dockerfile", "Dockerfile.serve")
    written = run_process("export", "kserve", bundle, "--name", "tiny", *options, *files, "--json", blocked=blocked)
    assert written.returncode == 0, written.stderr
    assert json.loads(written.stdout) == manifest
    assert (tmp_path / "isvc.yaml").read_text() == printed.stdout
    assert "COPY --chown" not in (tmp_path / "Dockerfile.serve").read_text()  # the bundle is fetched


def test_files_are_replaced_together_or_not_at_all(run: Any, tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "Dockerfile").write_text("mine")
    files = ("--out", tmp_path / "isvc.yaml", "--dockerfile", tmp_path / "Dockerfile")
    done = run("export", "kserve", bundle, "--image", "x:1", *files)
    one_line(done, "Dockerfile: exists already; choose another name, or --overwrite it")
    assert not (tmp_path / "isvc.yaml").exists()
    assert (tmp_path / "Dockerfile").read_text() == "mine"
    done = run("export", "kserve", bundle, "--image", "x:1", *files, "--overwrite")
    assert done.exit_code == 0
    assert "COPY --chown=root:root bundle /bundle" in (tmp_path / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("Slim YOLO_0.75", "slim-yolo-0-75"),
        ("0.75", "detector-0-75"),
        ("检测", "detector"),
        ("x" * 80, "x" * 53),
        (f"{'x' * 52}--y", "x" * 52),
    ],
)
def test_name_of_the_service_comes_from_the_folder(
    run: Any, tmp_path: Path, bundle: Path, folder: str, name: str
) -> None:
    (tmp_path / folder).mkdir()
    bundle.rename(tmp_path / folder / "bundle")
    done = run("export", "kserve", tmp_path / folder / "bundle", "--image", "x:1")
    assert done.exit_code == 0, done.stderr
    assert yaml.safe_load(done.stdout)["metadata"]["name"] == name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--image: is needed for prunedeploy's server"),
        (("--image", "x:1", "--name", "My_Name"), "--name: 'My_Name' is not a service name"),
        (("--image", "x:1", "--min-replicas", "-1"), "--min-replicas: -1 is negative"),
        (("--image", "x:1", "--min-replicas", "4"), "--max-replicas: 3 is less than --min-replicas 4"),
        (("--image", "x:1", "--min-replicas", "many"), "'many' is not a valid integer"),
        (("--image", "x:1", "--precision", "int8"), "has no onnx of precision int8"),
        (("--image", "x:1", "--gpus", "1"), "has no TensorRT plan in fp32"),
        (("--server", "triton"), "--storage-uri: is needed for Triton"),
        (("--server", "triton", "--storage-uri", "s3://a/b", "--precision", "fp32"), "--precision: is chosen when"),
        (("--image", "x:1", "--out", "/"), "is a directory"),
    ],
)
def test_bad_kserve_options_are_one_line(run: Any, bundle: Path, options: tuple[str, ...], said: str) -> None:
    one_line(run("export", "kserve", bundle, *options), said)


def test_precision_reaches_the_server(run: Any, bundle: Path) -> None:
    done = run("export", "kserve", bundle, "--image", "x:1", "--precision", "fp32")
    arguments = yaml.safe_load(done.stdout)["spec"]["predictor"]["containers"][0]["args"]
    assert arguments[-2:] == ["--precision", "fp32"]

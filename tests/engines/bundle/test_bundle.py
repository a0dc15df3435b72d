from __future__ import annotations

import errno
import json
import multiprocessing
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from detector_variants import save_nms_detector, save_uint8_detector
from prunedeploy_engines import Bundle, load_bundle
from prunedeploy_engines.bundle import BundleFile, write_bundle
from prunedeploy_engines.bundle.manifest import read_manifest
from prunedeploy_engines.detection.letterbox import letterbox_geometry, unletterbox_boxes
from prunedeploy_engines.errors import BundleError, ConfigError, DataError
from tiny_detector import CLASS_NAMES, save_tiny_detector

PRUNING = {"method": "structured", "scores": "scaled", "ratio_requested": 0.75, "ratio_achieved": 0.751}


def write(folder: Path, **changes: Any) -> Bundle:
    model = save_tiny_detector(folder.parent / "source.onnx")
    fields: dict[str, Any] = {
        "class_names": CLASS_NAMES,
        "input": {"height": 32, "width": 48},
        "thresholds": {"score": 0.9, "iou": 0.45},
        "pruning": PRUNING,
        "metrics": {"map_clean": 0.5, "map_pgd": None},
        "provenance": {"commit": "abc", "seeds": {"seed": 0}, "versions": {"torch": "2.13.0"}},
    }
    return write_bundle(folder, {"model.onnx": BundleFile(model, "onnx", "fp32")}, **{**fields, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(folder: Path, change: Any) -> None:
    content = json.loads((folder / "bundle.json").read_text())
    change(content)
    (folder / "bundle.json").write_text(json.dumps(content))


def test_what_is_written_is_what_is_loaded(folder: Path) -> None:
    manifest = load_bundle(folder).manifest
    assert manifest.class_names == CLASS_NAMES
    assert manifest.input.letterbox_colour == (128, 128, 128)
    assert manifest.thresholds.score == 0.9
    assert manifest.pruning is not None
    assert manifest.pruning.ratio_achieved == 0.751
    assert manifest.metrics == {"map_clean": 0.5, "map_pgd": None}
    assert manifest.provenance.commit == "abc"
    assert load_bundle(folder / "bundle.json").manifest == manifest
    assert {path.name for path in folder.parent.iterdir()} == {"bundle", "source.onnx"}, "no temporary file stays"


def test_bundle_json_has_the_agreed_keys(folder: Path) -> None:
    content = json.loads((folder / "bundle.json").read_text())
    agreed = {
        "schema_version",
        "created",
        "class_names",
        "input",
        "thresholds",
        "pruning",
        "metrics",
        "provenance",
    }
    assert set(content) == agreed | {"files"}
    assert content["schema_version"] == 1
    assert set(content["files"]["model.onnx"]) == {"bytes", "sha256", "role", "precision", "target"}


POINT = {"score_threshold": 0.2, "precision": 0.8, "recall": 0.6, "f1": 0.686, "chosen": "best F1", "images": 128}


def test_operating_point_of_a_precision_is_its_threshold(tmp_path: Path) -> None:
    curve = [[0.4, 0.9, 0.5], [0.2, 0.8, 0.6]]
    write(tmp_path / "bundle", operating_points={"int8": {**POINT, "curve": curve}})
    bundle = load_bundle(tmp_path / "bundle")
    assert (bundle.score_threshold("int8"), bundle.score_threshold()) == (0.2, 0.9)
    point = bundle.manifest.operating_points["int8"]
    assert (point.precision, point.recall, point.curve) == (0.8, 0.6, ((0.4, 0.9, 0.5), (0.2, 0.8, 0.6)))
    assert point.model_extra == {"images": 128}


def test_bundle_of_before_there_were_operating_points_has_its_old_threshold(folder: Path) -> None:
    assert "operating_points" not in json.loads((folder / "bundle.json").read_text())
    assert {load_bundle(folder).score_threshold(precision) for precision in ("fp32", "fp16", "int8")} == {0.9}


def test_operating_point_outside_its_range_is_refused(tmp_path: Path) -> None:
    for wrong in ({"score_threshold": 1.5}, {"precision": -0.1}, {"curve": [[0.5, 2.0, 0.1]]}):
        with pytest.raises(BundleError, match=f"operating_points.fp32.{next(iter(wrong))}"):
            write(tmp_path / "bundle", operating_points={"fp32": {**POINT, **wrong}})


@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_changed_byte_is_refused(folder: Path, position: int) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[position] ^= 1
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx was changed"):
        load_bundle(folder)


def test_truncated_file_is_refused(folder: Path) -> None:
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[:-1])
    with pytest.raises(BundleError, match=f"{len(content) - 1} bytes, not {len(content)}"):
        load_bundle(folder)


def test_missing_file_is_refused_even_unverified(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    for verify in (True, False):
        with pytest.raises(BundleError, match=r"model\.onnx is missing"):
            load_bundle(folder, verify=verify)


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "._model.onnx",
        "__MACOSX/._bundle.json",
        ".bundle.json.swp",
        "bundle.json~",
        ".model.onnx.1234.tmp",  # of a writer that was killed
        "notes.txt",
        "engines/sm86/model.plan",
    ],
)
def test_file_that_is_not_listed_is_ignored(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    opened = load_bundle(folder)
    assert set(opened.manifest.files) == {"model.onnx"}
    with pytest.raises(BundleError, match="has no engine"):
        opened.engine_path()


def test_links_that_are_not_listed_are_ignored(folder: Path) -> None:
    (folder / "elsewhere").symlink_to("/nowhere")
    (folder / "above").symlink_to(folder.parent)
    load_bundle(folder)


@pytest.mark.parametrize("location", ["model.onnx.data", "weights/of it.bin"])
def test_weights_of_a_listed_model_must_be_listed(tmp_path: Path, location: str) -> None:
    """Else they could change unnoticed: the model's own digest says nothing of them."""
    (tmp_path / "source" / location).parent.mkdir(parents=True)
    model = onnx.load(save_tiny_detector(tmp_path / "tiny.onnx"))
    onnx.save(
        model, tmp_path / "source" / "model.onnx", save_as_external_data=True, location=location, size_threshold=0
    )
    files = {"model.onnx": BundleFile(tmp_path / "source" / "model.onnx", "onnx", "fp32")}
    about: dict[str, Any] = {"class_names": CLASS_NAMES, "input": {"height": 32, "width": 48}}
    write_bundle(tmp_path / "lacks", files, **about)
    (tmp_path / "lacks" / location).parent.mkdir(exist_ok=True)
    (tmp_path / "lacks" / location).write_bytes((tmp_path / "source" / location).read_bytes())
    with pytest.raises(BundleError, match=re.escape(f"model.onnx takes weights from {location}, which is not listed")):
        load_bundle(tmp_path / "lacks")
    write_bundle(tmp_path / "whole", {**files, location: BundleFile(tmp_path / "source" / location, "other")}, **about)
    (tmp_path / "whole" / ".DS_Store").write_bytes(b"x")
    load_bundle(tmp_path / "whole")


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/../../b", "a//b", "./a", "", "bundle.json", "a\\..\\b", "c:/a"]
)
def test_path_that_leaves_the_folder_is_refused(folder: Path, name: str) -> None:
    edit(folder, lambda content: content["files"].update({name: content["files"]["model.onnx"]}))
    with pytest.raises(BundleError, match="files"):
        load_bundle(folder)
    with pytest.raises(BundleError, match=r"file name|itself"):
        write(folder.parent / "second").add_files({name: BundleFile(b"x", "other")})


def test_link_that_leads_out_is_refused(folder: Path) -> None:
    outside = folder.parent / "outside.onnx"
    (folder / "model.onnx").rename(outside)
    (folder / "model.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="leads out"):
        load_bundle(folder)


@pytest.mark.parametrize("version", [2, 0, "1", None, True])
def test_other_schema_version_is_refused(folder: Path, version: Any) -> None:
    edit(folder, lambda content: content.update(schema_version=version))
    with pytest.raises(BundleError, match="schema_version"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda content: content.update(surprise=1), "surprise"),
        (lambda content: content.pop("class_names"), "class_names"),
        (lambda content: content.update(class_names=[]), "class_names"),
        (lambda content: content["input"].update(height=0), "input.height"),
        (lambda content: content["input"].update(letterbox_colour=[1, 2, 300]), "input.letterbox_colour.2"),
        (lambda content: content["thresholds"].update(score=1.5), "thresholds.score"),
        (lambda content: content["files"]["model.onnx"].update(sha256="0"), "files.model.onnx.sha256"),
        (lambda content: content["files"]["model.onnx"].update(role="virus"), "files.model.onnx.role"),
        (lambda content: content["pruning"].pop("method"), "pruning.method"),
    ],
)
def test_wrong_key_is_named(folder: Path, change: Any, key: str) -> None:
    edit(folder, change)
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    assert f"'{key}'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "nonsense", '{"schema_version": 1, "schema_version": 1}', "\xff"])
def test_manifest_that_is_no_json_object_is_refused(folder: Path, text: str) -> None:
    (folder / "bundle.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"bundle\.json"):
        load_bundle(folder)


def test_folder_without_manifest_and_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"there is no bundle\.json"):
        load_bundle(tmp_path)
    with pytest.raises(BundleError, match="there is no such bundle"):
        load_bundle(tmp_path / "none")


def test_existing_folder_is_only_replaced_when_asked(folder: Path) -> None:
    with pytest.raises(BundleError, match="exists and is not empty"):
        write(folder)
    write(folder, class_names=["r", "g", "b"], overwrite=True)
    assert load_bundle(folder).class_names == ("r", "g", "b")
    assert {path.name for path in folder.parent.iterdir()} == {"bundle", "source.onnx"}


def test_old_bundle_stays_when_the_new_one_cannot_take_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename = load_bundle(folder).manifest, Path.rename

    def refused(source: Path, target: Path) -> Path:
        if target == folder and not source.name.endswith(".old.tmp"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(BundleError, match="cannot be written"):
        write(folder, class_names=["r", "g", "b"], overwrite=True)
    assert load_bundle(folder).manifest == before
    assert {path.name for path in folder.parent.iterdir()} == {"bundle", "source.onnx"}


def test_old_bundle_of_a_writer_that_was_killed_is_put_back(folder: Path) -> None:
    before, old = load_bundle(folder).manifest, folder.with_name(f".bundle.{'a' * 32}.old.tmp")
    folder.rename(old)  # between the two renames
    with pytest.raises(BundleError, match="exists"):
        write(folder, class_names=["r", "g", "b"])
    assert load_bundle(folder).manifest == before
    assert not old.exists()


def test_failed_write_leaves_nothing_and_keeps_the_old(folder: Path) -> None:
    before = load_bundle(folder).manifest
    with pytest.raises(BundleError, match=r"input\.height"):
        write(folder, input={"height": -1, "width": 48}, overwrite=True)
    missing = {"model.onnx": BundleFile(folder / "nothing", "onnx", "fp32")}
    with pytest.raises(BundleError, match="cannot be read"):
        write_bundle(folder.parent / "new", missing, class_names=["a"], input={"height": 8, "width": 8})
    assert load_bundle(folder).manifest == before
    assert {path.name for path in folder.parent.iterdir()} == {"bundle", "source.onnx"}


def _write_with_little_room(folder: Path, source: Path) -> None:
    # A limit on the size of a file stands for a full disk: the system refuses in the middle of a write.
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
    files = {"small.txt": BundleFile(b"x", "other"), "model.onnx": BundleFile(source, "onnx", "fp32")}
    try:
        write_bundle(folder, files, class_names=CLASS_NAMES, input={"height": 32, "width": 48}, overwrite=True)
    except BundleError as error:
        sys.exit(0 if "cannot be written" in str(error) else 1)
    sys.exit(2)


def test_full_disk_is_one_line_and_the_old_bundle_stays(folder: Path) -> None:
    before = load_bundle(folder).manifest
    process = multiprocessing.get_context("spawn").Process(
        target=_write_with_little_room, args=(folder, folder.parent / "source.onnx")
    )
    process.start()
    process.join(60)
    assert (folder.parent / "source.onnx").stat().st_size > 500
    assert process.exitcode == 0, "neither written nor one clear line"
    assert load_bundle(folder).manifest == before
    assert {path.name for path in folder.parent.iterdir()} == {"bundle", "source.onnx"}


def test_added_engine_is_listed_and_verified(folder: Path) -> None:
    bundle = load_bundle(folder)
    engine = BundleFile(b"plan", "engine", "fp16", "sm86")
    grown = bundle.add_files({"engines/sm86/model.engine": engine})
    assert grown.engine_path("fp16", "sm86").read_bytes() == b"plan"
    assert load_bundle(folder).manifest == grown.manifest
    assert "engines/sm86/model.engine" not in bundle.manifest.files
    (folder / "engines/sm86/model.engine").write_bytes(b"plam")
    with pytest.raises(BundleError, match="was changed"):
        load_bundle(folder)


def test_engine_built_in_place_can_be_registered(folder: Path) -> None:
    bundle = load_bundle(folder)
    plan = folder / "engines" / "model.engine"
    plan.parent.mkdir()
    plan.write_bytes(b"plan")
    bundle.add_files({"engines/model.engine": BundleFile(plan, "engine", "fp32")})
    assert load_bundle(folder).engine_path().read_bytes() == b"plan"


def _add(folder: Path, number: int) -> None:
    load_bundle(folder, verify=False).add_files({f"note-{number}.txt": BundleFile(b"x", "other")})


def test_processes_that_add_at_once_lose_nothing(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add, args=(folder, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 3
    assert len(load_bundle(folder).manifest.files) == 4


def test_model_that_is_not_there_lists_what_is(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert bundle.model_path() == folder / "model.onnx"
    with pytest.raises(BundleError, match=r"no onnx of precision int8; it has: model\.onnx"):
        bundle.model_path("int8")
    with pytest.raises(BundleError, match="no engine of precision fp32; it has: none"):
        bundle.engine_path()
    with pytest.raises(ConfigError, match="no runtime 'abacus'"):
        bundle.runner("abacus")


def test_model_with_another_input_size_is_refused(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle", input={"height": 64, "width": 48})
    with pytest.raises(BundleError, match=r"\(32, 48\).*\(64, 48\)"):
        bundle.runner()


GPU_INT8, CPU_INT8 = "model.int8.gpu.onnx", "model.int8.onnx"


def every_precision(folder: Path) -> Bundle:
    """A bundle with files of all precisions and engines for two GPUs; their content is the tiny detector's."""
    write(folder)
    model = (folder / "model.onnx").read_bytes()
    return load_bundle(folder).add_files(
        {
            "model.fp16.onnx": BundleFile(model, "onnx", "fp16"),
            CPU_INT8: BundleFile(model, "onnx", "int8", "cpu"),
            GPU_INT8: BundleFile(model, "onnx", "int8", "gpu"),
            "engines/sm86/model.plan": BundleFile(b"86", "engine", "fp32", "sm86"),
            "engines/sm89/model.plan": BundleFile(b"89", "engine", "fp32", "sm89"),
            "engines/sm86/model.int8.plan": BundleFile(b"int8", "engine", "int8", "sm86"),
            "engines/sm86/model.plan.json": BundleFile(b"{}", "metadata", "fp32", "sm86"),
        }
    )


@pytest.mark.parametrize(
    ("precision", "target", "name"),
    [
        ("fp32", None, "model.onnx"),
        ("fp32", "cpu", "model.onnx"),
        ("fp32", "gpu", "model.onnx"),
        ("fp16", None, "model.fp16.onnx"),
        ("fp16", "gpu", "model.fp16.onnx"),
        ("int8", None, CPU_INT8),
        ("int8", "cpu", CPU_INT8),
        ("int8", "gpu", GPU_INT8),
    ],
)
def test_file_is_found_by_precision_and_target(tmp_path: Path, precision: str, target: str | None, name: str) -> None:
    bundle = every_precision(tmp_path / "bundle")
    assert bundle.model_path(precision, target) == tmp_path / "bundle" / name


def test_only_file_of_a_precision_is_taken_unless_it_is_for_something_else(folder: Path) -> None:
    model = (folder / "model.onnx").read_bytes()
    bundle = load_bundle(folder).add_files({GPU_INT8: BundleFile(model, "onnx", "int8", "gpu")})
    assert bundle.model_path("int8") == folder / GPU_INT8
    with pytest.raises(BundleError, match=r"no onnx of precision int8 for cpu; it has: .*model\.int8\.gpu\.onnx"):
        bundle.model_path("int8", "cpu")
    with pytest.raises(BundleError, match="no onnx of precision int8 for cpu"):
        bundle.runner(precision="int8")


def test_two_files_that_serve_are_an_error_that_names_them(folder: Path) -> None:
    model = (folder / "model.onnx").read_bytes()
    bundle = load_bundle(folder).add_files({"second.onnx": BundleFile(model, "onnx", "fp32")})
    with pytest.raises(BundleError, match=r"several onnx of precision fp32; it has: model\.onnx.*second\.onnx"):
        bundle.model_path()


def test_file_for_a_target_goes_before_one_for_none(folder: Path) -> None:
    model = (folder / "model.onnx").read_bytes()
    bundle = load_bundle(folder).add_files({"model.gpu.onnx": BundleFile(model, "onnx", "fp32", "gpu")})
    assert bundle.model_path("fp32", "gpu").name == "model.gpu.onnx"
    assert bundle.model_path("fp32", "cpu").name == "model.onnx"
    assert bundle.model_path("fp32").name == "model.onnx"


def test_engine_is_found_by_precision_and_target(tmp_path: Path) -> None:
    bundle = every_precision(tmp_path / "bundle")
    assert bundle.engine_path("fp32", "sm89").read_bytes() == b"89"
    assert bundle.engine_path("int8").read_bytes() == b"int8"
    with pytest.raises(BundleError, match="several engine of precision fp32; it has: engines/sm86"):
        bundle.engine_path()
    with pytest.raises(BundleError, match="no engine of precision fp32 for sm75"):
        bundle.engine_path("fp32", "sm75")
    with pytest.raises(BundleError, match="no engine of precision fp16 for sm86"):
        bundle.engine_path("fp16", "sm86")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"precision": "int8"}, CPU_INT8),
        ({"precision": "int8", "target": "gpu"}, GPU_INT8),
        ({"precision": "int8", "providers": ("cuda", "cpu")}, GPU_INT8),
        ({"precision": "int8", "providers": ("cuda", "cpu"), "target": "cpu"}, CPU_INT8),
        ({"precision": "int8", "runtime": "openvino"}, CPU_INT8),
        ({"precision": "fp16", "providers": ("tensorrt",)}, "model.fp16.onnx"),
        ({"runtime": "tensorrt", "target": "sm89"}, "engines/sm89/model.plan"),
        ({"runtime": "tensorrt", "precision": "int8"}, "engines/sm86/model.int8.plan"),
    ],
)
def test_runner_opens_the_file_that_fits_the_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], name: str
) -> None:
    # Most of these runtimes need a GPU to open anything, so what is watched is which file they were to open.
    bundle = every_precision(tmp_path / "bundle")

    def opened(path: Path, runtime: str, **_: Any) -> None:
        raise LookupError(f"{runtime} {path.relative_to(bundle.path).as_posix()}")

    monkeypatch.setattr("prunedeploy_engines.runtimes.opening.open_runner", opened)
    with pytest.raises(LookupError) as caught:
        bundle.runner(**settings)
    assert caught.value.args == (f"{settings.get('runtime', 'onnxruntime')} {name}",)


def test_refused_model_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner

    closed = []
    monkeypatch.setattr(OnnxRuntimeRunner, "_release", lambda runner: closed.append(runner))
    with pytest.raises(BundleError):
        write(tmp_path / "bundle", input={"height": 64, "width": 48}).runner()
    assert len(closed) == 1


@pytest.mark.parametrize("save", [save_uint8_detector, save_nms_detector])
def test_detect_finds_the_same_with_uint8_images_and_with_suppression_in_the_graph(
    tmp_path: Path, save: Callable[[Path], Path]
) -> None:
    with write(tmp_path / "plain") as plain:
        expected = plain.detect(photo())
    model = BundleFile(save(tmp_path / "variant.onnx"), "onnx", "fp32")
    fields = {"class_names": CLASS_NAMES, "input": {"height": 32, "width": 48}}
    bundle = write_bundle(tmp_path / "b", {"model.onnx": model}, thresholds={"score": 0.9, "iou": 0.45}, **fields)
    with bundle, bundle.runner() as runner:
        assert runner.uint8_input == (save is save_uint8_detector)
        for found in (bundle.detect(photo()), bundle.detect(photo(), runner=runner)):
            assert found.to_rows() == [
                {**row, "score": pytest.approx(row["score"], abs=1e-6)} for row in expected.to_rows()
            ]
        assert len(bundle.detect(photo(), score_threshold=0.999)) == 0


def photo() -> np.ndarray:
    """A black image of 64 x 96 with a red and a blue patch; the network's input is half its size."""
    image = np.zeros((64, 96, 3), dtype=np.uint8)
    image[16:32, 32:48, 0] = 255  # input cell x 16..24, y 8..16
    image[48:64, 80:96, 2] = 255  # input cell x 40..48, y 24..32
    return image


def test_detect_finds_objects_in_image_pixels(folder: Path) -> None:
    with load_bundle(folder) as bundle:
        found = bundle.detect(photo())
    rows = {row["class_name"]: row for row in found.to_rows()}
    assert set(rows) == {"red", "blue"}
    assert [rows["red"][key] for key in ("x_min", "y_min", "width", "height")] == [32, 16, 16, 16]
    assert [rows["blue"][key] for key in ("x_min", "y_min", "width", "height")] == [80, 48, 16, 16]
    # Halving weighs 4 pixels by 1/8, 3/8, 3/8, 1/8 along each axis, so a patch's border pixel has 7/8 of its
    # colour. A cell has 2 such rows of 8 in the middle of the image and 1 at its edge: (7.75 / 8)^2 and
    # (7.875 / 8)^2.
    assert rows["red"]["score"] == pytest.approx((7.75 / 8) ** 2, abs=0.003)
    assert rows["blue"]["score"] == pytest.approx((7.875 / 8) ** 2, abs=0.003)


def test_detect_undoes_the_letterbox(folder: Path) -> None:
    # 32 x 32 in a 32 x 48 input: pixels unchanged, 8 columns of padding left and right.
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[8:16, 16:24, 1] = 255
    found = load_bundle(folder).detect(image)
    assert len(found) == 1
    assert found.boxes_xyxy.tolist() == [[16, 8, 24, 16]]
    assert found.class_names[found.class_ids[0]] == "green"
    assert found.scores[0] == pytest.approx(1.0)


def test_detect_reads_files_and_keeps_its_runner(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    bundle = load_bundle(folder)
    first = bundle.detect(tmp_path / "photo.png")
    kept = bundle._runner
    second = bundle.detect(photo())
    assert kept is not None
    assert bundle._runner is kept
    assert first.to_rows() == second.to_rows()
    bundle.close()
    assert bundle._runner is None
    with pytest.raises(DataError, match="no such image"):
        bundle.detect(tmp_path / "none.png")


def test_greyscale_bundle_sees_luma(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle", input={"height": 32, "width": 48, "greyscale": True})
    image = np.zeros((32, 48, 3), dtype=np.uint8)
    image[8:16, 16:24, 1] = 255
    found = bundle.detect(image, score_threshold=0.5)
    # Green has luma 150 / 255 in all three channels, so all three classes see it.
    assert sorted(found.class_ids.tolist()) == [0, 1, 2]
    assert found.scores == pytest.approx([150 / 255] * 3, abs=1e-5)


def test_stretched_bundle_fills_its_input_and_gives_boxes_in_the_image(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle", input={"height": 32, "width": 48, "letterbox": False})
    image = np.zeros((64, 48, 3), dtype=np.uint8)  # letterboxed it would leave half of the input to padding
    image[16:32, 24:36, 1] = 255
    pixels, geometry = bundle.prepare(image, uint8=True)
    plain = Image.fromarray(image).resize((48, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels, np.asarray(plain))
    # The whole input is the whole image.
    assert unletterbox_boxes([0, 0, 48, 32], geometry).tolist() == [0, 0, 48, 64]
    assert read_manifest(tmp_path / "bundle" / "bundle.json").input.letterbox is False


def test_a_bundle_that_does_not_say_is_letterboxed(tmp_path: Path) -> None:
    write(tmp_path / "bundle", input={"height": 32, "width": 48})
    path = tmp_path / "bundle" / "bundle.json"
    document = json.loads(path.read_text())
    del document["input"]["letterbox"]  # as it was written before there was a choice
    path.write_text(json.dumps(document))
    assert read_manifest(path).input.letterbox


def test_bound_on_candidates_is_written_read_and_used(tmp_path: Path) -> None:
    write(tmp_path / "bundle", nms={"max_candidates": 3})
    bundle = load_bundle(tmp_path / "bundle")
    assert json.loads((tmp_path / "bundle" / "bundle.json").read_text())["nms"] == {"max_candidates": 3}
    assert bundle.manifest.nms.max_candidates == 3
    boxes = np.array([[10 * i, 0, 10 * i + 5, 5] for i in range(6)], np.float32)
    scores = np.zeros((6, len(bundle.class_names)), np.float32)
    scores[:, 0] = [0.6, 0.9, 0.7, 0.95, 0.8, 0.85]
    height, width = bundle.input_size
    found = bundle.detections(boxes, scores, letterbox_geometry((height, width), (height, width)), score_threshold=0.5)
    assert found.scores.tolist() == pytest.approx([0.95, 0.9, 0.85])


@pytest.mark.parametrize("wrong", [{"max_candidates": 0}, {"max_candidates": 1.5}, {"most": 3}])
def test_bound_that_makes_no_sense_names_its_key(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(BundleError, match=f"nms.{next(iter(wrong))}"):
        write(tmp_path / "bundle", nms=wrong)

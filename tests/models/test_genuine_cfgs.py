"""The 54 detector cfgs of the Darknet that most use: each is read, or refused by the name of what stands in the way."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from effort import slow_after
from prunedeploy.models import read_cfg
from prunedeploy.models.cfg_notes import cfg_notes
from prunedeploy_engines.errors import DarknetFormatError

REFUSED = {
    "tiny-yolo_xnor.cfg": r":34: xnor= of \[convolutional\] is not supported: binary weights",
    "yolov3-tiny_xnor.cfg": r":38: xnor= of \[convolutional\] is not supported: binary weights",
    "yolov3-tiny_occlusion_track.cfg": r":112: \[crnn\] is not supported: a recurrent network keeps a state",
    "yolo9000.cfg": r":\d+: tree= of \[region\] is not supported: ",
    # It has no detection head, whatever its name: it was trained on the 1000 classes of ImageNet.
    "cspx-p7-mish-omega.cfg": r":1458: \[softmax\] is not supported: classifiers have it",
}

OPENCV_REFUSES = {"Gaussian_yolov3_BDD", "yolov4-tiny_contrastive", "yolov4-sam-mish-csp-reorg-bfm"}
SMALL = ["yolov2-tiny", "yolov3-tiny-prn", "yolov7-tiny", "enet-coco"]
REPOSITORY = Path(__file__).parents[2]
LARGE = sorted({path.stem for path in (REPOSITORY.parent / "shared" / "real" / "darknet-cfg").glob("*.cfg")})

pytestmark = pytest.mark.shared


@pytest.fixture
def folder(shared: Path) -> Path:
    return shared / "real" / "darknet-cfg"


def test_all_others_are_read(folder: Path) -> None:
    """Counted in the text: as many layers as sections, every head, and the size of the input."""
    names = sorted(path.name for path in folder.glob("*.cfg"))
    assert len(names) == 54
    unread = {}
    for name in sorted(set(names) - set(REFUSED)):
        text = (folder / name).read_text(errors="replace")
        try:
            cfg = read_cfg(folder / name)
        except DarknetFormatError as error:
            unread[name] = str(error)
            continue
        kinds = re.findall(r"(?m)^\s*\[(\w+)\]", text)
        assert [layer.kind for layer in cfg.layers] == [kind.lower() for kind in kinds[1:]], name
        assert len(cfg.heads) == len(re.findall(r"(?m)^\s*\[(?:yolo|region|Gaussian_yolo)\]", text)) > 0, name
        sides = [int(re.findall(rf"(?m)^{side}\s*=\s*(\d+)", text)[-1]) for side in ("height", "width")]
        assert list(cfg.input_size) == sides, name
        assert cfg_notes(cfg)[0].startswith(f"{name}: ignored, since only Darknet itself reads them: batch, "), name
    assert unread == {}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_refused_says_why(folder: Path, name: str) -> None:
    with pytest.raises(DarknetFormatError, match=f"{re.escape(name)}{REFUSED[name]}"):
        read_cfg(folder / name)


def test_two_lines_of_batch_are_noted(folder: Path) -> None:
    notes = cfg_notes(read_cfg(folder / "yolov3-openimages.cfg"))
    assert [note.partition(": ")[2][:30] for note in notes[1:]] == [
        "batch= stands more than once i",
        "subdivisions= stands more than",
    ]


@pytest.mark.parametrize("name", slow_after(4, *SMALL, *(one for one in LARGE if one not in SMALL)))
def test_whole_and_halved_it_computes_what_opencv_does_and_passes_the_gates(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its own size, with random weights, by the program that made the table of docs/sections.md."""
    if f"{name}.cfg" in REFUSED:
        pytest.skip("it is refused")
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    row = importlib.import_module("darknet_cfgs").examine(folder / f"{name}.cfg", tmp_path)
    assert 0.4 < row["pruned_parameters"] / row["parameters"] < 0.6
    assert row["shrunk_is_masked"] <= 1e-5
    assert (row["gates_dense"], row["gates_pruned"]) == ("passed", "passed")
    for key in ("opencv", "opencv_pruned"):
        if name in OPENCV_REFUSES:
            assert "Unknown layer type" in row[key]
        else:
            assert row[key] <= 1e-4

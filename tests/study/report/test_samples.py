"""Sample images: made once by a sweep, changing no row, and drawn into Figure 5 with what is right and what is not."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from PIL import Image

from prunedeploy.data.records import ImageRecord
from prunedeploy.pipeline.context import BuildContext
from prunedeploy.pipeline.progress import Progress
from prunedeploy.pipeline.stages.samples import samples_stage, telling_images
from prunedeploy.pipeline.store.store import Store
from prunedeploy.study.report.page import write_report
from prunedeploy.study.report.plots import sample_plots
from prunedeploy.study.report.sample_figure import LINES, sample_figure
from prunedeploy.study.report.sample_matches import Mark, marked_boxes
from prunedeploy.study.report.samples import Detection, Object, SampleSet, read_samples, samples_of
from prunedeploy.study.rows.file import read_rows
from prunedeploy.study.statistics.cells import study_from_rows
from prunedeploy.study.sweep.contexts import Contexts
from prunedeploy.study.sweep.driver import ROWS, run_sweep
from prunedeploy.study.sweep.plan import plan_sweep
from prunedeploy.study.sweep.tasks import Event, Executor, Task
from prunedeploy_engines.detection.letterbox import letterbox
from prunedeploy_engines.errors import ConfigError


class Idle(Executor):
    """An executor that has nothing to do."""

    def run(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        assert not tasks
        yield from ()


def again(finished: Any, store: Path, out: Path, samples: int, cells: Any = None, said: Any = None) -> dict[str, int]:
    """The sweep once more: nothing is left of it but pictures. Returns what was computed."""
    outcome = run_sweep(
        finished.sweep,
        finished.sweep.cells if cells is None else cells,
        store=store,
        out=out,
        executors=lambda phase, log: Idle(),
        samples=samples,
        progress=Progress(io.StringIO() if said is None else said),
    )
    return dict(outcome.computed)


@pytest.fixture(scope="module")
def sampled(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Store and output folder of the finished sweep with two images."""
    folder = tmp_path_factory.mktemp("sampled")
    store, out = Path(shutil.copytree(finished.store, folder / "store")), folder / "out"
    shutil.copytree(finished.out, out)
    assert again(finished, store, out, 2) == {"samples": 4}
    return store, out


def samples_in(out: Path) -> SampleSet:
    found = read_samples(out / "samples")
    assert found is not None
    return found


def test_every_network_of_the_first_run_has_the_same_images_and_rows_stay(finished: Any, sampled: Any) -> None:
    _, out = sampled
    found = samples_in(out)
    assert (out / ROWS).read_bytes() == (finished.out / ROWS).read_bytes()
    assert found.configuration_hash == finished.sweep.configuration_hash
    assert [(cell.configuration, cell.ratio, cell.run) for cell in found.cells] == [
        ("original", 0.0, 0),
        ("original-grey", 0.0, 0),
        ("structured-scaled", 0.5, 0),
        ("unstructured-deeplift-grey", 0.5, 0),
    ]
    assert len({tuple(image.image_id for image in cell.images) for cell in found.cells}) == 1
    files = {path.relative_to(out / "samples").as_posix() for path in (out / "samples").rglob("*.*")}
    numbered = [(cell, kind, number) for cell in found.cells for kind in ("clean", "pgd") for number in (1, 2)]
    pictures = {cell.picture(kind, number, suffix) for cell, kind, number in numbered for suffix in (".png", ".webp")}
    assert files == pictures | {"samples.json"}


def test_pictures_are_the_letterboxed_images_and_attacked_ones_lie_in_the_ball(tiny_study: Any, sampled: Any) -> None:
    _, out = sampled
    (cell,) = [one for one in samples_in(out).cells if one.configuration == "structured-scaled"]
    for number, image in enumerate(cell.images, 1):
        (path,) = tiny_study.folder.rglob(image.file_name.join(("*test*/", ""))) or [None]
        given, _ = letterbox(np.array(Image.open(path).convert("RGB")), (image.height, image.width), (114, 114, 114))
        clean, attacked = (
            np.array(Image.open(out / "samples" / cell.picture(kind, number))).astype(int) for kind in ("clean", "pgd")
        )
        assert np.abs(clean - given.astype(int)).max() == 0
        assert 0 < np.abs(attacked - clean).max() <= round(cell.attack["eps"] * 255) + 1  # both are rounded


def test_a_second_sweep_makes_nothing_and_a_missing_picture_comes_back(finished: Any, sampled: Any) -> None:
    store, out = sampled
    assert again(finished, store, out, 2) == {}
    assert again(finished, store, out, 0) == {}
    lost = out / "samples" / samples_in(out).cells[2].picture("pgd", 1)
    before = lost.read_bytes()
    lost.unlink()
    assert again(finished, store, out, 2) == {}, "the store has it"
    assert lost.read_bytes() == before


def test_without_the_networks_one_line_is_said_and_what_is_there_stays(
    finished: Any, sampled: Any, tmp_path: Path
) -> None:
    said = io.StringIO()
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    assert again(finished, tmp_path / "empty", out, 1, said=said) == {}
    told = [line for line in said.getvalue().splitlines() if "no sample images" in line]
    assert len(told) == 1
    assert "no sample images of 4 of 4 models: the store does not have their networks" in told[0]
    assert not (out / "samples").exists()
    shutil.copytree(sampled[1] / "samples", out / "samples")
    assert again(finished, tmp_path / "empty", out, 2) == {}
    assert len(samples_in(out).cells) == 4


def test_detections_are_those_that_the_evaluation_has_written(finished: Any, sampled: Any) -> None:
    """The CSV of the evaluation, which is in pixels of the image file, has the same class, scores and box."""
    store, _ = sampled
    (cell,) = [cell for cell in finished.sweep.cells if cell.key == ("structured-scaled", 0.5, 0)]
    threshold = cell.config.evaluation.map_score_threshold  # the network is bad: its best score is .003
    evaluation = cell.config.evaluation.model_copy(update={"score_threshold": threshold})
    config = cell.config.model_copy(update={"evaluation": evaluation})
    progress = Progress(io.StringIO())
    with Store(store) as opened:
        (planned,) = plan_sweep([cell], opened, progress).cells
        assert planned.network is not None
        context = BuildContext(**Contexts(progress).fields(config, opened))
        result = samples_stage(context, planned.network, 2)
    (digest,) = [stage.digest for stage in planned.training if stage.name == "evaluate"]
    sides = {record.image_id: record.width for record in context.test.images}  # scenes are square
    images = json.loads((result.folder / "samples.json").read_text())
    assert len(images) == 2
    for kind, allowed in (("clean", 1e-3), ("pgd", 0.05)):  # in a batch a step of the attack may round otherwise
        with (store / "results" / f"evaluate-{digest}" / f"torch-{kind}.csv").open() as file:
            rows = list(csv.DictReader(file))
        for image in images:
            side = sides[image["image_id"]]
            written = [row for row in rows if int(row["image_id"]) == image["image_id"]][:8]
            assert len(written) == 8
            scores = [one["score"] for one in image[kind][:8]]
            assert scores == pytest.approx([float(row["score"]) for row in written], rel=allowed)
            if kind == "clean":
                best = image[kind][0]
                x1, y1, x2, y2 = np.clip(np.array(best["box_xyxy"]) * side / image["width"], 0, side)
                names = ("x_min", "y_min", "width", "height")
                assert best["class_name"] == written[0]["category"]
                assert (x1, y1, x2 - x1, y2 - y1) == pytest.approx([float(written[0][n]) for n in names], abs=0.05)


def thing(name: str, *box: float) -> Object:
    return Object(class_name=name, box_xyxy=box)


def found(name: str, score: float, *box: float) -> Detection:
    return Detection(class_name=name, score=score, box_xyxy=box)


def test_right_wrong_and_missed_by_hand() -> None:
    # Objects: a cat, 10 x 10, and a dog beside it.
    objects = [thing("cat", 0, 0, 10, 10), thing("dog", 20, 0, 30, 10)]
    detections = [
        found("cat", 0.6, 0, 0, 10, 9),  # IoU .9, but the next one has the cat already
        found("cat", 0.9, 0, 0, 10, 5),  # IoU 50 / 100, just enough
        found("cat", 0.8, 20, 0, 30, 10),  # on the dog: another class
        found("dog", 0.7, 24, 0, 34, 10),  # IoU 60 / 140
    ]
    assert [(one.mark, one.box_xyxy) for one in marked_boxes(objects, detections)] == [
        (Mark.FOUND, (0, 0, 10, 5)),
        (Mark.WRONG, (20, 0, 30, 10)),
        (Mark.WRONG, (24, 0, 34, 10)),
        (Mark.WRONG, (0, 0, 10, 9)),
        (Mark.MISSED, (20, 0, 30, 10)),
    ]
    assert marked_boxes([], []) == []
    assert [one.mark for one in marked_boxes([thing("cat", 5, 5, 5, 5)], [found("cat", 1, 5, 5, 5, 5)])] == [
        Mark.WRONG,  # without an area nothing overlaps
        Mark.MISSED,
    ]


def test_images_are_chosen_by_their_objects_alone() -> None:
    def image(number: int, objects: int, crowds: int = 0) -> ImageRecord:
        count = objects + crowds
        return ImageRecord(
            number, Path(f"{number}.png"), 9, 9, np.zeros((count, 4), np.float32), np.zeros(count, np.int64),
            np.array([False] * objects + [True] * crowds, np.bool_),
        )  # fmt: skip

    records = [image(1, 0), image(2, 1), image(3, 6), image(4, 2), image(5, 0, 3), image(6, 5)]
    assert [record.image_id for record in telling_images(records)] == [4, 6, 2, 3]


def test_figure_has_a_picture_per_network_with_its_boxes(sampled: Any) -> None:
    _, out = sampled
    whole = samples_in(out)
    names = ["structured-scaled", "unstructured-deeplift-grey"]
    (axes,) = sample_figure(whole, out / "samples", names, "pgd", 1).axes
    assert len(axes.images) == 4  # the network as given in colour and in grey, and two at 50 %
    texts = [text.get_text() for text in axes.texts]
    assert {"Figure 5: sample image, under PGD", "50%", "original,\nnot pruned", "structured,\nscaled"} <= set(texts)
    drawn: dict[str, int] = {}
    for collection in axes.collections:
        assert isinstance(collection, PolyCollection)
        for colour in collection.get_edgecolor()[:1]:
            red, green, blue = (round(255 * part) for part in colour[:3])
            drawn[f"#{red:02X}{green:02X}{blue:02X}"] = len(collection.get_paths())
    marks = [box.mark for cell in whole.cells for box in marked_boxes(cell.images[0].ground_truth, cell.images[0].pgd)]
    assert {LINES[mark][0]: drawn[LINES[mark][0]] for mark in Mark} == {
        LINES[mark][0]: marks.count(mark) for mark in Mark
    }


def test_missing_and_damaged_pictures_are_blanks(sampled: Any, tmp_path: Path) -> None:
    _, out = sampled
    folder = Path(shutil.copytree(out / "samples", tmp_path / "samples"))
    whole = samples_in(out)
    (folder / whole.cells[0].picture("clean", 1)).unlink()
    (folder / whole.cells[1].picture("clean", 1)).write_bytes(b"\x89PNG\r\n\x1a\nno")
    Image.new("RGB", (9, 9)).save(folder / whole.cells[2].picture("clean", 1))
    (axes,) = sample_figure(whole, folder, ["structured-scaled", "unstructured-deeplift-grey"], "clean", 1).axes
    assert [text.get_text() for text in axes.texts].count("no picture") == 3
    assert len(axes.images) == 1


def test_report_has_the_figures_and_names_the_image(sampled: Any, tmp_path: Path) -> None:
    _, out = sampled
    rows = read_rows(out / ROWS).rows
    shutil.copytree(out / "samples", tmp_path / "samples")
    samples, notes = samples_of(tmp_path, rows)
    assert notes == []
    written = write_report(rows, tmp_path, samples=samples)
    names = {path.name for path in written.figures}
    stems = [f"figure-5-{kind}{number}" for kind in ("clean", "attacked") for number in ("", "-2")]
    assert {f"{stem}.{form}" for stem in stems for form in ("png", "svg")} <= names
    page = written.page.read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 4
    image = samples_in(out).cells[0].images[0]
    assert f"test image {image.image_id} ({image.file_name})" in page
    assert "Figure 5 is left out" not in page


def test_without_samples_the_page_says_so_in_one_sentence(finished: Any, tmp_path: Path) -> None:
    rows = read_rows(finished.out / ROWS).rows
    assert samples_of(tmp_path, rows) == (None, [])
    assert sample_plots(study_from_rows(rows), None, tmp_path) == []
    page = write_report(rows, tmp_path).page.read_text(encoding="utf-8")
    assert page.count("Figure 5 is left out") == 1
    assert "data:image/jpeg" not in page


@pytest.mark.parametrize("change", ["hash", "json", "key", "path"])
def test_samples_that_do_not_belong_are_left_out_and_said(sampled: Any, tmp_path: Path, change: str) -> None:
    _, out = sampled
    shutil.copytree(out / "samples", tmp_path / "samples")
    path = tmp_path / "samples" / "samples.json"
    document = json.loads(path.read_text())
    if change == "hash":
        document["configuration_hash"] = "d" * 64
    if change == "key":
        document["cells"][0]["more"] = 1
    if change == "path":
        document["cells"][0]["configuration"] = "../../elsewhere"
    path.write_text("{" if change == "json" else json.dumps(document))
    samples, (note,) = samples_of(tmp_path, read_rows(out / ROWS).rows)
    assert samples is None
    assert ("another configuration" if change == "hash" else "is not what a sweep writes") in note
    if change != "hash":
        with pytest.raises(ConfigError, match="remove it and run the sweep again"):
            read_samples(tmp_path / "samples")


def test_part_of_a_sweep_adds_its_pictures_to_those_there_are(finished: Any, tmp_path: Path) -> None:
    store, out = Path(shutil.copytree(finished.store, tmp_path / "store")), tmp_path / "out"
    shutil.copytree(finished.out, out)
    for name in ("structured-scaled", "original"):
        cells = [cell for cell in finished.sweep.cells if cell.key[0] == name]
        assert again(finished, store, out, 1, cells) == {"samples": 1}  # of two runs the first
    assert [cell.configuration for cell in samples_in(out).cells] == ["original", "structured-scaled"]

"""The score stage: every score by name, what its key depends on, what `score.json` says, bad references."""

from __future__ import annotations

import io
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from prunedeploy.config import ScoreName, load_config
from prunedeploy.data.batches import Batch, load_sample
from prunedeploy.models import load_darknet
from prunedeploy.pipeline.context import StageResult, open_context
from prunedeploy.pipeline.progress import Progress
from prunedeploy.pipeline.stages.score import WITHOUT_IMAGES, load_scores, score_settings, score_stage
from prunedeploy.pipeline.stages.train import original_stage
from prunedeploy.pipeline.store.key import StageKey
from prunedeploy.pipeline.store.store import Store
from prunedeploy.scores import deeplift
from prunedeploy.scores.reference import mean_image
from prunedeploy_engines.detection.letterbox import GREY
from prunedeploy_engines.errors import DataError, PruningError

TAKEN = tuple(name for name in get_args(ScoreName) if name != "file")
QUICK = ("scores.images=4", "scores.batch_size=2", "attack.steps=1")


def score(tiny_case: Any, store: Path, *sets: str, progress: Progress | None = None) -> StageResult:
    """Score the network as given, which saves the training."""
    config = load_config("smoke", tiny_case.arguments(*QUICK, *sets))
    with Store(store) as stages:
        context = open_context(config, stages, progress or Progress(quiet=True))
        return score_stage(context, original_stage(context))


@pytest.mark.parametrize("name", TAKEN)
def test_every_score_has_one_float_per_weight(tiny_case: Any, tmp_path: Path, name: str) -> None:
    result = score(tiny_case, tmp_path, f"scores.name={name}")
    model = load_darknet(tiny_case.cfg, tiny_case.weights)
    scores = load_scores(result.folder)
    assert {index: tuple(value.shape) for index, value in scores.items()} == {
        layer.index: layer.weight_shape for layer in model.cfg.convolutions
    }
    assert all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in scores.values())
    assert all(bool((value != 0).any()) for value in scores.values())
    document = json.loads((result.folder / "score.json").read_text())
    assert document["name"] == name
    assert document["images"] == (None if name in WITHOUT_IMAGES else 4)
    sums = document["summation_to_delta"]
    assert (sums is not None) == (name == "deeplift")
    if sums is not None:
        assert 0 <= sums["worst_layer"] < 1e-4
        assert 0 <= sums["target"] < 1e-4


@pytest.mark.parametrize(
    ("name", "change", "new"),
    [
        ("scaled", "scores.images=3", False),
        ("scaled", "seed=5", False),
        ("random", "seed=5", True),
        ("snip", "scores.images=3", True),
        ("snip", "scores.reference=zeros", False),
        ("snip", "scores.attacked=true", True),
        ("snip", "attack.eps=0.1", False),
        ("gradient-x-input", "scores.predictions=3", True),
        ("deeplift", "scores.predictions=3", True),
        ("deeplift", "scores.reference=zeros", True),
        ("deeplift", "scores.blur_sigma=3", False),
        ("deeplift", "scores.deeplift_rule=reveal-cancel", True),
        ("deeplift", "scores.normalise=mean", True),
    ],
)
def test_a_score_is_computed_again_only_for_what_it_reads(
    tiny_case: Any, tmp_path: Path, name: str, change: str, new: bool
) -> None:
    first = score(tiny_case, tmp_path, f"scores.name={name}")
    second = score(tiny_case, tmp_path, f"scores.name={name}", change)
    assert first.computed
    assert second.computed == new


@pytest.mark.parametrize(
    ("sets", "digest"),
    [
        ((), "399dac23ce223d13826c4d90d08df72102bcd0bf131ed96cf47b12081921e93d"),
        (("scores.name=deeplift",), "8d9a6826597d924d6bc0e1c09cbc3f47864a6db79a4bd4f254dd79f9415a1479"),
        (
            ("scores.name=deeplift", "scores.reference=blur", "scores.deeplift_rule=reveal-cancel"),
            "eda9f877493f2ee2f6543ad46b565917ede0516759b9b736a3aebfee04ee0751",
        ),
        (("scores.name=gradient-x-input",), "6bd8d631407966c72a05ea2824456ffd08a64e34a8a7fb8f8f693e2f47cb7955"),
    ],
)
def test_stored_scores_stay_good_where_captum_is_not_asked_for(
    tiny_case: Any, tmp_path: Path, sets: tuple[str, ...], digest: str
) -> None:
    """The digests were taken before there was ``scores.backend``, of what the demo's configuration says of scores."""
    for own in ((), ("scores.backend=own",)):
        config = load_config("demo", [f"data.path={tiny_case.data}", "threads=1", "device=cpu", *sets, *own])
        with Store(tmp_path) as stages:
            settings = score_settings(open_context(config, stages, Progress(quiet=True)))
        assert StageKey("score", 2, settings, torch="2.13.0").digest == digest


@pytest.mark.parametrize(
    "sets",
    [(), ("scores.reference=blur", "scores.attacked=true", "scores.normalise=mean")],
    ids=["mean image, clean", "blurred, attacked"],
)
def test_captum_layer_by_layer_scores_as_our_own_in_float32(
    tiny_case: Any, tmp_path: Path, sets: tuple[str, ...]
) -> None:
    lines = io.StringIO()
    by_captum = score(
        tiny_case, tmp_path, "scores.name=deeplift", "scores.backend=captum", *sets,
        progress=Progress(lines, seconds_between_lines=0.0),
    )  # fmt: skip
    own = score(tiny_case, tmp_path, "scores.name=deeplift", *sets)
    assert own.computed, "what one has computed is not taken for the other's"
    expected = load_scores(own.folder)
    for index, value in load_scores(by_captum.folder).items():
        assert float(value.max()) > 0
        assert spearmanr(value.flatten(), expected[index].flatten()).statistic >= 0.99
        assert float((value - expected[index]).abs().max()) < 1e-4 * float(expected[index].max())
    document = json.loads((by_captum.folder / "score.json").read_text())
    said = {"name": "deeplift", "backend": "captum", "captum": version("captum"), "images": 4}
    assert said.items() <= document.items()
    assert document["seconds"] > 0
    assert 0 <= document["summation_to_delta"]["worst_layer"] < 1e-4
    assert 0 <= document["summation_to_delta"]["target"] < 1e-2
    done = [line.partition("layer by layer: ")[2].partition(" (")[0] for line in lines.getvalue().splitlines()]
    steps = [f"{2 * layers}/28" for layers in range(1, 14)]  # 7 convolutions, two batches of two images
    assert [step for step in done if step in steps] == steps


def test_mean_reference_is_the_mean_of_the_images_that_are_scored(tiny_case: Any, tmp_path: Path) -> None:
    result = score(tiny_case, tmp_path, "scores.name=deeplift", "scores.reference=mean", "scores.images=16")
    config = load_config("smoke", tiny_case.arguments())
    with Store(tmp_path) as stages:
        records = open_context(config, stages, Progress(quiet=True)).training.images
    model = load_darknet(tiny_case.cfg, tiny_case.weights)
    pixels = [load_sample(record, model.cfg.input_size, False, GREY).image for record in records]
    images = torch.stack([torch.tensor(image).permute(2, 0, 1).float() / 255 for image in pixels])
    assert len(images) == 16
    mean = images.double().mean(0, keepdim=True).float()
    batch = Batch(images, torch.zeros(0, 6), list(range(len(images))))
    torch.testing.assert_close(mean_image([batch]), mean)
    wanted = deeplift(model, [batch], reference=lambda _: mean).scores
    for index, value in load_scores(result.folder).items():
        torch.testing.assert_close(value, wanted[index], rtol=1e-4, atol=1e-6 * float(wanted[index].max()))


def test_image_file_as_reference_is_part_of_the_key(tiny_case: Any, tmp_path: Path) -> None:
    reference = tmp_path / "grey.png"
    sets = ("scores.name=deeplift", f"scores.reference={reference}")
    Image.new("RGB", (64, 64), (128, 128, 128)).save(reference)
    assert score(tiny_case, tmp_path / "store", *sets).computed
    assert not score(tiny_case, tmp_path / "store", *sets).computed
    Image.new("RGB", (64, 64), (100, 100, 100)).save(reference)
    assert score(tiny_case, tmp_path / "store", *sets).computed


def test_scores_of_a_file_are_those_that_another_stage_has_left(tiny_case: Any, tmp_path: Path) -> None:
    magnitude = score(tiny_case, tmp_path, "scores.name=magnitude").folder / "scores.safetensors"
    given = score(tiny_case, tmp_path, "scores.name=file", f"scores.file={magnitude}").folder
    assert (given / "scores.safetensors").read_bytes() == magnitude.read_bytes()
    document = json.loads((given / "score.json").read_text())
    assert (document["name"], document["images"], document["normalise"]) == ("file", None, "none")
    wanted = score(tiny_case, tmp_path, "scores.name=magnitude", "scores.normalise=mean").folder
    normalised = score(tiny_case, tmp_path, "scores.name=file", f"scores.file={magnitude}", "scores.normalise=mean")
    assert (normalised.folder / "scores.safetensors").read_bytes() == (wanted / "scores.safetensors").read_bytes()


def test_content_of_the_file_of_scores_is_part_of_the_key_and_its_place_is_not(tiny_case: Any, tmp_path: Path) -> None:
    store, one, other = tmp_path / "store", tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    shutil.copy(score(tiny_case, store, "scores.name=magnitude").folder / "scores.safetensors", one)
    first = score(tiny_case, store, "scores.name=file", f"scores.file={one}")
    assert first.computed
    moved = score(tiny_case, store, "scores.name=file", f"scores.file={one.rename(other)}")
    assert (moved.computed, moved.digest) == (False, first.digest)
    shutil.copy(score(tiny_case, store, "scores.name=random").folder / "scores.safetensors", other)
    changed = score(tiny_case, store, "scores.name=file", f"scores.file={other}")
    assert changed.computed
    assert changed.digest != first.digest
    others = ("scores.images=3", "seed=5", "attack.eps=0.1", "data.greyscale=true")
    again = score(tiny_case, store, "scores.name=file", f"scores.file={other}", *others)
    assert not again.computed, "it reads nothing else"


def test_build_by_the_scores_that_another_build_has_left_gives_the_same_network(tiny_case: Any, tmp_path: Path) -> None:
    tiny_case.build(tmp_path / "store", tmp_path / "magnitude", "scores.name=magnitude")
    (left,) = (tmp_path / "store" / "results").glob("score-*/scores.safetensors")
    outcome = tiny_case.build(tmp_path / "store", tmp_path / "file", "scores.name=file", f"scores.file={left}")
    assert outcome.results["scores"] == "file"
    assert {"score", "optimise-scores", "prune", "finetune"} <= set(outcome.computed)
    for name in ("model.cfg", "model.weights"):
        assert (tmp_path / "file" / name).read_bytes() == (tmp_path / "magnitude" / name).read_bytes()


def test_reference_image_of_another_size_is_refused(tiny_case: Any, tmp_path: Path) -> None:
    reference = tmp_path / "wide.png"
    Image.new("RGB", (80, 64)).save(reference)
    said = r"wide\.png: the reference image is 80 x 64, the network's input 64 x 64; resize it"
    with pytest.raises(DataError, match=said):
        score(tiny_case, tmp_path / "store", "scores.name=deeplift", f"scores.reference={reference}")
    with pytest.raises(DataError, match="nowhere"):
        score(tiny_case, tmp_path / "store", "scores.name=deeplift", "scores.reference=nowhere.png")


def test_target_that_is_constant_is_refused(tiny_case: Any, tmp_path: Path) -> None:
    with pytest.raises(PruningError, match="the target is the same on every image and its reference"):
        score(tiny_case, tmp_path, "scores.name=deeplift", "scores.reference=mean", "scores.images=1")

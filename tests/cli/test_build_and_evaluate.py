"""`build`, `evaluate`, `report` on a network and data set so small that a whole build takes seconds."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prunedeploy.data.loader import Batch, EvaluationLoader
from prunedeploy.pipeline import evaluation as evaluation_run

SMOKE = (
    "--config", "smoke", "--set", "data.train_images=null", "--set", "data.eval_images=null", "--set",
    "latency.runtimes=onnxruntime", "--set", "channels.minimum=1", "--set", "channels.multiple=1",
    "--set", "export.map_tolerance=1.0",
)  # fmt: skip


def build_arguments(coco: Path, darknet: Path, folder: Path) -> tuple[object, ...]:
    return (
        "build", *SMOKE, "--ratio", "0.5", "--cfg", darknet, "--weights", darknet.with_suffix(".weights"),
        "--data", coco, "--out", folder / "out", "--store", folder / "store",
    )  # fmt: skip


def test_a_build_end_to_end_and_what_reads_its_folder(
    run: Any, run_process: Any, coco: Path, darknet: Path, tmp_path: Path
) -> None:
    arguments = build_arguments(coco, darknet, tmp_path)
    out = tmp_path / "out"

    done = run_process(*arguments, "--json")  # as a process: stdout must stay pure whatever is printed below
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["out"] == str(out)
    assert "finetune" in document["computed"]
    stored = json.loads((out / "results.json").read_text())
    assert {key: value for key, value in document.items() if key not in ("out", "computed")} == stored
    assert stored["command"].startswith("prunedeploy build --config smoke")

    again = run(*arguments)
    assert again.exit_code == 0, again.stderr
    assert "nothing had to be computed" in again.stdout
    rows = [line.split()[0] for line in again.stdout.splitlines() if line.strip()][2:5]
    assert rows == ["original", "robust", "pruned"]
    for name in ("report.html", "results.json", "bundle/", "model.cfg", "detections/"):
        assert f"{out / name}" in again.stdout

    other = run(*arguments, "--seed", "1")
    assert other.exit_code == 2
    assert "holds the build of another configuration" in other.stderr
    assert json.loads((out / "results.json").read_text()) == stored

    both = run(
        "evaluate", out, "--attack", "pgd", "--runtime", "torch,onnxruntime", "--csv", tmp_path / "csv", "--json"
    )
    assert both.exit_code == 0, both.stderr
    document = json.loads(both.stdout)
    own, engine = document["results"]
    pruned = stored["models"][2]
    assert (own["transfer"], engine["transfer"]) == (False, True)
    assert own["map_clean"] == pytest.approx(pruned["map_clean"], abs=1e-9)
    assert own["map_pgd"] == pytest.approx(pruned["map_pgd"], abs=1e-9)
    assert "map_pgd" not in engine
    assert engine["map_pgd_transfer"] == pytest.approx(pruned["map_pgd_transfer_onnxruntime"], abs=1e-9)
    assert (document["attack"]["steps"], document["attack"]["iterate"]) == (2, "last")  # the build's own
    assert document["data"]["images"] == 4
    with (tmp_path / "csv" / "torch-pgd.csv").open() as file:
        assert next(csv.reader(file))[:3] == ["image_id", "category_id", "category"]

    several = ("evaluate", out, "--attack", "noise,pgd,apgd:box,ensemble,cw", "--budget", "quick", "--bootstrap", "10")
    told = run(*several, "--error-kinds", "--curve", "--check", "--csv", tmp_path / "more", "--json")
    assert told.exit_code == 0, told.stderr
    document = json.loads(told.stdout)
    assert [one["name"] for one in document["attacks"]] == ["noise", "pgd", "apgd:box", "ensemble"]
    assert [one["passes"] for one in document["attacks"]] == [0, 2, 11, 66]
    (row,) = document["results"]
    assert row["map_pgd"] == pytest.approx(own["map_pgd"], abs=1e-9)
    assert row["map_ensemble"] <= row["map_apgd_box"]
    assert sum(row["ensembles"]["ensemble"]["chosen"].values()) == 4
    assert list(row["error_kinds"]) == ["clean", "noise", "pgd", "apgd_box", "ensemble"]
    assert set(row["effects"]["ensemble"]) == {
        "found", "disappeared", "mislabelled", "hallucinated", "hallucinated_clean"
    }  # fmt: skip
    assert [round(255 * one["eps"], 2) for one in document["curve"]["rows"]] == [1, 2, 4, 8, 12.75]
    assert document["curve"]["rows"][-1]["map"] == pytest.approx(row["map_ensemble"], abs=1e-9)
    found = document["distortion"]
    assert (found["images"], found["passes"]) == (4, 200)
    assert 0 <= found["succeeded"] <= found["attackable"] <= 4
    assert [one["name"] for one in document["checks"]][:3] == ["zero-gradient", "not-converged", "order-broken"]
    assert {path.name for path in (tmp_path / "more").iterdir()} >= {"torch-noise.csv", "torch-ensemble.csv"}
    people = run(*several, "--objective", "box")
    assert people.exit_code == 0, people.stderr
    assert "ensemble in fp32: within 0.05, quick budget, 66 passes of each image" in people.stdout
    assert "PGD, box in fp32: 2 steps of 0.02 within 0.05" in people.stdout
    assert "CW in fp32, quick budget, 200 passes of each image: of 4 images" in people.stdout

    shown = run("evaluate", out / "bundle", "--data", coco, "--attack", "pgd", "--steps", "1", "--parent-cfg",
                out / "model.cfg", "--bootstrap", "0", "--iterate", "best")  # fmt: skip
    assert shown.exit_code == 0, shown.stderr
    assert "PGD (transfer)" in shown.stdout
    assert "transfer: an engine has no gradients" in shown.stdout
    assert "1 step of 0.02 within 0.05, the best iterate of each image" in shown.stdout

    alone = run("evaluate", out / "bundle", "--data", coco, "--attack", "pgd")
    assert (alone.exit_code, alone.stdout) == (2, "")
    assert "an engine has no gradients" in alone.stderr
    assert "--parent-cfg" in alone.stderr

    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    assert run("report", out, "--store", tmp_path / "store").exit_code == 0
    assert (out / "report.html").read_bytes() == page
    without = run("report", out, "--store", tmp_path / "nowhere")
    assert without.exit_code == 0
    assert "without test images" in without.stderr
    assert 0 < (out / "report.html").stat().st_size < len(page)

    listed = json.loads(run("store", "ls", "--store", tmp_path / "store", "--json").stdout)
    assert {"pretrain", "prune", "finetune"} <= {row["name"] for row in listed}
    gone = run("store", "gc", "--store", tmp_path / "store", "--older-than", "0", "--dry-run", "--json")
    assert len(json.loads(gone.stdout)["removed"]) == len(listed)
    assert run("store", "gc", "--store", tmp_path / "store", "--older-than", "0").exit_code == 0
    assert json.loads(run("store", "ls", "--store", tmp_path / "store", "--json").stdout) == []


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
def test_openvino_is_used_without_being_loaded_beside_pytorch(
    run: Any, run_process: Any, coco: Path, darknet: Path, tmp_path: Path
) -> None:
    tell = "print('LOADED', [n for n in ('torch', 'openvino') if n in sys.modules], file=sys.stderr)"

    def document(*arguments: object) -> dict[str, Any]:
        done = run_process(*arguments, "--json", before=f"import atexit; atexit.register(lambda: {tell})")
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[-1] == "LOADED ['torch']"
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    quick = ("latency.runtimes=openvino", "latency.seconds=0.01", "latency.min_calls=2")
    sets = [word for one in quick for word in ("--set", one)]
    built = document(*build_arguments(coco, darknet, tmp_path), *sets)
    (row,) = [row for row in built["engines"] if row["runtime"] == "openvino"]
    assert row["latency_ms"]["p50"] > 0
    assert row["map_clean"] is not None
    options = ("--data", coco, "--runtime", "openvino", "--bootstrap", "0")
    measured = [document("evaluate", tmp_path / "out", *options)]
    for model in (tmp_path / "out" / "bundle", tmp_path / "out" / "bundle" / "model.onnx"):
        done = run("evaluate", model, *options, "--json")  # here nothing can load OpenVINO: `OpenVinoStaysOut`
        assert done.exit_code == 0, done.stderr
        measured.append(json.loads(done.stdout))
    for (result,) in (one["results"] for one in measured):
        assert result["engine"]["runtime"] == "openvino"
        assert result["map_clean"] == pytest.approx(row["map_clean"], abs=1e-9)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--ratio", "1.5"), "--ratio"),
        (("--set", "finetune.lrr=1"), "did you mean finetune.lr?"),
        (("--set", "nonsense"), "key=value"),
        (("--config", "nowhere"), "nowhere"),
        (("--data", "absent"), "absent"),
        (("--target", "gpu"), "--target"),
        (("--scores", "file"), "--scores: scores: name file reads scores from a file, but none is given; add"),
        (("--scores", "file", "--set", "scores.file=absent.safetensors"), "absent.safetensors: cannot be read (No"),
        (
            ("--scores", "random", "--set", "score_optimization.steps=0", "--set", "score_optimization.freeze_bn=true"),
            "freeze_bn keeps batch norm frozen while scores are optimised, but with steps 0 they are not",
        ),
    ],
)
def test_wrong_input_of_a_build_is_one_line_and_leaves_no_results(
    run: Any, coco: Path, darknet: Path, tmp_path: Path, more: tuple[str, ...], said: str
) -> None:
    done = run(*build_arguments(coco, darknet, tmp_path), *more)
    assert (done.exit_code, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith("prunedeploy: error: ")
    assert said in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda coco: (coco / "train.json").unlink(), "coco: has images for test and none for training; add the train"),
        (lambda coco: (coco / "train.json").write_text(""), "train.json: is not valid JSON"),
        (lambda coco: (coco / "train.json").write_text(json.dumps({"images": []})), "train.json: the list 'images' is"),
        (lambda coco: shutil.rmtree(coco / "train"), "train.json: not one of the 4 images can be used; the first: "),
    ],
)
def test_data_without_training_images_is_one_line(
    run: Any, coco: Path, darknet: Path, tmp_path: Path, spoil: Any, said: str
) -> None:
    spoil(coco)
    done = run(*build_arguments(coco, darknet, tmp_path), "--set", "pretrain.steps=0")
    assert (done.exit_code, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"prunedeploy: error: {coco}")
    assert said in line
    assert not list((tmp_path / "store" / "results").glob("optimise-scores-*"))


def test_a_wrong_key_is_told_before_torch_is_loaded(run_process: Any) -> None:
    done = run_process("build", "--set", "finetune.lrr=1", blocked=("torch",))
    assert done.returncode == 2
    assert "finetune.lr" in done.stderr


def test_truncated_weights_are_refused(run: Any, coco: Path, darknet: Path, tmp_path: Path) -> None:
    weights = darknet.with_suffix(".weights")
    weights.write_bytes(weights.read_bytes()[:-4])
    for arguments in (build_arguments(coco, darknet, tmp_path), ("evaluate", darknet, "--data", coco)):
        done = run(*arguments)
        assert done.exit_code == 2
        assert "tiny.weights" in done.stderr.splitlines()[-1]


def test_evaluate_a_darknet_model(run: Any, darknet: Path, coco: Path) -> None:
    done = run("evaluate", darknet, "--data", coco, "--limit", "2", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    (row,) = document["results"]
    assert (document["kind"], document["attack"], document["data"]["images"]) == ("darknet", None, 2)
    assert (row["runtime"], row["map_pgd"]) == ("torch", None)
    low, high = row["intervals"]["map_clean"]
    assert low - 1e-9 <= row["map_clean"] <= high + 1e-9


def test_evaluate_shows_candidates_beside_the_map_of_a_flood(run: Any, darknet: Path, coco: Path) -> None:
    given = ("evaluate", darknet, "--data", coco, "--attack", "apgd:flood", "--budget", "quick", "--bootstrap", "0")
    done = run(*given, "--json")
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads(done.stdout)["results"]
    assert "map_apgd_flood" in row
    clean, flooded = row["candidates"]["clean"], row["candidates"]["apgd_flood"]
    assert set(clean) == {"mean", "largest", "mean_conf50", "largest_conf50"}
    for counted in (clean, flooded):
        assert counted["mean_conf50"] <= counted["mean"] <= counted["largest"]
        assert counted["largest_conf50"] <= counted["largest"]
    shown = run(*given)
    assert shown.exit_code == 0, shown.stderr
    assert f"{flooded['mean']:.1f}" in shown.stdout.split("Candidates of an image")[1]


def test_evaluate_repeats_a_builds_attack_from_random_starts(
    run: Any, coco: Path, darknet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = ("attack.random_start=true", "attack.restarts=2", "attack.eps=0.3", "evaluation.batch_size=4")
    built = run(*build_arguments(coco, darknet, tmp_path), *(word for key in attack for word in ("--set", key)))
    assert built.exit_code == 0, built.stderr
    out, threads = tmp_path / "out", torch.get_num_threads()
    stored = json.loads((out / "results.json").read_text())["models"][2]
    expected = (out / "detections" / "pruned-pgd.csv").read_bytes()
    settings: list[tuple[int, int]] = []

    class Loader(EvaluationLoader):
        def __iter__(self) -> Iterator[Batch]:
            settings.append((self.batch_size, torch.get_num_threads()))
            return super().__iter__()

    monkeypatch.setattr(evaluation_run, "EvaluationLoader", Loader)
    for more in ((), ("--batch", "2")):
        folder = tmp_path / "-".join(("csv", *more))
        done = run("evaluate", out, "--attack", "pgd", "--runtime", "torch,onnxruntime", "--csv", folder, "--json",
                   *more)  # fmt: skip
        assert done.exit_code == 0, done.stderr
        assert (folder / "torch-pgd.csv").read_bytes() == expected, more
        own, engine = json.loads(done.stdout)["results"]
        for key in ("map_pgd", "map50_pgd", "map_pgd_conf50"):
            assert own[key] == stored[key]
        assert engine["map_pgd_transfer"] == stored["map_pgd_transfer_onnxruntime"]
        assert own["engine"]["threads"] == engine["engine"]["threads"] == 1
    other = run("evaluate", out, "--attack", "pgd", "--seed", "1", "--threads", "2", "--csv", tmp_path / "other")
    assert other.exit_code == 0, other.stderr
    assert (tmp_path / "other" / "torch-pgd.csv").read_bytes() != expected
    assert settings == [(4, 1), (2, 1), (4, 2)]  # the build's, unless told otherwise
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--eps", "0.1"), "--eps has no effect without --attack"),
        (("--attack", "noise", "--steps", "3"), "--steps has no effect without --attack pgd"),
        (("--attack", "cw", "--curve"), "--curve needs an attack that searches a ball"),
        (("--check",), "--check has no effect without --attack"),
        (("--attack", "pdg"), "there is no attack 'pdg'; the nearest is pgd"),
        (("--attack", "pgd", "--objective", "boxx"), "there is no objective 'boxx'; the nearest is box"),
        (("--attack", "noise", "--objective", "box"), "--objective is for fgsm, pgd and apgd"),
        (("--attack", "none,pgd"), "--attack none excludes other attacks"),
        (("--attack", "pgd", "--eps", "0"), "--eps"),
        (("--attack", "pgd", "--eps", "8"), "8 is more than the range of a pixel"),
        (("--attack", "apgd", "--norm", "l2"), "--norm l2: needs a radius of its own"),
        (("--attack", "pgd", "--norm", "l2", "--eps", "1"), "pgd searches an L-inf ball"),
        (("--attack", "pgd", "--restarts", "3"), "--random-start"),
        (("--runtime", "onnxruntime"), "cannot run on onnxruntime"),
        (("--weights", "absent.weights"), "absent.weights"),
        (("--names", "absent.txt"), "absent.txt"),
    ],
)
def test_wrong_input_of_evaluate_is_one_line(run: Any, darknet: Path, coco: Path, more: Any, said: str) -> None:
    done = run("evaluate", darknet, "--data", coco, *more)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_bad_image_ends_evaluate_unless_it_is_allowed(run: Any, darknet: Path, coco: Path) -> None:
    (coco / "test" / "1.png").write_text("no image")
    refused = run("evaluate", darknet, "--data", coco)
    assert refused.exit_code == 2
    assert "1.png" in refused.stderr.splitlines()[-1]
    allowed = run("evaluate", darknet, "--data", coco, "--allow-bad-images", "--bootstrap", "0", "--json")
    assert allowed.exit_code == 0
    assert json.loads(allowed.stdout)["data"]["images"] == 3
    assert "left out: " in allowed.stderr


def test_class_names_beside_the_model_decide_and_a_guess_is_said(run: Any, darknet: Path, coco: Path) -> None:
    """Ids of the JSON in another order than the network's classes: by name each box finds its class."""

    def classes() -> tuple[list[str], list[str]]:
        done = run("evaluate", darknet, "--data", coco, "--bootstrap", "0", "--json")
        assert done.exit_code == 0, done.stderr
        document = json.loads(done.stdout)
        assert all(f"prunedeploy: warning: {line}" in done.stderr for line in document["warnings"])
        return document["data"]["class_names"], document["warnings"]

    names, warnings = classes()
    assert names == ["red", "green", "blue"]
    (said,) = warnings
    assert "tiny.cfg: nothing names the network's classes, so their order is a guess, the data's by id" in said
    (darknet.parent / "obj.names").write_text("blue\nred\ngreen\n")
    assert classes() == (["blue", "red", "green"], [])
    (darknet.parent / "obj.names").unlink()
    document = json.loads((coco / "test.json").read_text())
    document["categories"].append({"id": 9, "name": "violet"})
    (coco / "test.json").write_text(json.dumps(document))
    (coco / "train.json").write_text(json.dumps(document))
    done = run("evaluate", darknet, "--data", coco)
    assert done.exit_code == 2
    assert "the network has 3 classes, the data 4" in done.stderr


def test_bad_boxes_end_evaluate_unless_they_are_allowed(run: Any, darknet: Path, coco: Path) -> None:
    document = json.loads((coco / "test.json").read_text())
    document["annotations"][0]["bbox"][3] = 0
    (coco / "test.json").write_text(json.dumps(document))
    arguments = ("evaluate", darknet, "--data", coco, "--bootstrap", "0", "--json")
    refused = run(*arguments)
    assert (refused.exit_code, "zero area" in refused.stderr) == (2, True)
    allowed = run(*arguments, "--allow-bad-boxes")
    assert allowed.exit_code == 0
    assert "left out: 1 x box of zero area; the first: " in allowed.stderr
    assert [row["count"] for row in json.loads(allowed.stdout)["data"]["left_out"]] == [1]


def test_only_known_classes_of_evaluate(run: Any, darknet: Path, coco: Path) -> None:
    (darknet.parent / "tiny.names").write_text("red\ngreen\nyellow\n")
    arguments = ("evaluate", darknet, "--data", coco, "--bootstrap", "0", "--json")
    refused = run(*arguments)
    assert (refused.exit_code, "does not have category 3 ('blue')" in refused.stderr) == (2, True)
    allowed = run(*arguments, "--only-known-classes")
    assert allowed.exit_code == 0
    assert "box of another class: blue" in allowed.stderr


def test_other_classes_than_the_data_are_refused(run: Any, bundle: Path, coco: Path) -> None:
    document = json.loads((coco / "test.json").read_text())
    document["categories"][0]["name"] = "violet"
    (coco / "test.json").write_text(json.dumps(document))
    shutil.copy(coco / "test.json", coco / "train.json")
    done = run("evaluate", bundle, "--data", coco)
    assert done.exit_code == 2
    assert "violet" in done.stderr

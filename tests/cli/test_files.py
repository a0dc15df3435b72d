"""`data`, `weights`, `store`, `report`: commands about files."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prunedeploy.data.records import Problem


def test_a_good_coco_folder(run: Any, coco: Path) -> None:
    done = run("data", "coco", coco)
    assert done.exit_code == 0
    assert done.stderr == ""
    assert "test: 4 images (0 without boxes), 4 boxes" in done.stdout
    assert done.stdout.splitlines()[-1] == "nothing is wrong"


def test_every_problem_is_listed_those_of_a_kind_together(run: Any, coco: Path) -> None:
    document = json.loads((coco / "test.json").read_text())
    for annotation in document["annotations"]:
        annotation["bbox"][2] = 0.0
    (coco / "test.json").write_text(json.dumps(document))
    (coco / "train" / "0.png").unlink()
    done = run("data", "coco", coco)
    assert done.exit_code == 2
    assert done.stderr == f"{coco}: 5 problems\n"
    lines = done.stdout.splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.startswith("4 x ")]
    assert all(str(coco / "test.json") in line for line in lines[first + 1 : first + 4])
    assert lines[first + 4] == "  and 1 more (--all shows them)"
    assert "train/0.png" in lines[-1]
    everything = run("data", "coco", coco, "--all").stdout
    assert sum(str(coco / "test.json") in line for line in everything.splitlines()) == 4
    found = json.loads(run("data", "coco", coco, "--json").stdout)
    assert len(found["problems"]) == 5


def test_problems_of_a_kind_differ_in_numbers_and_names_only() -> None:
    def kind_of(what: str) -> str:
        return Problem(Path("train.json"), what, "correct it").group

    assert kind_of("annotation 3: box 'a' has width -1.5") == kind_of("annotation 12: box 'b' has width nan")
    assert kind_of("annotation 3: no image") != kind_of("annotation 3: no category")


def test_a_missing_coco_folder_is_a_problem(run: Any, tmp_path: Path) -> None:
    done = run("data", "coco", tmp_path / "absent")
    assert done.exit_code == 2
    assert "no such data folder" in done.stdout


def test_coco_classes_are_checked_against_the_networks(run: Any, coco: Path, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("red\ngreen\n")
    done = run("data", "coco", coco, "--names", tmp_path / "names")
    assert done.exit_code == 2
    assert "blue" in done.stdout
    absent = run("data", "coco", coco, "--names", tmp_path / "absent")
    assert "prunedeploy: error: " in absent.stderr


def test_a_table_says_what_a_build_makes_of_bad_records(run: Any, coco: Path) -> None:
    for split in ("train", "test"):
        document = json.loads((coco / f"{split}.json").read_text())
        document["annotations"][0]["bbox"] = [-4, 6, 16, 20]
        document["annotations"][1]["bbox"] = [4, 6, 0, 20] if split == "train" else [4, 6, 10, 20]
        (coco / f"{split}.json").write_text(json.dumps(document))
    done = run("data", "check", coco)
    assert done.exit_code == 0, "a build takes it"
    assert done.stderr == f"{coco}: 3 problems; a build takes the folder all the same\n"
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.stdout.startswith(f"{coco}: COCO\n")
    assert "box of zero area train left out 1".split() in lines
    assert "box that leaves its image slightly test clipped 1".split() in lines
    document["annotations"][1]["bbox"] = [4, 6, 0, 20]
    (coco / "test.json").write_text(json.dumps(document))
    done = run("data", "check", coco)
    assert done.exit_code == 2
    assert "box of zero area test an error without data.allow_bad_boxes 1".split() in [
        line.split() for line in done.stdout.splitlines()
    ]


def test_ids_that_are_strings_are_listed(run: Any, coco: Path) -> None:
    document = json.loads((coco / "train.json").read_text())
    for entry in document["images"]:
        entry["id"] = f"img-{entry['id']}"
    (coco / "train.json").write_text(json.dumps(document))
    done = run("data", "check", coco, "--all")
    assert done.exit_code == 2
    assert "images[0] has no integer id, but 'img-1'" in done.stdout
    assert "not one of its 4 images can be used" in done.stdout
    refused = run("build", "--config", "smoke", "--data", coco)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)


def test_only_known_classes_of_a_check(run: Any, coco: Path, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("red\ngreen\n")
    done = run("data", "check", coco, "--names", tmp_path / "names", "--only-known-classes")
    assert done.exit_code == 0
    assert "box of another class: blue" in done.stdout


def test_the_check_of_a_folder_needs_no_torch(run_process: Any, coco: Path) -> None:
    assert run_process("data", "coco", coco, blocked=("torch", "onnx", "pycocotools")).returncode == 0


def test_demo_is_not_written_over_something_else(run: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    done = run("data", "demo", tmp_path)
    assert done.exit_code == 2
    assert "holds something other than a demo set" in done.stderr.splitlines()[-1]
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A local HTTP server: its address and its folder."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", folder
        running.shutdown()


def test_weights_are_fetched_and_checked(
    run: Any, server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunedeploy import public_weights

    url, served = server
    content = bytes(range(256)) * 100
    (served / "tiny.weights").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    file = public_weights.PublicFile(f"{url}/tiny.weights", len(content), sha256)
    monkeypatch.setitem(public_weights.WEIGHTS, "tiny", file)
    done = run("weights", "tiny", tmp_path / "got", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {
        "path": str(tmp_path / "got" / "tiny.weights"), "bytes": len(content), "sha256": sha256, "checked_by": "sha256",
    }  # fmt: skip
    assert (tmp_path / "got" / "tiny.weights").read_bytes() == content
    (served / "tiny.weights").write_bytes(content[::-1])
    wrong = run("weights", "tiny", tmp_path / "wrong", "--mirror", url)
    assert wrong.exit_code == 2
    assert "SHA-256" in wrong.stderr
    assert list((tmp_path / "wrong").iterdir()) == []


def test_weights_without_a_published_checksum_are_said_to_be_unverified_or_checked_by_one_that_is_given(
    run: Any, server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunedeploy import public_weights

    url, served = server
    content = bytes(range(256)) * 100
    (served / "new.weights").write_bytes(content)
    sha256, sha1 = hashlib.sha256(content).hexdigest(), hashlib.sha1(content).hexdigest()
    monkeypatch.setitem(public_weights.WEIGHTS, "new", public_weights.PublicFile(f"{url}/new.weights", len(content)))
    done = run("weights", "new", tmp_path / "got")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.endswith(
        f"SHA-256 {sha256}; unverified: nobody has published its checksum, only its size was checked\n"
    )
    assert done.stdout.count("\n") == 1
    assert json.loads(run("weights", "new", tmp_path / "got", "--json").stdout)["checked_by"] is None
    given = run("weights", "new", tmp_path / "given", "--sha256", sha256.upper())
    assert (given.exit_code, given.stdout.rstrip().endswith(f"SHA-256 {sha256}")) == (0, True)
    for wrong in ("0" * 64, "123"):
        refused = run("weights", "new", tmp_path / "refused", "--sha256", wrong)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "SHA-256" in refused.stderr.splitlines()[-1]
        assert not (tmp_path / "refused" / "new.weights").exists()
    file = public_weights.PublicFile(f"{url}/new.weights", len(content), sha1=sha1, source="a/b: c.py")
    monkeypatch.setitem(public_weights.WEIGHTS, "new", file)
    assert f"checked by SHA-1 {sha1}, as a/b states it" in run("weights", "new", tmp_path / "sha1").stdout


def test_the_help_of_weights_names_every_file(run: Any) -> None:
    from prunedeploy.public_weights import WEIGHTS

    words = run("weights", "--help").stdout.replace(",", " ").replace(":", " ").split()
    assert set(WEIGHTS) <= {word.rstrip(".") for word in words}


def test_weights_of_another_name_lists_those_there_are(run: Any, tmp_path: Path) -> None:
    done = run("weights", "yolov9", tmp_path)
    assert done.exit_code == 2
    assert "yolov3, yolov3-tiny, yolov3-spp" in done.stderr


def test_weights_without_a_network_is_one_line(run: Any, tmp_path: Path) -> None:
    done = run("weights", "yolov3-tiny", tmp_path, "--mirror", "http://127.0.0.1:9")
    assert done.exit_code == 2
    assert "cannot be reached" in done.stderr.splitlines()[-1]


def test_looking_at_a_store_does_not_make_one(run: Any, tmp_path: Path) -> None:
    for command in ("ls", "gc"):
        done = run("store", command, "--store", tmp_path / "absent")
        assert done.exit_code == 2
        assert "there is no such store" in done.stderr
    assert not (tmp_path / "absent").exists()


def test_a_folder_with_something_else_is_no_store(run: Any, coco: Path) -> None:
    assert "is not a store" in run("store", "gc", "--older-than", "0", "--store", coco).stderr
    assert (coco / "train.json").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("[]", "is not a JSON object"),
        ("{", "is not a JSON object"),
        ("{}", "not what a build"),
    ],
)
def test_report_of_what_is_no_build_is_one_line(run: Any, tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    done = run("report", tmp_path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1

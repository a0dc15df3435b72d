"""The same configuration resumes, another is refused, a folder that is not a build's is never touched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prunedeploy.pipeline.output_folder import ENTRIES, LOCK, open_output_folder
from prunedeploy.pipeline.store.store import read_json, write_json
from prunedeploy_engines.errors import StoreError

OURS, OTHER = "a" * 64, "b" * 64


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def build_into(out: Path, config_hash: str = OURS, overwrite: bool = False) -> bool:
    """Write something of each kind, and return whether an earlier build was resumed."""
    with open_output_folder(out, config_hash, overwrite=overwrite) as folder:
        folder.file("model.cfg").write_text(config_hash)
        folder.file("detections/pruned-clean.csv").write_text("image_id")
        return folder.resumed


def test_build_json_with_the_hash_stands_there_before_anything_else(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "demo"
    with open_output_folder(out, OURS, provenance={"config": {"ratio": 0.75}}) as folder:
        assert folder.path == out
        assert not folder.resumed
        assert set(os.listdir(out)) == {"build.json", LOCK}
        document = read_json(out / "build.json")
    assert document["config_hash"] == OURS
    assert document["config"] == {"ratio": 0.75}
    assert os.listdir(out) == ["build.json"]


def test_same_hash_resumes_and_keeps_what_is_there(tmp_path: Path) -> None:
    assert not build_into(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = contents(tmp_path / "out")
    with open_output_folder(tmp_path / "out", OURS) as folder:
        assert folder.resumed
        assert contents(folder.path) == {**before, LOCK: b""}


def test_another_hash_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    build_into(tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(
        StoreError, match=r"out: holds the build of another configuration \(a{12}\); .* --overwrite"
    ) as error:
        build_into(tmp_path / "out", OTHER)
    assert error.value.exit_code == 2
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("config_hash", [OURS, OTHER])
def test_overwrite_replaces_a_build(tmp_path: Path, config_hash: str) -> None:
    build_into(tmp_path / "out")
    for name in ENTRIES - {"bundle", "detections", "model.cfg"}:
        (tmp_path / "out" / name).touch()
    (tmp_path / "out" / "bundle" / "engines").mkdir(parents=True)
    with open_output_folder(tmp_path / "out", config_hash, overwrite=True) as folder:
        assert not folder.resumed
        assert set(os.listdir(folder.path)) == {"build.json", LOCK}
        assert read_json(folder.path / "build.json")["config_hash"] == config_hash


def test_overwrite_does_not_remove_a_file_that_no_build_wrote(tmp_path: Path) -> None:
    build_into(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = contents(tmp_path / "out")
    with pytest.raises(StoreError, match=r"holds notes\.txt, which no build wrote; move it away"):
        build_into(tmp_path / "out", OTHER, overwrite=True)
    assert contents(tmp_path / "out") == before


def test_overwrite_unlinks_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    build_into(tmp_path / "out")
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "file").touch()
    (tmp_path / "out" / "bundle").symlink_to(tmp_path / "big")
    build_into(tmp_path / "out", OTHER, overwrite=True)
    assert (tmp_path / "big" / "file").exists()
    assert not (tmp_path / "out" / "bundle").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("thesis.tex", "", r"out: holds thesis\.tex, but no build"),
        ("results.json", "{}", r"out: holds results\.json, but no build"),
        (".hidden", "", r"out: holds \.hidden, but no build"),
        ("build.json", '{"config_hash": "b"}', r"build\.json: does not belong to a prunedeploy build"),
        ("build.json", "[1]", r"build\.json: does not belong to a prunedeploy build"),
        ("build.json", "{", r"build\.json: is not JSON"),
    ],
)
def test_folder_that_is_no_build_is_refused_and_untouched_whatever_was_asked(
    tmp_path: Path, name: str, content: str, message: str, overwrite: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(content)
    with pytest.raises(StoreError, match=message):
        build_into(out, overwrite=overwrite)
    assert contents(out) == {name: content.encode()}


def test_empty_folder_is_used(tmp_path: Path) -> None:
    assert not build_into(tmp_path, overwrite=True)
    assert build_into(tmp_path)


def test_link_to_a_folder_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    build_into(tmp_path / "out")
    build_into(tmp_path / "out", OTHER, overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert read_json(tmp_path / "disk" / "build.json")["config_hash"] == OTHER
    assert (tmp_path / "disk" / "model.cfg").read_text() == OTHER


def test_impossible_folders_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for out, message in {
        "file": "file: is a file, not a folder",
        "file/out": r"cannot be used \(Not a directory\)",
        "nowhere": "nowhere: is a link that points nowhere",
        "loop": "loop: is a link that points nowhere",
        "x" * 300: r"cannot be used \(File name too long\)",
    }.items():
        with pytest.raises(StoreError, match=f"{message}; choose another --out"):
            build_into(tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop", "nowhere"]


def test_folder_that_may_not_be_written_is_one_line(tmp_path: Path) -> None:
    program = """
import os, sys
from prunedeploy.pipeline.output_folder import open_output_folder
from prunedeploy_engines.errors import StoreError
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for out in sys.argv[1:]:
    try:
        with open_output_folder(out, "a"):
            print("opened")
    except StoreError as error:
        print(error)
"""
    # Outside tmp_path, whose parents are closed to the user that root becomes.
    top = Path("/tmp") / f"prunedeploy-test-{os.getpid()}"
    shut = top / "shut"
    try:
        shut.mkdir(parents=True)
        top.chmod(0o755)
        shut.chmod(0o555)
        words = [sys.executable, "-c", program, str(shut), str(shut / "below")]
        ended = subprocess.run(words, capture_output=True, text=True, check=False)
        assert os.listdir(shut) == []
    finally:
        shutil.rmtree(top)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0] == f"{shut}: cannot be used (not allowed to write in it); choose another --out"
    assert lines[1] == f"{shut / 'below'}: cannot be used (Permission denied); choose another --out"


def test_a_second_live_build_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    program = """
import sys, time
from prunedeploy.pipeline.output_folder import open_output_folder
with open_output_folder(sys.argv[1], "a" * 64):
    print("building", flush=True)
    time.sleep(600)
"""
    out = tmp_path / "out"
    first = subprocess.Popen([sys.executable, "-c", program, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "building\n"
        (tmp_path / "link").symlink_to(out)
        for config_hash, overwrite in [(OURS, False), (OTHER, False), (OTHER, True)]:
            for spelling in (out, tmp_path / "link", out / ".." / "out"):
                with pytest.raises(StoreError, match="another process is building into this folder"):
                    build_into(spelling, config_hash, overwrite)
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert read_json(out / "build.json")["config_hash"] == OURS
    assert build_into(out)


KILLED_AT_EVERY_STEP = """
import os, shutil, signal, sys
from pathlib import Path
from prunedeploy.pipeline.output_folder import open_output_folder
from prunedeploy.pipeline.store.store import read_json
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "fcntl.flock"}
out, fatal, seen = Path(sys.argv[1]), -1, 0

def count(event, arguments):
    global seen
    if fatal >= 0 and event in CHANGES and str(out) in str(arguments[0]):
        seen += 1
        if seen == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

def build(config_hash, overwrite):
    with open_output_folder(out, config_hash, overwrite=overwrite) as folder:
        folder.file("model.cfg").write_text(config_hash)
        folder.file("detections/a.csv").write_text(config_hash)

at, kills = 1, 0
while True:
    shutil.rmtree(out, ignore_errors=True)
    if sys.argv[2] == "overwrite":
        build("old", False)
    child = os.fork()
    if child == 0:
        sys.addaudithook(count)
        fatal = at
        build("new", True)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if (out / "build.json").exists():
        assert read_json(out / "build.json")["config_hash"] in ("old", "new"), at
        if (out / "model.cfg").exists() and (out / "model.cfg").read_text() == "new":
            assert read_json(out / "build.json")["config_hash"] == "new", at
    build("new", True)
    assert sorted(os.listdir(out)) == ["build.json", "detections", "model.cfg"], (at, os.listdir(out))
    assert (out / "model.cfg").read_text() == "new"
    if ended == 0:
        break
    assert ended == -signal.SIGKILL, (at, ended)
    at, kills = at + 1, kills + 1
print(kills)
"""


@pytest.mark.parametrize("case", ["fresh", "overwrite"])
def test_killed_at_any_file_operation_the_folder_is_still_a_builds(tmp_path: Path, case: str) -> None:
    words = [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(tmp_path / "out"), case]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 8, "the operations of one run were not seen"


def test_what_a_killed_process_was_writing_does_not_make_the_folder_foreign(tmp_path: Path) -> None:
    hexadecimal = 4 * "01234567"
    (tmp_path / f".build.json.{hexadecimal}.tmp").touch()
    (tmp_path / LOCK).touch()
    build_into(tmp_path)
    (tmp_path / f".results.json.{hexadecimal}.tmp").touch()
    (tmp_path / "detections" / f".a.csv.{hexadecimal}.tmp").touch()
    build_into(tmp_path)
    assert sorted(os.listdir(tmp_path / "detections")) == ["pruned-clean.csv"]
    (tmp_path / f".model.cfg.{hexadecimal}.tmp").touch()
    build_into(tmp_path, OTHER, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["build.json", "detections", "model.cfg"]


def test_bundle_that_a_killed_process_was_replacing_is_put_back(tmp_path: Path) -> None:
    build_into(tmp_path)
    old = tmp_path / f".bundle.{8 * '0123'}.old.tmp"
    old.mkdir()
    (old / "bundle.json").write_text("old")
    with open_output_folder(tmp_path, OURS) as folder:
        assert (folder.path / "bundle" / "bundle.json").read_text() == "old"
    (tmp_path / "bundle").rename(old)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "bundle.json").write_text("new")
    build_into(tmp_path)
    assert (tmp_path / "bundle" / "bundle.json").read_text() == "new"
    assert not old.exists()


@pytest.mark.parametrize("name", ["notes.txt", "build.json", "../model.cfg", "bundle/../../x", "/etc/passwd", ""])
def test_only_what_builds_are_known_to_write_can_be_written(tmp_path: Path, name: str) -> None:
    with (
        open_output_folder(tmp_path / "out", OURS) as folder,
        pytest.raises(ValueError, match="is not below one of"),
    ):
        folder.file(name)


def test_error_in_a_build_frees_the_folder_for_the_next(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_output_folder(tmp_path, OURS):
        raise ZeroDivisionError
    write_json(tmp_path / "results.json", {})
    assert build_into(tmp_path)


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", "._x"])
def test_what_a_file_manager_leaves_is_nobodys_build(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("x")
    assert not build_into(tmp_path / "out")
    assert build_into(tmp_path / "out")
    assert not build_into(tmp_path / "out", OTHER, overwrite=True)
    assert (tmp_path / "out" / name).read_text() == "x"

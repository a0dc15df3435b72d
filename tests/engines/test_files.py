"""A folder is replaced whole, and whoever dies when, the old one or the new one is there after the next call."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from prunedeploy_engines.errors import StoreError
from prunedeploy_engines.files import REPLACED, recover_folder, write_whole_folder

FIRST, SECOND = "a" * 32, "b" * 32


def write(folder: Path, text: str, overwrite: bool = True) -> None:
    def fill(temporary: Path) -> None:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "text").write_text(text)
        (temporary / "more").write_text(text)

    write_whole_folder(folder, fill, overwrite=overwrite)


def text_of(folder: Path) -> str:
    assert (folder / "more").read_text() == (folder / "inner" / "text").read_text()
    return (folder / "more").read_text()


def replaced(folder: Path, hexadecimal: str = FIRST) -> Path:
    return folder.with_name(f".{folder.name}.{hexadecimal}{REPLACED}")


def test_a_folder_is_written_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert write_whole_folder(folder, lambda temporary: temporary.parent) == folder.parent
    write(folder, "one", overwrite=False)  # an empty folder is as good as none
    write(folder, "two")
    assert text_of(folder) == "two"
    assert list(folder.parent.iterdir()) == [folder]


def test_a_full_folder_a_link_and_a_file_are_not_replaced(tmp_path: Path) -> None:
    write(tmp_path / "folder", "one")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="exists and is not empty"):
        write(tmp_path / "folder", "two", overwrite=False)
    for name, what in {"link": "is a link", "file": "is not a folder"}.items():
        with pytest.raises(StoreError, match=f"{name}: {what}; move it away"):
            write(tmp_path / name, "two")
    assert text_of(tmp_path / "folder") == "one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_second_rename_that_fails_takes_back_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    folder, rename = tmp_path / "folder", Path.rename
    write(folder, "old")

    def refused(source: Path, target: Path) -> Path:
        if target == folder and not source.name.endswith(REPLACED):
            raise error
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(StoreError if isinstance(error, OSError) else KeyboardInterrupt):
        write(folder, "new")
    assert text_of(folder) == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_process_was_replacing_is_put_back(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write(folder, "old")
    folder.rename(replaced(folder))
    with pytest.raises(StoreError, match="exists and is not empty"):
        write(folder, "new", overwrite=False)
    assert text_of(folder) == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_process_had_replaced_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for text, hexadecimal in (("oldest", FIRST), ("old", SECOND)):
        write(folder, text)
        folder.rename(replaced(folder, hexadecimal))
    recover_folder(folder)
    assert text_of(folder) == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_folders_of_other_names_are_left_alone(tmp_path: Path) -> None:
    longer = replaced(tmp_path / "folder.b")
    longer.mkdir()
    (tmp_path / f".folder.notes{REPLACED}").mkdir()
    write(tmp_path / "folder", "new")
    recover_folder(tmp_path / "folder")
    assert longer.exists()
    assert (tmp_path / f".folder.notes{REPLACED}").exists()


KILLED_AT_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
from prunedeploy_engines.files import recover_folder, write_whole_folder
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
folder, fatal, seen = Path(sys.argv[1]) / "folder", -1, 0

def count(event, arguments):
    global seen
    if fatal >= 0 and event in CHANGES:
        seen += 1
        if seen == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

def fill(text):
    def write(temporary):
        (temporary / "one").write_text(text)
        (temporary / "two").write_text(text)
    return write

def content():
    return {path.name: path.read_text() for path in folder.iterdir()}

at, kept, ended = 0, set(), 1
write_whole_folder(folder, fill("old"))
while ended:
    at += 1
    child = os.fork()
    if child == 0:
        sys.addaudithook(count)
        fatal = at
        write_whole_folder(folder, fill("new"), overwrite=True)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, -signal.SIGKILL), (at, ended)
    hidden = not folder.exists()
    recover_folder(folder)
    assert content() in ({"one": "old", "two": "old"}, {"one": "new", "two": "new"}), (at, content())
    kept.add((content()["one"], hidden))
    write_whole_folder(folder, fill("old"), overwrite=True)
    assert not list(folder.parent.glob(".*.old.tmp")), at
assert kept == {("old", False), ("old", True), ("new", False)}, kept
"""


def test_killed_at_any_file_operation_the_old_or_the_new_folder_is_whole(tmp_path: Path) -> None:
    words = [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(tmp_path)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_folder_with_nothing_but_a_file_managers_leftover_is_empty(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".DS_Store").write_bytes(b"x")
    write_whole_folder(tmp_path / "new", lambda folder: (folder / "a").write_bytes(b"1"))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a"]

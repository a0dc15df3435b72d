"""The store: computed once, whole or not there, whoever dies when."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prunedeploy.pipeline.store import key as stages
from prunedeploy.pipeline.store.key import StageKey, canonical_json, check_result, machine_id
from prunedeploy.pipeline.store.store import Store, is_disk_full, read_json, write_json
from prunedeploy_engines.errors import StoreError
from prunedeploy_engines.locks import FileLock

KEY = StageKey("finetune", 1, {"lr": 0.01}, {"weights": "abc"}, torch="2.0")
PRELUDE = """
import os, signal, sys, time
from pathlib import Path
from prunedeploy.pipeline.store.key import StageKey
from prunedeploy.pipeline.store.store import Store
from prunedeploy_engines.locks import FileLock
from prunedeploy_engines.errors import StoreError
KEY = StageKey("finetune", 1, {"lr": 0.01}, {"weights": "abc"}, torch="2.0")
def computed(store, key, compute, description=""):
    with store.computing(key, description) as work:
        if work is not None:
            compute(work)
    return store.folder(key)
def wait_for(path):
    while not path.exists():
        time.sleep(0.01)
"""


def computed(store: Store, key: StageKey, compute: Callable[[Path], object], description: str = "") -> Path:
    """Compute a result unless it is there; return its folder."""
    with store.computing(key, description) as work:
        if work is not None:
            compute(work)
    return store.folder(key)


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python process with the names of `PRELUDE`."""
    words = [sys.executable, "-u", "-c", PRELUDE + program, *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Return what a process printed, once it has ended well."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def two_files(work: Path) -> None:
    (work / "model.weights").write_bytes(bytes(range(200)))
    (work / "curves").mkdir()
    write_json(work / "curves" / "loss.json", [1.0, 0.5])


def never(work: Path) -> None:
    raise AssertionError("computed although the result is there")


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def in_room(root: Path, room: str) -> list[str]:
    return sorted(path.name for path in (root / room).iterdir())


# Keys


def test_key_is_the_sha256_of_the_canonical_json() -> None:
    text = (
        '{"config":{"a":[1,null],"lr":0.01},"inputs":{"weights":"abc"},"machine":null,'
        '"name":"finetune","torch":"2.0","version":3}'
    )
    key = StageKey("finetune", 3, {"lr": 0.01, "a": (1, None)}, {"weights": "abc"}, torch="2.0")
    assert key.digest == hashlib.sha256(text.encode()).hexdigest()
    assert key.folder_name == f"finetune-{key.digest}"


@pytest.mark.parametrize(
    "other",
    [
        StageKey("pretrain", 1, {"lr": 0.01}, {"weights": "abc"}, torch="2.0"),
        StageKey("finetune", 2, {"lr": 0.01}, {"weights": "abc"}, torch="2.0"),
        StageKey("finetune", 1, {"lr": 0.02}, {"weights": "abc"}, torch="2.0"),
        StageKey("finetune", 1, {"lr": 0.01}, {"weights": "abd"}, torch="2.0"),
        StageKey("finetune", 1, {"lr": 0.01}, {"mask": "abc"}, torch="2.0"),
        StageKey("finetune", 1, {"lr": 0.01}, {"weights": "abc"}, torch="2.1"),
        StageKey("finetune", 1, {"lr": 0.01}, {"weights": "abc"}, machine=machine_id(), torch="2.0"),
    ],
)
def test_key_changes_with_everything_a_result_depends_on(other: StageKey) -> None:
    assert other.digest != KEY.digest


def test_key_does_not_depend_on_the_order_of_settings() -> None:
    assert StageKey("a", 1, {"x": 1, "y": 2}).digest == StageKey("a", 1, {"y": 2, "x": 1}).digest


@pytest.mark.parametrize("value", [float("nan"), np.float32(1), Path("a"), {1: 2}, [{"a": {2: 3}}], {"a"}])
def test_only_plain_json_can_be_part_of_a_key(value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"value": value})


def test_key_refuses_names_that_are_no_folder_names_and_inputs_without_digest() -> None:
    with pytest.raises(ValueError, match=r"'\.\./a'"):
        StageKey("../a", 1)
    with pytest.raises(ValueError, match="input 'weights' of stage a"):
        StageKey("a", 1, inputs={"weights": ""})


def test_key_states_the_installed_torch() -> None:
    torch = pytest.importorskip("torch")
    assert StageKey("a", 1).torch == torch.__version__


# Computing


def test_result_is_computed_once_and_found_again(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        assert not store.has(KEY)
        first = computed(store, KEY, two_files, description="fine-tuning at 0.75")
    with Store(tmp_path / "store") as store:
        assert computed(store, KEY, never) == first == store.load(KEY)
        assert store.has(KEY)
    assert (first / "model.weights").read_bytes() == bytes(range(200))
    assert read_json(first / "curves" / "loss.json") == [1.0, 0.5]


def test_record_names_key_inputs_and_every_file(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        folder = computed(store, KEY, two_files, description="at 0.75")
    record = json.loads((folder / "stage.json").read_text())
    assert record["key"] == KEY.as_dict()
    assert record["digest"] == KEY.digest
    assert record["description"] == "at 0.75"
    listed = {entry["path"]: entry for entry in record["files"]}
    assert listed.keys() == {"model.weights", "curves/loss.json"}
    assert listed["model.weights"]["bytes"] == 200
    assert listed["model.weights"]["sha256"] == hashlib.sha256(bytes(range(200))).hexdigest()
    assert record["bytes"] == 200 + (folder / "curves" / "loss.json").stat().st_size


def test_failed_stage_leaves_its_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    def fails(work: Path) -> None:
        two_files(work)
        (store.checkpoint_dir(KEY) / "step-3").write_text("3")
        raise KeyboardInterrupt

    with Store(tmp_path) as store:
        with pytest.raises(KeyboardInterrupt):
            computed(store, KEY, fails)
        assert not store.has(KEY)
        assert in_room(tmp_path, "work") == []
        assert (store.checkpoint_dir(KEY) / "step-3").read_text() == "3"
        computed(store, KEY, two_files)
        assert in_room(tmp_path, "checkpoints") == []


def test_result_may_hold_only_files_and_folders_and_no_record_of_its_own(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        with pytest.raises(ValueError, match="link is neither file nor folder"):
            computed(store, KEY, lambda work: (work / "link").symlink_to("/"))
        with pytest.raises(ValueError, match=r"stage finetune wrote a file called stage\.json"):
            computed(store, KEY, lambda work: write_json(work / "stage.json", {}))
        assert in_room(tmp_path, "results") == in_room(tmp_path, "work") == []


def test_two_processes_with_the_same_key_compute_once(tmp_path: Path) -> None:
    program = """
root, name = Path(sys.argv[1]), sys.argv[2]
def compute(work):
    with (root.parent / "computed").open("a") as file:
        file.write(name)
    (work / "result").write_text(name)
    wait_for(root.parent / "go")
with Store(root, say=print) as store:
    print(computed(store, KEY, compute))
"""
    first = start(program, tmp_path / "store", "A")
    wait_for(lambda: (tmp_path / "computed").exists())
    second = start(program, tmp_path / "store", "B")
    assert second.stdout is not None
    assert second.stdout.readline().startswith("waiting: another process is computing finetune")
    (tmp_path / "go").touch()
    folder = finish(first).strip()
    assert finish(second).strip() == folder
    assert (tmp_path / "computed").read_text() == "A"
    assert (Path(folder) / "result").read_text() == "A"


def test_where_locks_do_not_work_the_second_to_finish_discards_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileLock, "acquire", lambda lock, wait=True: True)

    def slow(work: Path) -> None:
        with Store(tmp_path) as other:
            leftovers = in_room(tmp_path, "work")
            other.root.joinpath("work", leftovers[0]).rename(
                tmp_path / "aside"
            )  # it would clear what it takes for dead
            computed(other, KEY, lambda inner: write_json(inner / "by.json", "fast"))
            (tmp_path / "aside").rename(tmp_path / "work" / leftovers[0])
        write_json(work / "by.json", "slow")

    with Store(tmp_path) as store:
        folder = computed(store, KEY, slow)
    assert read_json(folder / "by.json") == "fast"
    assert in_room(tmp_path, "work") == []
    assert in_room(tmp_path, "results") == [KEY.folder_name]
    check_result(folder, KEY.digest)


# Death

KILLED_AT_EVERY_STEP = """
import shutil
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime", "shutil.rmtree"}
root, fatal, seen = Path(sys.argv[1]), 0, 0

def count(event, arguments):
    global seen
    if fatal >= 0 and event in CHANGES and str(root) in str(arguments[0]):
        seen += 1
        if seen == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

def compute(work):
    checkpoints = Store(root).checkpoint_dir(KEY)
    done = len(list(checkpoints.iterdir()))
    for step in range(done, 3):
        (checkpoints / str(step)).mkdir()
    (work / "weights").write_bytes(bytes(range(100)))
    (work / "more").mkdir()
    (work / "more" / "log").write_text("012")

def build():
    with Store(root) as store:
        computed(store, KEY, compute)

def gc():
    with Store(root) as store:
        store.gc(older_than_days=0)

def forked(at):
    global fatal, seen
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        fatal, seen = at, 0
        sys.addaudithook(count)
        gc() if sys.argv[2] == "gc" else build()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

fatal = -1
at, kills = 1, 0
while True:
    shutil.rmtree(root, ignore_errors=True)
    if sys.argv[2] == "gc":
        build()
    ended = forked(at)
    if root.exists() and (root / "store.json").exists():
        with Store(root) as store:
            rows = store.ls(hashed=True)
            assert "damaged" not in [row.kind for row in rows], (at, rows)
            assert not any(row.in_use for row in rows), (at, rows)
            for row in rows:
                if row.kind == "result":
                    assert (row.path / "weights").read_bytes() == bytes(range(100)), at
    build()
    with Store(root) as store:
        folder = store.load(KEY)
        assert (folder / "more" / "log").read_text() == "012", at
        assert [row.kind for row in store.ls()] == ["result"], (at, store.ls())
    if ended == 0:
        break
    assert ended == -signal.SIGKILL, (at, ended)
    at, kills = at + 1, kills + 1
print(kills)
"""


@pytest.mark.parametrize(("action", "operations"), [("build", 25), ("gc", 10)])
def test_kill_9_at_every_single_file_operation_leaves_nothing_that_reads_as_whole(
    tmp_path: Path, action: str, operations: int
) -> None:
    kills = int(finish(start(KILLED_AT_EVERY_STEP, tmp_path / "store", action)))
    assert kills > operations, "the operations of one run were not seen"


def test_kill_9_while_computing_frees_the_lock_though_a_forked_worker_lives_on(tmp_path: Path) -> None:
    program = """
def compute(work):
    (work / "half").write_bytes(b"x" * 1000)
    worker = os.fork()
    if worker == 0:
        os.close(1), os.close(2)
        time.sleep(600)
    print(worker)
    time.sleep(600)
computed(Store(Path(sys.argv[1])), KEY, compute)
"""
    process = start(program, tmp_path)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        with Store(tmp_path) as store:
            (row,) = store.ls()
            assert (row.kind, row.in_use) == ("work", True)
            assert store.gc(older_than_days=0) == []
            process.kill()
            process.communicate()
            os.kill(worker, 0)  # lives
            (row,) = store.ls()
            assert (row.kind, row.in_use, row.bytes) == ("work", False, 1000)
            assert not store.has(KEY)
            computed(store, KEY, two_files)
            assert [row.kind for row in store.ls()] == ["result"]
    finally:
        os.kill(worker, signal.SIGKILL)


# Damage


def cut_short(folder: Path) -> None:
    (folder / "model.weights").write_bytes(bytes(range(199)))


def remove_a_file(folder: Path) -> None:
    (folder / "curves" / "loss.json").unlink()


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "._model.weights", "model.cfg~", ".model.cfg.swp", "#a#"])
def test_what_a_file_manager_or_editor_leaves_in_a_result_costs_no_training(tmp_path: Path, name: str) -> None:
    with Store(tmp_path / "store") as store:
        folder = computed(store, KEY, lambda work: (work / "model.cfg").write_text("[net]"))
        (folder / name).write_text("x")
        (tmp_path / "store" / "results" / name).write_text("x")
        (tmp_path / "store" / name).write_text("x")
        again = []
        computed(store, KEY, again.append)
        assert again == []
        assert [row.kind for row in store.ls(hashed=True)] == ["result"]


def test_a_folder_that_a_file_manager_has_looked_into_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".DS_Store").write_text("x")
    Store(tmp_path / "store").close()
    assert (tmp_path / "store" / "store.json").is_file()


def add_a_file(folder: Path) -> None:
    (folder / "curves" / "other.json").write_text("{}")


def spoil_the_record(folder: Path) -> None:
    (folder / "stage.json").write_text("{")


def record_without_files(folder: Path) -> None:
    record = json.loads((folder / "stage.json").read_text())
    del record["files"]
    (folder / "stage.json").write_text(json.dumps(record))


def record_of_another_key(folder: Path) -> None:
    record = json.loads((folder / "stage.json").read_text())
    record["key"]["version"] = 2
    (folder / "stage.json").write_text(json.dumps(record))


def record_of_another_stage(folder: Path) -> None:
    stages_record = json.loads((folder / "stage.json").read_text())
    other = StageKey("finetune", 2, torch="2.0")
    stages_record.update(key=other.as_dict(), digest=other.digest)
    (folder / "stage.json").write_text(json.dumps(stages_record))


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (
        lambda folder: flip_a_byte(folder / "model.weights"),
        r"model\.weights: has changed since it was written",
    ),
    (cut_short, r"model\.weights: has 199 bytes, 200 were written"),
    (remove_a_file, r"loss\.json: is missing"),
    (add_a_file, r"other\.json: does not belong to the result"),
    (lambda folder: (folder / "stage.json").unlink(), r"stage\.json: cannot be read"),
    (spoil_the_record, r"stage\.json: is not a stage's record"),
    (record_without_files, r"stage\.json: is not a stage's record"),
    (record_of_another_key, r"stage\.json: is not a stage's record"),
    (record_of_another_stage, r"stage\.json: is the record of another stage"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_result_is_refused_and_computed_again_with_a_warning(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    said: list[str] = []
    with Store(tmp_path, say=said.append) as store:
        folder = computed(store, KEY, two_files)
        damage(folder)
        assert not store.has(KEY)
        with pytest.raises(StoreError, match=f"{message}.*; run `prunedeploy store gc`"):
            store.load(KEY)
        assert said == []
        assert computed(store, KEY, two_files) == folder
        assert len(said) == 1
        assert "computing finetune again, its stored result is damaged" in said[0]
        assert store.load(KEY) == folder
        assert in_room(tmp_path, "work") == []


def test_gc_removes_a_result_with_one_byte_changed(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        flip_a_byte(computed(store, KEY, two_files) / "model.weights")
    with Store(tmp_path) as store:
        assert [row.kind for row in store.ls()] == ["result"]  # by size only
        (row,) = store.gc()
        assert row.kind == "damaged"
        assert "has changed" in row.description
        assert store.ls() == []


def test_large_file_is_hashed_only_if_it_was_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "ALWAYS_HASHED_BYTES", 100)
    with Store(tmp_path / "a") as store:
        folder = computed(store, KEY, two_files)
    hashed: list[str] = []
    monkeypatch.setattr(
        stages,
        "file_sha256",
        lambda path: hashed.append(path.name) or hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    with Store(tmp_path / "a") as store:
        store.load(KEY)
        assert hashed == ["loss.json"]
        shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
        with Store(tmp_path / "b") as copied:
            copied.load(KEY)
        assert "model.weights" in hashed
        time.sleep(0.01)
        flip_a_byte(folder / "model.weights")
        assert not store.has(KEY)


def test_missing_result_is_an_error_when_loaded(tmp_path: Path) -> None:
    with (
        Store(tmp_path) as store,
        pytest.raises(StoreError, match=f"no result of finetune {KEY.digest[:12]}"),
    ):
        store.load(KEY)


# Keeping house


def test_gc_keeps_results_and_resume_points_unless_they_are_old(tmp_path: Path) -> None:
    other = StageKey("pretrain", 1, torch="2.0")
    with Store(tmp_path) as store:
        computed(store, KEY, two_files)
        (store.checkpoint_dir(other) / "step-3").write_text("3")
    day = 86400
    for path in [*(tmp_path / "results").iterdir(), *(tmp_path / "checkpoints").rglob("*")]:
        os.utime(path, (time.time() - 3 * day, time.time() - 3 * day))
    os.utime(tmp_path / "checkpoints" / other.folder_name, (time.time() - 3 * day,) * 2)
    with Store(tmp_path) as store:
        assert store.gc() == store.gc(older_than_days=4) == []
        found = store.gc(older_than_days=2, dry_run=True)
        assert [(row.kind, row.name) for row in found] == [("result", "finetune"), ("checkpoint", "pretrain")]
        assert [row.kind for row in store.gc(older_than_days=2, keep=[KEY.digest[:12]])] == ["checkpoint"]
        assert store.has(KEY)
        assert [row.path for row in store.gc(older_than_days=2)] == [found[0].path]
        assert store.ls() == []
        assert in_room(tmp_path, "work") == in_room(tmp_path, "locks") == []


def test_using_a_result_makes_it_young(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        folder = computed(store, KEY, two_files)
        os.utime(folder, (0, 0))
        computed(store, KEY, never)
    with Store(tmp_path) as store:
        assert store.gc(older_than_days=1) == []


def test_gc_never_removes_what_a_live_process_uses(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        computed(store, KEY, two_files)
    program = """
store = Store(Path(sys.argv[1]))
print(computed(store, KEY, None))
sys.stdin.readline()
"""
    words = [sys.executable, "-u", "-c", PRELUDE + program, str(tmp_path)]
    user = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert user.stdout is not None
        folder = Path(user.stdout.readline().strip())
        with Store(tmp_path) as store:
            assert store.ls()[0].in_use
            assert store.gc(older_than_days=0) == store.gc(older_than_days=0, dry_run=True) == []
            check_result(folder, KEY.digest)
    finally:
        user.kill()
        user.communicate()
    with Store(tmp_path) as store:
        assert [row.path for row in store.gc(older_than_days=0)] == [folder]


def test_gc_removes_checkpoints_of_an_ended_stage_though_its_result_is_in_use(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        computed(store, KEY, two_files)
        store.checkpoint_dir(KEY)
        assert [row.kind for row in store.gc()] == ["checkpoint"]
        assert store.has(KEY)


def test_ls_says_what_is_there(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        folder = computed(store, KEY, two_files, description="at 0.75")
        (row,) = store.ls()
    assert (row.kind, row.name, row.digest, row.path) == ("result", "finetune", KEY.digest, folder)
    assert row.description == "at 0.75"
    assert row.in_use
    assert row.seconds is not None
    assert row.seconds >= 0
    assert row.bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_folder_with_something_else_in_it_is_not_taken_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreError, match=r"is not a store, it holds thesis\.tex; choose another --store"):
        Store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_store_of_another_schema_or_kind_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    write_json(tmp_path / "store.json", {"kind": "prunedeploy store", "schema_version": 99})
    with pytest.raises(StoreError, match="is of schema 99, not 1"):
        Store(tmp_path)
    write_json(tmp_path / "store.json", {"kind": "shop"})
    with pytest.raises(StoreError, match="is not a store's"):
        Store(tmp_path)


def test_store_cannot_be_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be used"):
        Store(tmp_path / "file" / "store")


# Locks


def test_lock_is_not_lost_when_its_file_is_removed_under_a_waiting_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second, third = FileLock(path), FileLock(path), FileLock(path)
    assert first.acquire()
    waiting = threading.Thread(target=second.acquire)
    waiting.start()
    time.sleep(0.05)
    first.release(remove=True)
    waiting.join()
    assert not third.acquire(wait=False)
    second.release()
    assert third.acquire(wait=False)
    third.release()


def test_lock_admits_one_process_at_a_time_while_all_remove_its_file(tmp_path: Path) -> None:
    program = """
counter, lock = Path(sys.argv[1]) / "counter", FileLock(Path(sys.argv[1]) / "lock")
for turn in range(100):
    lock.acquire()
    counter.write_text(str(int(counter.read_text()) + 1))
    lock.release(remove=turn % 2 == 0)
"""
    (tmp_path / "counter").write_text("0")
    for process in [start(program, tmp_path) for _ in range(4)]:
        finish(process)
    assert (tmp_path / "counter").read_text() == "400"


def test_shared_locks_keep_out_only_exclusive_ones(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with FileLock(path, shared=True), FileLock(path, shared=True):
        assert not FileLock(path).acquire(wait=False)
    with FileLock(path):
        assert not FileLock(path, shared=True).acquire(wait=False)


# No room

FILL_THE_DISK = """
import numpy as np
root, how = Path(sys.argv[1]), sys.argv[2]
blob = np.zeros(4 << 20, np.uint8)
def compute(work):
    (work / "small").write_text("fits")
    if how == "bytes":
        (work / "big").write_bytes(blob.tobytes())
    elif how == "numpy":
        np.save(work / "big.npy", blob)
    elif how == "tofile":
        blob.tofile(work / "big")
    elif how == "json":
        from prunedeploy.pipeline.store.store import write_json
        write_json(work / "big.json", "x" * (4 << 20))
    else:
        from safetensors.numpy import save_file
        save_file({"blob": blob}, work / "big.safetensors")
with Store(root) as store:
    try:
        computed(store, KEY, compute)
    except StoreError as error:
        print(error)
    print(list((root / "work").iterdir()), list((root / "results").iterdir()))
    computed(store, KEY, lambda work: (work / "small").write_text("fits") and None)
    print([row.kind for row in store.ls()])
"""
WRITERS = ["bytes", "numpy", "tofile", "json", "safetensors"]


def assert_one_line_and_nothing_half(out: str) -> None:
    error, left, then = out.splitlines()
    assert "space" in error
    assert left == "[] []"
    assert then == "['result']"


@pytest.mark.parametrize("how", WRITERS)
def test_full_disk_is_one_line_and_leaves_no_half_result(tmp_path: Path, how: str) -> None:
    if how == "safetensors":
        pytest.importorskip("safetensors")
    (tmp_path / "disk").mkdir()
    mount = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        'mount -t tmpfs -o size=1m none "$0" && exec "$@"',
        str(tmp_path / "disk"),
    ]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a file system of one megabyte cannot be mounted here")
    words = [*mount, sys.executable, "-c", PRELUDE + FILL_THE_DISK, str(tmp_path / "disk"), how]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert_one_line_and_nothing_half(ended.stdout)


@pytest.mark.parametrize("how", WRITERS[:4])
def test_file_size_limit_is_one_line_and_leaves_no_half_result(tmp_path: Path, how: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PRELUDE + FILL_THE_DISK, str(tmp_path), how],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    assert ended.returncode == 0, ended.stderr
    out = ended.stdout.replace("File too large", "no space")
    assert_one_line_and_nothing_half(out)


def test_other_errors_of_a_stage_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def fails(work: Path) -> None:
        (work / "nothing" / "there").write_text("x")

    with Store(tmp_path) as store, pytest.raises(FileNotFoundError):
        computed(store, KEY, fails)
    assert not is_disk_full(ValueError("28"))
    assert is_disk_full(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))


# JSON


def test_json_is_written_whole_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ratio": 0.75, "name": "Müller"})
    assert read_json(tmp_path / "a.json") == {"ratio": 0.75, "name": "Müller"}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert read_json(tmp_path / "a.json") == {"ratio": 0.75, "name": "Müller"}
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(StoreError, match=r"b\.json: is not JSON"):
        read_json(tmp_path / "b.json")
    with pytest.raises(StoreError, match=r"c\.json: cannot be read"):
        read_json(tmp_path / "c.json")

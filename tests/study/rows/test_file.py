"""Result rows on disk: only appended to, refused where they do not belong, whole after any crash."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prunedeploy.study.rows.file import INCOMPLETE, RowFile, read_rows
from prunedeploy.study.rows.rows import MEASURED, Row, to_line
from prunedeploy_engines.errors import ConfigError, StoreError
from study_rows import HASH, row

maps = st.none() | st.floats(0, 1)


@given(
    st.text(min_size=1, max_size=8),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 2**40),
    maps,
    st.floats(1e-6, 1e6),
    st.text(min_size=1, max_size=8),
)
def test_a_row_survives_its_line(configuration, ratio, run, one_map, time_ms, machine):
    given_row = row(configuration, ratio, run, map_clean=one_map, time_ms=time_ms, machine=machine)
    line = to_line(given_row)
    assert line.count(b"\n") == 1
    assert Row.model_validate_json(line) == given_row


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"map_pgd": float("nan")}, "finite"),
        ({"map_pgd": 1.2}, "less than or equal to 1"),
        ({"map_pgd": "0.3"}, "valid number"),
        ({"ratio": 1.0}, "less than 1"),
        ({"run": -1}, "greater than or equal to 0"),
        ({"mAP": 0.3}, "not permitted"),
        ({"time_ms": 4.0}, "needs the machine"),
        ({"map_pgd": None}, "has results, this one has none"),
        ({"error": "out of memory"}, "a row with an error has no results, this one has map_pgd"),
    ],
)
def test_rows_that_say_nothing_or_nonsense_are_refused(values, complaint):
    good = {"configuration": "structured-scaled", "ratio": 0.5, "run": 0, "configuration_hash": HASH, "map_pgd": 0.3}
    assert Row(**good).map_pgd == 0.3
    with pytest.raises(ValidationError, match=complaint):
        Row(**{**good, **values})


def test_every_measured_field_exists_and_a_row_cannot_be_changed():
    assert set(MEASURED) <= set(Row.model_fields)
    with pytest.raises(ValidationError, match="frozen"):
        row().map_pgd = 0.9


def test_rows_are_appended_to_what_is_there(tmp_path):
    path = tmp_path / "deeper" / "rows.jsonl"
    rows = [row(run=run) for run in range(4)]
    with RowFile(path, HASH) as file:
        file.append(*rows[:2])
        assert read_rows(path).rows == tuple(rows[:2])  # before it is closed
    with RowFile(path, HASH) as file:
        assert file.rows == rows[:2]
        file.append(rows[2])
        file.append(rows[3])
        assert file.rows == rows
    found = read_rows(path, HASH)
    assert (found.rows, found.notes, found.incomplete) == (tuple(rows), (), b"")


def test_a_last_line_cut_off_anywhere_is_kept_aside_said_and_skipped(tmp_path):
    first, last = to_line(row(run=1)), to_line(row(run=2))
    for kept in range(len(last) + 1):
        path = tmp_path / f"{kept}.jsonl"
        path.write_bytes(first + last[:kept])
        whole = kept >= len(last) - 1  # without its newline it is whole
        cut = kept > 0 and not whole
        read = read_rows(path)
        assert path.read_bytes() == first + last[:kept], "reading changes nothing"
        assert [r.run for r in read.rows] == ([1, 2] if whole else [1])
        assert bool(read.notes) == cut
        with RowFile(path, HASH) as file:
            assert bool(file.notes) == cut
            file.append(row(run=3))
        again = read_rows(path, HASH)
        assert [r.run for r in again.rows] == ([1, 2, 3] if whole else [1, 3])
        assert not again.notes
        aside = path.with_name(path.name + INCOMPLETE)
        assert aside.exists() == cut
        if cut:
            assert aside.read_bytes() == last[:kept] + b"\n"
            assert f"{kept} bytes" in file.notes[0]
            assert str(aside) in file.notes[1]


def test_a_broken_line_in_the_middle_is_damage(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(to_line(row()) + b'{"configuration":"structur\n' + to_line(row(run=1)))
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2: is not a result row \(Invalid JSON"):
        read_rows(path)
    path.write_bytes(to_line(row()).replace(b"map_pgd", b"map_pdg"))
    with pytest.raises(ConfigError, match=r"rows\.jsonl:1: is not a result row \(map_pdg: Extra inputs"):
        read_rows(path)


def test_rows_of_another_configuration_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(to_line(row()) + to_line(row(run=1, configuration_hash="d" * 64)))
    mixed = r"rows\.jsonl:2: a row of another configuration \(dddddddddddd, not cccccccccccc\); give the configuration"
    with pytest.raises(ConfigError, match=mixed):
        read_rows(path)
    with pytest.raises(ConfigError, match=r"rows\.jsonl:1: a row of another configuration"):
        read_rows(path, "e" * 64)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="another configuration"):
        RowFile(path, HASH)
    assert path.read_bytes() == before
    other = tmp_path / "other.jsonl"
    with RowFile(other, "f" * 64) as file, pytest.raises(ValueError, match="row of"):
        file.append(row())


def test_a_refused_file_can_be_opened_by_the_next(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(to_line(row()))
    with pytest.raises(ConfigError):
        RowFile(path, "f" * 64)
    RowFile(path, HASH).close()


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.jsonl: cannot be read \(No such file"):
        read_rows(tmp_path / "none.jsonl")


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "rows.jsonl"
    with RowFile(path, HASH), pytest.raises(StoreError, match=r"rows\.jsonl: another process is writing to this file"):
        RowFile(path, HASH)
    RowFile(path, HASH).close()


WRITER = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from study_rows import HASH, row
from prunedeploy.study.rows.file import RowFile
with RowFile(Path(sys.argv[1]), HASH) as file:
    for run in range(len(file.rows), 10**6):
        file.append(row(run=run))
        print(run, flush=True)
"""


def start_writer(path, **options):
    program = WRITER.format(path=[entry for entry in sys.path if entry])
    return subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True, **options)


def test_killed_at_any_moment_no_row_is_lost_and_none_doubled(tmp_path):
    path = tmp_path / "rows.jsonl"
    for pause in (0.05, 0.13):
        writer = start_writer(path)
        said = int(writer.stdout.readline())
        time.sleep(pause)
        os.kill(writer.pid, signal.SIGKILL)
        said = max([said, *(int(line) for line in writer.stdout.read().split())])
        writer.wait()
        runs = [r.run for r in read_rows(path).rows]
        assert runs == list(range(len(runs)))
        assert len(runs) > said, "what was reported as appended is in the file"


def test_a_full_disk_loses_nothing_and_leaves_no_half_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    room = 4 * len(to_line(row(run=1))) + 30  # four rows fit, half of a fifth as well

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    writer = start_writer(path, stderr=subprocess.PIPE, preexec_fn=limit)
    said, errors = writer.communicate(timeout=120)
    assert said.split() == ["0", "1", "2", "3"]
    assert "rows.jsonl: cannot be written (File too large); free space or choose another folder" in errors
    assert path.read_bytes() == b"".join(to_line(row(run=run)) for run in range(4))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written \(Not a directory"):
        RowFile(Path(tmp_path / "file" / "deeper" / "rows.jsonl"), HASH)

"""What surrounds every command: help, what is loaded when, exit codes, one line per failure."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from prunedeploy.cli import cli
from prunedeploy.cli.failures import EXTRA_OF, explain
from prunedeploy.cli.group import COMMANDS, Command
from prunedeploy_engines.errors import DataError
from prunedeploy_engines.version import __version__

HEAVY = ("torch", "onnx", "onnxruntime", "pydantic", "numpy", "PIL", "rich", "yaml", "pycocotools", "fastapi", "grpc")


def commands_and_subcommands() -> list[tuple[str, ...]]:
    context = click.Context(cli)
    found: list[tuple[str, ...]] = []
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, inner) for inner in command.commands]
    return found


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make ``prunedeploy doctor`` raise."""

    @click.command("doctor", cls=Command)
    def failing(as_json: bool) -> None:
        raise error

    monkeypatch.setattr("prunedeploy.cli.doctor.command", failing)


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), (), ("--bogus",), ("frobnicate",)])
def test_help_and_version_load_nothing_heavy(run_process: Any, arguments: tuple[str, ...]) -> None:
    tell = f"import atexit; atexit.register(lambda: print('LOADED', [n for n in {HEAVY} if n in sys.modules]))"
    done = run_process(*arguments, before=tell)
    assert "LOADED []" in done.stdout
    assert done.returncode == (2 if arguments and arguments[0] in ("--bogus", "frobnicate") else 0)


def test_help_of_every_command_loads_nothing_heavy(run_process: Any) -> None:
    names = [[*name, "--help"] for name in commands_and_subcommands()]
    before = (
        "from click.testing import CliRunner; from prunedeploy.cli import cli\n"
        f"codes = [CliRunner().invoke(cli, name).exit_code for name in {names}]\n"
        f"print(codes, [n for n in {HEAVY} if n in sys.modules]); sys.exit()"
    )
    assert run_process(before=before).stdout == f"{[0] * len(names)} []\n"


@pytest.mark.parametrize("name", commands_and_subcommands(), ids=" ".join)
def test_every_command_explains_itself_and_its_options(name: tuple[str, ...]) -> None:
    command: click.Command | None = cli
    for part in name:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), part)
    assert command is not None
    assert command.help
    shown = CliRunner().invoke(cli, [*name, "--help"]).stdout
    assert shown.startswith(f"Usage: prunedeploy {' '.join(name)}")
    assert "--debug" in shown
    if not isinstance(command, click.Group) and name not in (("doctor",), ("store", "ls")):
        assert command.epilog is not None
        assert f"prunedeploy {' '.join(name)}" in command.epilog
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name != "attack":
            assert parameter.help, f"{parameter.opts} says nothing"


def test_listed_commands_are_those_that_load() -> None:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
    shown = CliRunner().invoke(cli, ["--help"]).stdout
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_version_is_that_of_the_package(run: Any) -> None:
    assert run("--version").stdout == f"prunedeploy {__version__}\n"


@pytest.mark.parametrize("name", [(), ("data",), ("store",)])
def test_a_group_without_a_command_shows_its_help(run: Any, name: tuple[str, ...]) -> None:
    done = run(*name)
    assert done.exit_code == 0
    assert done.stdout.startswith("Usage: prunedeploy")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--bogus",), "--bogus"),
        (("frobnicate",), "frobnicate"),
        (("build", "--ratio", "much"), "much"),
        (("build", "--method", "kernels"), "kernels"),
        (("detect",), "BUNDLE"),
        (("data", "coco"), "DIR"),
        (("data", "frobnicate"), "frobnicate"),
        (("bench", "x", "--batch", "0"), "'0'"),
        (("bench", "x", "--runtime", "cuda"), "cuda"),
        (("engine", "x", "--batch", "8,1,1"), "MIN,BEST,MAX"),
        (("evaluate", "x", "--eps", "0.1", "--data", "."), "no such model"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(run: Any, arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("prunedeploy: error: ")
    assert said in done.stderr


def test_wrong_usage_says_where_help_is(run: Any) -> None:
    assert "see `prunedeploy build --help`" in run("build", "--bogus").stderr


def test_what_the_user_can_mend_is_one_line_without_traceback(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, DataError("is wrong", where="a.json", fix="mend it"))
    done = run("doctor")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "prunedeploy: error: a.json: is wrong; mend it\n"


@pytest.mark.parametrize("arguments", [("--debug", "doctor"), ("doctor", "--debug")])
def test_debug_shows_the_traceback_before_and_after_the_command(
    run: Any, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    fail_with(monkeypatch, DataError("is wrong"))
    done = run(*arguments)
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert "in failing" in done.stderr
    assert done.stderr.endswith("prunedeploy: error: is wrong\n")


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_debug_by_environment(run: Any, monkeypatch: pytest.MonkeyPatch, value: str, shown: bool) -> None:
    fail_with(monkeypatch, DataError("is wrong"))
    monkeypatch.setenv("PRUNEDEPLOY_DEBUG", value)
    assert ("Traceback" in run("doctor").stderr) is shown


def test_debug_of_one_call_does_not_outlive_it(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, DataError("is wrong"))
    run("doctor", "--debug")
    assert "Traceback" not in run("doctor").stderr


def test_a_bug_is_one_line_that_says_how_to_see_more(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, RuntimeError("two\nlines"))
    done = run("doctor")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "RuntimeError: two lines" in done.stderr
    assert "bug" in done.stderr
    assert "--debug" in done.stderr
    assert "Traceback" in run("doctor", "--debug").stderr


def test_an_error_in_the_middle_of_ours_keeps_its_meaning(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, OSError(errno.EIO, "Input/output error", "weights.bin"))
    done = run("doctor")
    assert done.exit_code == 1
    assert "weights.bin" in done.stderr


def test_full_disk_and_missing_rights_are_for_the_user() -> None:
    line, code = explain(OSError(errno.ENOSPC, "No space left on device", "/data/x"))
    assert code == 2
    assert "/data/x: no space is left" in line
    wrapped = RuntimeError("could not serialise")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert explain(wrapped)[1] == 2
    line, code = explain(PermissionError(errno.EACCES, "Permission denied", "/data/x"))
    assert (code, "/data/x: Permission denied" in line) == (2, True)
    assert explain(MemoryError())[1] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_behind_stdout_is_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "prunedeploy.cli", "--version"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=Path(__file__).parents[2],
        )  # fmt: skip
    assert done.returncode == 2
    assert "no space is left" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("library", "extra"), EXTRA_OF.items())
def test_a_missing_library_names_the_extra_that_has_it(library: str, extra: str) -> None:
    line, code = explain(ModuleNotFoundError(f"No module named {library!r}", name=library))
    assert code == 2
    assert f"pip install 'prunedeploy[{extra}]'" in line


def test_every_extra_that_is_named_exists(repository: Path) -> None:
    project = (repository / "pyproject.toml").read_text()
    for extra in set(EXTRA_OF.values()):
        assert f"\n{extra} = [" in project


def test_a_library_that_does_not_load_is_not_called_missing() -> None:
    line, code = explain(ImportError("libcudart.so.13: cannot open shared object file", name="torch"))
    assert code == 2
    assert "does not load (libcudart.so.13" in line


def test_a_module_of_ours_that_is_missing_is_a_bug() -> None:
    assert explain(ModuleNotFoundError("No module named 'prunedeploy.nowhere'", name="prunedeploy.nowhere"))[1] == 1


@pytest.mark.parametrize(
    ("arguments", "library", "extra"),
    [
        (("build",), "torch", "train"),
        (("evaluate", "bundle"), "torch", "train"),
        (("data", "demo", "demo-data"), "scipy", "train"),
    ],
)
def test_commands_without_their_extra_say_which(
    run_process: Any, bundle: Path, arguments: tuple[str, ...], library: str, extra: str
) -> None:
    done = run_process(*arguments, blocked=(library,))
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"prunedeploy: error: this needs {library}")
    assert f"'prunedeploy[{extra}]'" in last
    assert "Traceback" not in done.stderr


def test_interrupt_is_one_line_and_130(tmp_path: Path) -> None:
    program = (
        "import prunedeploy_engines.doctor.doctor as d, time\n"
        "def wait():\n    print('waiting', flush=True); time.sleep(60)\n"
        "d.diagnose = wait\nfrom prunedeploy.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline() == "waiting\n"  # what a command prints while it works goes to stderr
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == "interrupted\n"


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "prunedeploy.cli", "build", "--help"],
        stdout=write, stderr=subprocess.PIPE, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 141


def test_warnings_are_one_line(run_process: Any) -> None:
    before = (
        "import warnings, prunedeploy_engines.doctor.doctor as d\n"
        "d.diagnose = lambda: warnings.warn('zero-gradient: nothing moves') or [d.Finding('x', 'ok', 'y')]"
    )
    done = run_process("doctor", before=before)
    assert done.stderr == "prunedeploy: warning: zero-gradient: nothing moves\n"


def test_json_stays_pure_whatever_libraries_print(run_process: Any) -> None:
    before = (
        "import os, subprocess, prunedeploy_engines.doctor.doctor as d\n"
        "def noisy():\n"
        "    print('from python'); os.write(1, b'from C\\n'); subprocess.run(['echo', 'from a child'])\n"
        "    return [d.Finding('x', 'ok', 'y')]\n"
        "d.diagnose = noisy"
    )
    done = run_process("doctor", "--json", before=before)
    assert json.loads(done.stdout) == [{"name": "x", "status": "ok", "detail": "y", "advice": ""}]
    assert {"from python", "from C", "from a child"} <= set(done.stderr.splitlines())

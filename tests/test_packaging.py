"""The wheel holds what `prunedeploy build` needs and nothing else, and the README's commands exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import click
import pytest

from prunedeploy.resources import asset_path, config_path, darknet_cfg_path
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.version import __version__

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = {
    "prunedeploy": "prunedeploy",
    "prunedeploy_export": "export/prunedeploy_export",
    "prunedeploy_engines": "engines/prunedeploy_engines",
}
DIST_INFO = f"prunedeploy-{__version__}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout, because building writes beside the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"):
        shutil.copy2(REPOSITORY / name, source / name)
    for name in ("configs", "prunedeploy", "export", "engines"):
        skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(REPOSITORY / name, source / name, ignore=skipped)
    target = tmp_path_factory.mktemp("wheel")
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", str(target), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel_names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_wheel_has_three_packages_and_nothing_else_at_its_top(wheel_names: set[str]) -> None:
    assert {name.split("/")[0] for name in wheel_names} == {*PACKAGES, DIST_INFO}


def test_wheel_has_every_module_config_and_asset(wheel_names: set[str]) -> None:
    expected = set()
    for package, folder in PACKAGES.items():
        for path in (REPOSITORY / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                expected.add(f"{package}/{path.relative_to(REPOSITORY / folder).as_posix()}")
    for path in (REPOSITORY / "configs").rglob("*"):
        if path.suffix in {".yaml", ".cfg"}:
            expected.add(f"prunedeploy/configs/{path.relative_to(REPOSITORY / 'configs').as_posix()}")
    assert "prunedeploy/configs/darknet/yolov3-slim.cfg" in expected
    assert {name for name in wheel_names if not name.startswith(DIST_INFO)} == expected


def test_wheel_carries_our_licence_and_the_demo_photos_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        ours = archive.read(f"{DIST_INFO}/licenses/LICENSE").decode()
        notice = archive.read(f"{DIST_INFO}/licenses/NOTICE").decode()
    assert "Copyright (c) 2026 prunedeploy authors" in ours
    assert "Fashion-MNIST" in notice
    assert "2017 Zalando SE" in notice
    granted = ours[ours.index("Permission is hereby granted") :]
    assert notice.endswith(granted)


def test_wheel_states_the_version_and_keeps_the_device_light(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = HeaderParser().parsestr(archive.read(f"{DIST_INFO}/METADATA").decode())
        entry_points = archive.read(f"{DIST_INFO}/entry_points.txt").decode()
    assert metadata["Version"] == __version__
    base = {
        re.split(r"[^\w-]", requirement)[0].lower()
        for requirement in metadata.get_all("Requires-Dist", [])
        if "extra ==" not in requirement
    }
    assert base == {"numpy", "pillow", "click", "pydantic", "pyyaml", "rich"}
    assert {"cpu", "gpu", "openvino", "rtx", "train", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    assert "prunedeploy = prunedeploy.cli:main" in entry_points


def test_unpacked_wheel_finds_its_own_files(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    program = "from prunedeploy.resources import darknet_cfg_path as find; print(find('yolov3-slim'))"
    printed = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = Path(printed.stdout.strip())
    assert found == site / "prunedeploy" / "configs" / "darknet" / "yolov3-slim.cfg"
    assert found.read_bytes() == (REPOSITORY / "configs" / "darknet" / "yolov3-slim.cfg").read_bytes()


@pytest.fixture(scope="module")
def wheel_index(wheel: Path) -> Path:
    """Skips where no package index answers: what pip would choose is only known there."""
    name = "click"  # small, without requirements, and one of ours
    asked = resolve_for_aarch64([name], wheel.parent, "3.11")
    if asked.returncode != 0:
        pytest.skip(f"pip finds no {name} here, so no package index is reachable")
    return wheel


def resolve_for_aarch64(requirements: list[str], folder: Path, python: str) -> subprocess.CompletedProcess[str]:
    """Let pip choose wheels for 64-bit Arm with glibc 2.35, which is Ubuntu 22.04; nothing is installed.

    Args:
        requirements: As for ``pip install``.
        folder: Where pip would install to.
        python: E.g. ``"3.11"``.
    """
    tags = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(35, 17, -1))]
    flags = ["--dry-run", "--ignore-installed", "--only-binary=:all:", "--quiet", "--report", "-", "--retries", "1"]
    for tag in tags:
        flags += ["--platform", tag]
    flags += ["--implementation", "cp", "--python-version", python, "--abi", f"cp{python.replace('.', '')}"]
    command = [sys.executable, "-m", "pip", "install", *flags, "--target", str(folder / "nothing"), *requirements]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


@pytest.mark.parametrize(
    ("extras", "python", "brings"),
    [
        ("[cpu]", "3.11", {"onnxruntime"}),  # Raspberry Pi OS 12
        pytest.param(
            "",
            "3.10",
            {"numpy", "pillow", "click", "pydantic", "pyyaml", "rich"},
            marks=pytest.mark.slow,  # JetPack 6
        ),
        pytest.param("[cpu,openvino]", "3.13", {"onnxruntime", "openvino"}, marks=pytest.mark.slow),
    ],
)
def test_wheel_resolves_for_64_bit_arm_without_the_training_side(
    wheel_index: Path, extras: str, python: str, brings: set[str]
) -> None:
    done = resolve_for_aarch64([f"prunedeploy{extras} @ {wheel_index.as_uri()}"], wheel_index.parent, python)
    assert done.returncode == 0, done.stderr
    chosen = {entry["metadata"]["name"].lower() for entry in json.loads(done.stdout)["install"]}
    assert brings | {"prunedeploy"} <= chosen
    assert not {"torch", "onnx", "captum", "pycocotools", "scipy", "matplotlib"} & chosen
    if "openvino" not in extras:
        assert "openvino" not in chosen
    assert not (wheel_index.parent / "nothing").exists()


def test_checkout_finds_its_configs_with_and_without_suffix() -> None:
    expected = REPOSITORY / "configs" / "darknet" / "yolov3-tiny.cfg"
    assert darknet_cfg_path("yolov3-tiny") == expected
    assert darknet_cfg_path("yolov3-tiny.cfg") == expected


def test_unknown_resource_is_one_line_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no network cfg called 'yolov9' .*yolov3-slim, yolov3-spp, yolov3-tiny"):
        darknet_cfg_path("yolov9")
    with pytest.raises(ConfigError, match=r"no configuration called '\.\./darknet/yolov3'"):
        config_path("../darknet/yolov3")
    with pytest.raises(ConfigError, match="should have come with prunedeploy"):
        asset_path("no-such-file.npz")


def documented_commands(page: Path) -> list[list[str]]:
    """Every `prunedeploy ...` and `make ...` in a page's code blocks and inline code, as words."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    outside = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced for line in block.replace("\\\n", " ").splitlines()]
    commands = []
    for line in [*lines, *re.findall(r"`([^`\n]+)`", outside)]:
        found = re.match(r"(?:\$ )?(?:\S*/)?(prunedeploy|make) +(.+)", line.strip())
        if found:
            commands.append([found[1], *shlex.split(found[2], comments=True)])
    return commands


def known_flags(command: click.Command) -> set[str]:
    return {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_documented_commands_exist_with_their_options(page: Path) -> None:
    from prunedeploy.cli import cli

    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    for program, *words in documented_commands(page):
        if program == "make":
            assert {word for word in words if "=" not in word} <= targets, f"make {' '.join(words)}"
            continue
        command: click.Command = cli
        for word in words:
            if word.startswith("-"):
                flag = word.split("=")[0]
                assert flag in known_flags(command), f"prunedeploy {' '.join(words)}: {flag} is unknown"
            elif isinstance(command, click.Group):
                inner = command.get_command(click.Context(command), word)
                assert inner is not None, f"prunedeploy {' '.join(words)}: there is no command {word!r}"
                command = inner


def test_pages_show_the_commands_that_people_start_with() -> None:
    readme = documented_commands(REPOSITORY / "README.md")
    assert ["make", "demo"] in readme
    assert ["make", "test"] in readme
    for guide in ("jetson", "raspberry-pi", "runtimes-and-precision"):
        commands = {words[1] for words in documented_commands(REPOSITORY / "docs" / "guides" / f"{guide}.md")}
        assert {"build", "detect", "bench"} <= commands, guide


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    for link in links:
        if not re.match(r"[a-z]+:", link):
            assert (page.parent / link).exists(), f"{page.name}: {link}"

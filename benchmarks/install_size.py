"""How large the install on a device is, and how long `detect` takes there from a cold start.

    python benchmarks/install_size.py [--bundle BUNDLE ...] [--extras cpu] [--runtime onnxruntime] [--precision fp32]

Builds the wheel, installs it with its extras into a fresh virtual environment in a temporary folder, weighs what was
added to it, and times `prunedeploy detect` on one image in fresh processes of that environment: on the bundles that are
given, else on three that are made here, the demo's network and YOLOv3 dense and pruned by 75 %, with random weights.
Needs pip and a package index. Exits with 1 if something of the training side is installed, or the install is above the
limit.

Times are printed cold and warm: cold is the first run after the files were dropped from the page cache, which only root
can do; where that is not possible it says so.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
TRAINING_SIDE = {"torch", "onnx", "captum", "pycocotools", "scipy", "safetensors", "matplotlib", "accelerate"}
TOOLS = {"pip", "setuptools", "wheel"}  # of the environment itself, there before anything is installed
LIMIT_MB = 250
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def install(folder: Path, extras: str) -> Path:
    """Build the wheel and install it; the environment's folder."""
    wheels, environment, sources = folder / "wheels", folder / "environment", folder / "sources"
    for name in ("prunedeploy", "export", "engines", "configs"):  # building writes beside the sources
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"):
        shutil.copy2(ROOT / name, sources / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(sources)], check=True)
    (wheel,) = wheels.glob("prunedeploy-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = [str(environment / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*python, "-c", str(ROOT / "constraints.txt"), f"{wheel}[{extras}]"], check=True)
    return environment


def weigh(site: Path) -> dict[str, int]:
    """Bytes on the disk by distribution, everything in site-packages but pip; the compiled Python files are in."""
    sizes: dict[str, int] = {}
    for distribution in distributions(path=[str(site)]):
        name = distribution.metadata["Name"].lower()
        if name not in TOOLS:
            files = {Path(str(distribution.locate_file(file))) for file in distribution.files or []}
            sizes[name] = sum(file.stat().st_size for file in files if file.is_file())
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def make_bundles(folder: Path) -> list[Path]:
    """Bundles of the demo's network and of YOLOv3 at 416, dense and pruned by 75 %; random weights."""
    from _common import random_yolov3
    from _yolov3_cuts import Cuts

    from prunedeploy.models import FoldedDarknet
    from prunedeploy_engines.bundle import BundleFile, write_bundle
    from prunedeploy_export import onnx_from_torch

    folder.mkdir()
    slim, cuts = random_yolov3("yolov3-slim"), Cuts(folder)
    onnx_from_torch(FoldedDarknet(slim), folder / "slim.onnx")
    made = {
        "slim": (folder / "slim.onnx", slim.cfg),
        "yolov3": (cuts.fp32().path, cuts.dense.cfg),
        "yolov3-0.75": (cuts.fp32(0.75).path, cuts.dense.cfg),
    }
    bundles = []
    for name, (path, cfg) in made.items():
        height, width = cfg.input_size
        write_bundle(
            folder / name,
            {"model.onnx": BundleFile(path, "onnx", "fp32")},
            class_names=map(str, range(cfg.classes)),
            input={"height": height, "width": width},
            thresholds={"score": 0.9},  # a network with random weights finds something everywhere
        )
        bundles.append(folder / name)
    return bundles


def timed(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def say_machine(program: Path) -> None:
    """Print what the installed `doctor` says of CPU and clocks."""
    told = subprocess.run([str(program), "doctor", "--json"], capture_output=True, text=True, check=True).stdout
    details = {row["name"]: row["detail"] for row in json.loads(told)}
    print(f"{details['cpu']}; {details['device state']}")


def drop_caches() -> str | None:
    """Drop clean files from the page cache; why it cannot be done, or None."""
    try:
        subprocess.run(["sync"], check=True)
        DROP_CACHES.write_text("1")
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return None


def time_detect(program: Path, bundle: Path, image: Path, options: list[str], runs: int) -> None:
    """Print wall and CPU time of `detect`."""
    command = [str(program), "detect", str(bundle), str(image), *options]
    size = folder_bytes(bundle) / 1e6
    reason = drop_caches()
    first, _ = timed(command)
    print(f"{bundle.name} ({size:.0f} MB), {' '.join(options)}")
    print(f"  first, {'page cache dropped' if reason is None else f'page cache as it was ({reason})'}: {first:.2f} s")
    walls, cpus = zip(*(timed(command) for _ in range(runs)), strict=True)
    spread = f"{min(walls):.2f} to {max(walls):.2f}, n = {runs}"
    print(f"  fresh process, files in the page cache: median {statistics.median(walls):.2f} s, {spread}")
    print(f"  of which CPU time: median {statistics.median(cpus):.2f} s, least {min(cpus):.2f} s")


def main() -> None:
    """Print sizes and times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, nargs="*", help="to time `detect` on; default: three made here")
    parser.add_argument("--extras", default="cpu")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = install(folder, arguments.extras)
        (site,) = environment.glob("lib/python*/site-packages")
        sizes = weigh(site)
        total = folder_bytes(site) - sum(folder_bytes(path) for tool in TOOLS for path in site.glob(f"{tool}*"))
        print(f"prunedeploy[{arguments.extras}]: {total / 1e6:.1f} MB in site-packages, without pip and its kind")
        for package, size in sizes.items():
            print(f"  {package:<20} {size / 1e6:7.1f} MB")
        unwanted = sorted(TRAINING_SIDE & set(sizes))
        print(f"of the training side: {', '.join(unwanted) or 'nothing'}")
        image = folder / "photo.jpg"
        pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image)
        program = environment / "bin/prunedeploy"
        say_machine(program)
        options = ["--runtime", arguments.runtime, "--precision", arguments.precision]
        for bundle in arguments.bundle or make_bundles(folder / "bundles"):
            time_detect(program, bundle, image, options, arguments.runs)
    too_large = arguments.extras == "cpu" and total > LIMIT_MB * 1e6
    sys.exit(1 if unwanted or too_large else 0)


if __name__ == "__main__":
    main()

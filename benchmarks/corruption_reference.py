"""Our corruptions against the package `imagecorruptions`, which defines COCO-C: by how much pixels differ.

    pip install imagecorruptions
    python benchmarks/corruption_reference.py PHOTO...

Both are given the same random draws, so that nothing but the computation differs. The package is from 2020: what has
changed in NumPy and scikit-image since then is put back for the comparison, here and only here. A grey level is a
255th. Times are CPU time. Frost, whose texture is ours, is compared by its statistics only.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from prunedeploy.config.corruptions import CORRUPTIONS, SEVERITIES
from prunedeploy.data.corruptions import corrupt
from prunedeploy.data.draws import generator_for

np.float_ = np.float64  # NumPy 2 has no other name for it

from imagecorruptions import corrupt as reference_corrupt  # noqa: E402
from imagecorruptions import corruptions as reference  # noqa: E402

SIZES = ((160, 160), (416, 416), (320, 256))


def without_multichannel(gaussian: Callable) -> Callable:
    """scikit-image's blur with the argument that it had in 2020."""

    def blurred(image: np.ndarray, *args: object, multichannel: bool = False, **more: object) -> np.ndarray:
        return gaussian(image, *args, channel_axis=-1 if multichannel else None, **more)

    return blurred


@contextmanager
def drawing_from(rng: np.random.Generator) -> Iterator[None]:
    """Let the reference draw from this generator."""
    random_noise = reference.sk.util.random_noise
    with (
        mock.patch.multiple(
            np.random, normal=rng.normal, uniform=rng.uniform, poisson=rng.poisson, randint=rng.integers
        ),
        mock.patch.object(
            reference.sk.util, "random_noise", lambda *args, **more: random_noise(*args, rng=rng, **more)
        ),
    ):
        yield


def compare(image: np.ndarray, name: str, severity: int, image_id: int) -> tuple[np.ndarray, float, float]:
    """Differences in grey levels, and the seconds of CPU time of ours and of the reference."""
    started = time.process_time()
    ours = corrupt(image, name, severity, image_id=image_id)
    between = time.process_time()
    with drawing_from(generator_for(0, zlib.crc32(name.encode()), severity, image_id)):
        theirs = reference_corrupt(image, severity, name)
    return ours.astype(int) - theirs, between - started, time.process_time() - between


def frost_statistics(image: np.ndarray) -> None:
    """Mean and standard deviation of the frosted image, and its PSNR, over 20 draws."""
    print("\nfrost: mean, standard deviation and PSNR (dB) of 20 draws, ours and the reference's photographs")
    for severity in SEVERITIES:
        rows = []
        for number in range(20):
            ours = corrupt(image, "frost", severity, image_id=number)
            with drawing_from(generator_for(1, severity, number)):
                theirs = reference_corrupt(image, severity, "frost")
            rows.append([f(one) for one in (ours, theirs) for f in (np.mean, np.std, lambda x: psnr(x, image))])
        of_ours, of_theirs = np.mean(rows, axis=0).reshape(2, 3)
        print(
            f"  severity {severity}: " + "   ".join(" ".join(f"{x:6.1f}" for x in one) for one in (of_ours, of_theirs))
        )


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """In dB."""
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


def main() -> None:
    """Print a row for each corruption and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    arguments = parser.parse_args()
    reference.gaussian = without_multichannel(reference.gaussian)
    pictures = [Image.open(path).convert("RGB") for path in arguments.photos]
    head = ("corruption", "size", "equal", "by <= 1", "largest", "mean", "ours", "reference")
    print("{:<18} {:>8} {:>9} {:>9} {:>8} {:>8} {:>9} {:>10}".format(*head))
    for name in CORRUPTIONS:
        for height, width in SIZES if name != "frost" else ():
            differences, seconds = [], []
            for number, picture in enumerate(pictures):
                image = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
                for severity in SEVERITIES:
                    difference, *took = compare(image, name, severity, number)
                    differences.append(difference)
                    seconds.append(took)
            off = np.abs(np.stack(differences))
            ours, theirs = 1000 * np.mean(seconds, axis=0)
            print(
                f"{name:<18} {height:>4}x{width} {(off == 0).mean():>9.3%} {(off <= 1).mean():>9.3%} {off.max():>8} "
                f"{off.mean():>8.4f} {ours:>6.1f} ms {theirs:>7.1f} ms",
                flush=True,
            )
    frost_statistics(np.asarray(pictures[0].resize((416, 416), Image.Resampling.BILINEAR)))


if __name__ == "__main__":
    main()

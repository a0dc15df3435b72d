"""Draw the fifteen corruptions on one scene of the demo: docs/images/corruptions.jpg.

    python benchmarks/corruption_picture.py docs/images/corruptions.jpg [--severity 3] [--photo FILE]

A photo is letterboxed. The picture in the repository is of a scene, so that it is free to be passed on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from _common import scenes
from PIL import Image, ImageDraw, ImageFont

from prunedeploy.config.corruptions import CORRUPTIONS, SEVERITIES
from prunedeploy.data.corruptions import corrupt
from prunedeploy_engines.detection.letterbox import letterbox, to_uint8_input

COLUMNS, SIZE, HEAD, GAP = 4, 240, 26, 8


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--severity", type=int, default=3, choices=SEVERITIES)
    parser.add_argument("--photo", type=Path, help="instead of a scene of the demo")
    parser.add_argument("--scene", type=int, default=3, help="number of the scene")
    arguments = parser.parse_args()
    if arguments.photo is None:
        clean = to_uint8_input(scenes(arguments.scene + 1, SIZE)[0][-1:].numpy())[0]
    else:
        clean = letterbox(np.asarray(Image.open(arguments.photo).convert("RGB")), (SIZE, SIZE))[0]
    tiles = {"clean": clean} | {name: corrupt(clean, name, arguments.severity) for name in CORRUPTIONS}
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIZE + GAP) - GAP, rows * (SIZE + HEAD)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for i, (name, tile) in enumerate(tiles.items()):
        x, y = i % COLUMNS * (SIZE + GAP), i // COLUMNS * (SIZE + HEAD)
        draw.text((x + SIZE / 2, y + HEAD / 2), name.replace("_", " "), "black", font, anchor="mm")
        sheet.paste(Image.fromarray(tile), (x, y + HEAD))
    sheet.save(arguments.picture, quality=82, optimize=True)


if __name__ == "__main__":
    main()

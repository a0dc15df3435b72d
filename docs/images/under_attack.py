"""Draw the README's picture: one test image, clean and attacked, as the three networks of a build see it.

    python docs/images/under_attack.py runs/blood-cells-structured-bn-scale-0.75-s0 docs/images/under-attack.jpg

The pictures are those of the build's gallery, in its stage store: each network is attacked with its own gradients by
the attack that the build reports, and drawn at its own score threshold.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

GAP, HEAD, SIDE = 8, 30, 90
COLUMNS = ("original", "robust", "pruned")
LINES = {"clean": "clean", "pgd": "attacked"}


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--store", type=Path, default=Path("runs/.store"))
    parser.add_argument("--image", type=int, default=0, help="which of the gallery's images")
    parser.add_argument("--width", type=int, help="of each of the six pictures, in pixels; default: the gallery's")
    arguments = parser.parse_args()
    results = json.loads((arguments.build / "results.json").read_text())
    gallery = arguments.store / "results" / f"gallery-{results['stages']['gallery']['digest']}"
    entry = json.loads((gallery / "gallery.json").read_text())[arguments.image]
    pictures = {
        (line, column): Image.open(gallery / entry[f"{column}_{line}"]).convert("RGB")
        for line in LINES
        for column in COLUMNS
    }
    width, height = next(iter(pictures.values())).size
    if arguments.width:
        width, height = arguments.width, round(height * arguments.width / width)
    sheet = Image.new("RGB", (SIDE + len(COLUMNS) * (width + GAP), HEAD + len(LINES) * (height + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=18)
    names = {**{name: name for name in COLUMNS}, "pruned": f"pruned by {results['ratio_achieved']:.0%}"}
    for x, column in enumerate(COLUMNS):
        left = SIDE + x * (width + GAP)
        draw.text((left + width / 2, HEAD / 2), names[column], "black", font, anchor="mm")
        for y, line in enumerate(LINES):
            top = HEAD + y * (height + GAP)
            draw.text((SIDE / 2, top + height / 2), LINES[line], "black", font, anchor="mm")
            sheet.paste(pictures[line, column].resize((width, height), Image.Resampling.LANCZOS), (left, top))
    sheet.save(arguments.picture, optimize=True, quality=88)


if __name__ == "__main__":
    main()

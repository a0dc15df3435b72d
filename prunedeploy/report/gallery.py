"""The report's test images with boxes."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

from prunedeploy.report.figures import ROWS
from prunedeploy.report.format import plain, rows_of
from prunedeploy_engines.markup.html import Html, join, tag
from prunedeploy_engines.markup.page import note

LARGE_PICTURE = 64_000
"""Bytes; larger PNGs are embedded as JPEG, or a report of noisy photos would weigh tens of megabytes."""


def gallery_figure(gallery: Path | None) -> Html:
    """Test images with boxes: clean and attacked, a column for each network."""
    if gallery is None or not (path := gallery / "gallery.json").is_file():
        return note("No pictures were made.")
    try:
        entries = rows_of(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:
        return note("The list of pictures cannot be read.")
    figures = []
    for entry in entries:
        cells = [tag("span", cls="corner"), *(tag("b", row) for row in ROWS)]
        for kind, label in (("clean", "clean"), ("pgd", "PGD"), ("worst", "strongest")):
            if not any(entry.get(f"{row}_{kind}") for row in ROWS) and kind == "worst":
                continue
            cells.append(tag("span", label, cls="row"))
            for row in ROWS:
                where = f"{entry.get('file_name') or 'image'}, {row}, {label}"
                cells.append(_picture(gallery, entry.get(f"{row}_{kind}"), where))
        name = tag("code", str(entry.get("file_name") or "unnamed"))
        caption = tag("figcaption", name, ", image ", plain(entry.get("image_id")))
        figures.append(tag("figure", caption, *cells, cls="pictures"))
    return join(*figures) if figures else note("No pictures were made.")


def _picture(gallery: Path, name: object, describe: str) -> Html:
    path = gallery / Path(str(name)).name
    absent = tag("span", "no picture", cls="absent")
    if not name or not path.is_file():
        return absent
    from PIL import Image, UnidentifiedImageError

    data, kind = path.read_bytes(), "png"
    try:
        with Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
            if len(data) > LARGE_PICTURE:
                packed = io.BytesIO()
                # 4:4:4, or the letters of labels would bleed.
                picture.convert("RGB").save(packed, "JPEG", quality=90, subsampling=0)
                data, kind = packed.getvalue(), "jpeg"
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return absent
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return tag("img", src=source, alt=describe, width=width, height=height)

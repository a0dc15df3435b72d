"""Pictures for the paper's Figure 5, made when a sweep has trained and timed: see `prunedeploy.study.report.samples`.

Pictures change no row and no row's hash. They are made for one run, from networks that the store still has.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from prunedeploy.pipeline.context import BuildContext, StageResult
from prunedeploy.pipeline.progress import Progress
from prunedeploy.pipeline.stages.samples import DOCUMENT as STAGE_DOCUMENT
from prunedeploy.pipeline.stages.samples import THRESHOLDS, picture_name, samples_stage
from prunedeploy.pipeline.store.store import Store, read_json
from prunedeploy.study.report.samples import DOCUMENT, FOLDER, KINDS, CellSamples, Detection, SampleSet, read_samples
from prunedeploy.study.rows.rows import CellKey
from prunedeploy.study.sweep.contexts import Contexts
from prunedeploy.study.sweep.grid import Cell, Sweep
from prunedeploy.study.sweep.plan import PlannedCell, plan_sweep
from prunedeploy_engines.detection.detections import Detections
from prunedeploy_engines.detection.drawing import draw_detections
from prunedeploy_engines.errors import ConfigError, PrunedeployError, StoreError
from prunedeploy_engines.files import write_atomically

DRAWN_PIXELS = 480
"""About as large is a picture with its detections drawn, so that class names can be read."""


def make_samples(sweep: Sweep, cells: Sequence[Cell], images: int, store: Store, out: Path, progress: Progress) -> int:
    """Make the pictures that are not there yet, of the sweep's first run.

    Args:
        sweep: The configuration.
        cells: Those of its cells that are asked for.
        images: Test images per network; 0: none.
        store: With the networks. A cell whose network it does not have is left out, and that is said in one line.
        out: The sweep's output folder.
        progress: Where long work says how far it is.

    Returns:
        How many of the stages were computed now.

    Raises:
        StoreError: The disk is full, or a file cannot be written.
        PrunedeployError: The data or the network cannot be used.
    """
    folder = out / FOLDER
    there = _there(sweep, folder)
    mine = [cell for cell in cells if cell.key.run == sweep.config.seeds[0]]
    wanted = [cell for cell in mine if images and not _is_there(there.get(cell.key), images, folder)]
    if not wanted:
        return 0
    planned = plan_sweep(wanted, store, progress).cells
    possible = [(one, one.network) for one in planned if one.network is not None]
    if len(possible) < len(planned):
        left_out = f"{len(planned) - len(possible)} of {len(mine)} models"
        progress.message(f"no sample images of {left_out}: the store does not have their networks")
    contexts = Contexts(progress)
    computed = 0
    with progress.task("sample images of models", len(possible)) as advance:
        for one, network in possible:
            context = BuildContext(**contexts.fields(one.cell.config, store))
            try:
                result = samples_stage(context, network, images)
            except StoreError:
                raise
            except PrunedeployError as error:  # pictures are no reason to fail: every row is written
                progress.message(f"no sample images of {one.cell.label}: {error}")
            else:
                there[one.cell.key] = _published(one, result, context.class_names, folder)
                _write(sweep, there, folder)
                computed += result.computed
            advance(1)
    return computed


def _there(sweep: Sweep, folder: Path) -> dict[CellKey, CellSamples]:
    """What was made before for rows of the same configuration."""
    try:
        before = read_samples(folder)
    except ConfigError:
        before = None
    if before is None or before.configuration_hash != sweep.configuration_hash:
        return {}
    return {CellKey(cell.configuration, cell.ratio, cell.run): cell for cell in before.cells}


def _is_there(cell: CellSamples | None, images: int, folder: Path) -> bool:
    if cell is None or len(cell.images) < images:
        return False
    numbers = range(1, len(cell.images) + 1)
    return all((folder / cell.picture(kind, number)).is_file() for kind in KINDS for number in numbers)


def _published(planned: PlannedCell, result: StageResult, class_names: Sequence[str], folder: Path) -> CellSamples:
    """Copy a stage's pictures, and draw each with its detections beside it."""
    config = planned.cell.config
    cell = CellSamples(
        **planned.cell.key._asdict(),
        digest=result.digest,
        attack=config.attack.model_dump(),
        images=read_json(result.folder / STAGE_DOCUMENT),
        **config.evaluation.model_dump(include=set(THRESHOLDS)),
    )
    for number, image in enumerate(cell.images, 1):
        for kind in KINDS:
            content = (result.folder / picture_name(kind, number)).read_bytes()
            write_atomically(folder / cell.picture(kind, number), content)
            drawn = _drawn(content, image.detections(kind), class_names)
            write_atomically(folder / cell.picture(kind, number, ".webp"), drawn)
    return cell


def _drawn(png: bytes, found: Sequence[Detection], class_names: Sequence[str]) -> bytes:
    """A picture enlarged, with the detections and their classes, as WebP."""
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.array(image.convert("RGB"))
    detections = Detections(
        np.array([one.box_xyxy for one in found], np.float32).reshape(-1, 4),
        np.array([one.score for one in found], np.float32),
        np.array([class_names.index(one.class_name) for one in found], np.int64),
        tuple(class_names),
    )
    scale = max(1, round(DRAWN_PIXELS / max(pixels.shape[:2])))
    buffer = io.BytesIO()
    Image.fromarray(draw_detections(pixels, detections, scale=scale)).save(buffer, "WEBP", quality=90)
    return buffer.getvalue()


def _write(sweep: Sweep, there: Mapping[CellKey, CellSamples], folder: Path) -> None:
    """After every model, so that what is killed goes on where it was; in the order of the grid."""
    order = {cell.key: place for place, cell in enumerate(sweep.cells)}
    keys = sorted(there, key=lambda key: order.get(key, len(order)))
    whole = SampleSet(configuration_hash=sweep.configuration_hash, cells=tuple(there[key] for key in keys))
    text = json.dumps(whole.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_atomically(folder / DOCUMENT, f"{text}\n".encode())

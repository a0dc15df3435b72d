"""One build: from a trained detector to a pruned, measured, deployable one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunedeploy.config import BuildConfig, as_dict, config_hash, default_out
from prunedeploy.pipeline.context import open_context
from prunedeploy.pipeline.export_stages import (
    artefact_stages,
    check_calibration_images,
    engine_stages,
    export_stage,
)
from prunedeploy.pipeline.latency_stage import latency_stage
from prunedeploy.pipeline.measure_stages import (
    ROWS,
    check_images_stage,
    compare_stage,
    evaluate_stage,
    gallery_stage,
)
from prunedeploy.pipeline.networks import all_networks, check_reachable
from prunedeploy.pipeline.output_folder import LOCK, MARKER, OutputFolder, open_output_folder
from prunedeploy.pipeline.pattern_stage import pattern_stage
from prunedeploy.pipeline.progress import Progress
from prunedeploy.pipeline.results import BuildResults, collect_results, is_complete, write_output
from prunedeploy.pipeline.store import Store, read_json
from prunedeploy.training.distributed import is_main_process


@dataclass(frozen=True)
class BuildOutcome:
    """What a build did.

    Attributes:
        out: The output folder.
        results: The content of its ``results.json``.
        computed: Stages that were computed now; the others were in the store.
    """

    out: Path
    results: dict[str, Any]
    computed: tuple[str, ...]


def build(
    config: BuildConfig,
    *,
    store: Path,
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress,
    command: str | None = None,
) -> BuildOutcome:
    """Run every stage that the store does not hold yet and write the output folder.

    Args:
        config: What to build.
        store: Folder of the stage store; made if it is not there.
        out: Output folder; default: `default_out`.
        overwrite: Replace another build in ``out``.
        progress: Where long work says how far it is.
        command: What was typed, for the record.

    Raises:
        PrunedeployError: Anything that the user can mend; finished stages stay in the store.
    """
    out = default_out(config) if out is None else out
    provenance = {"command": command, "configuration": as_dict(config)}
    with (
        _claimed(out, config, provenance, overwrite) as folder,
        Store(store, progress.message) as stages,
    ):
        check_reachable(config)
        context = open_context(config, stages, progress)
        built = BuildResults()
        check_calibration_images(context)
        check_images_stage(context)
        networks = all_networks(context)
        built.prune, pruned = networks.prune, networks.pruned
        built.models = dict(zip(ROWS, (networks.original, networks.robust, pruned), strict=True))
        built.exports = {row: export_stage(context, model) for row, model in built.models.items()}
        built.artefacts = artefact_stages(context, pruned, built.exports["pruned"])
        built.pattern = pattern_stage(context, built.prune, built.artefacts)
        built.engines, built.missing_engines = engine_stages(context, built.artefacts)
        built.evaluations = {
            row: evaluate_stage(
                context, row, model, built.exports[row], built.artefacts if row == "pruned" else ()
            )
            for row, model in built.models.items()
        }
        built.comparison = compare_stage(context, built.evaluations)
        built.gallery = gallery_stage(context, built.models)
        built.latency = latency_stage(context, built.models, built.exports, built.artefacts)
        computed = tuple(result.name for result in context.results if result.computed)
        if not is_main_process():
            return BuildOutcome(folder.path, {}, computed)
        if is_complete(folder, context):
            return BuildOutcome(folder.path, read_json(folder.path / "results.json"), computed)
        results = collect_results(context, built, command)
        write_output(context, built, folder, results)
        return BuildOutcome(folder.path, results, computed)


@contextmanager
def _claimed(
    out: Path, config: BuildConfig, provenance: dict[str, Any], overwrite: bool
) -> Iterator[OutputFolder]:
    """The output folder for the time of the build, given back if the build ends before it wrote anything.

    So a command with a mistake in it can be corrected and given again. Of several processes under a launcher only
    the first one claims the folder.
    """
    if os.environ.get("RANK", "0") != "0":
        yield OutputFolder(out, resumed=False)
        return
    with open_output_folder(out, config_hash(config), provenance=provenance, overwrite=overwrite) as folder:
        try:
            yield folder
        except BaseException:
            if {path.name for path in folder.path.iterdir()} <= {MARKER, LOCK}:
                (folder.path / MARKER).unlink(missing_ok=True)
            raise

"""One build: from a trained detector to a pruned, measured, deployable one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunedeploy.config import BuildConfig, as_dict, config_hash, default_out
from prunedeploy.config.ratio_target import RatioTarget
from prunedeploy.pipeline.context import BuildContext, StageResult, open_context
from prunedeploy.pipeline.imported import with_imported_network
from prunedeploy.pipeline.left_out import check_something_is_left
from prunedeploy.pipeline.networks import Networks, pruned_networks
from prunedeploy.pipeline.output_folder import LOCK, MARKER, OutputFolder, open_output_folder
from prunedeploy.pipeline.progress import Progress
from prunedeploy.pipeline.ratio.search import RatioSearch
from prunedeploy.pipeline.ratio.trials import check_target, final_value, find_ratio, with_what_is_searched
from prunedeploy.pipeline.results import BuildResults, collect_results, is_complete, write_output
from prunedeploy.pipeline.stages.adaptive import adaptive_stage, check_adaptive
from prunedeploy.pipeline.stages.corruptions import corruptions_stage
from prunedeploy.pipeline.stages.deployment import deployment
from prunedeploy.pipeline.stages.evaluate import (
    check_images_stage,
    compare_stage,
    evaluate_stage,
    gallery_stage,
    without_what_failed,
)
from prunedeploy.pipeline.stages.export import (
    ENGINE,
    artefact_stages,
    check_calibration_images,
    cpu_runtimes,
    engine_stages,
    export_stage,
    runner_key,
)
from prunedeploy.pipeline.stages.flood import check_flood, flood_stage
from prunedeploy.pipeline.stages.granularity import check_reachable
from prunedeploy.pipeline.stages.latency import latency_stage
from prunedeploy.pipeline.stages.operating_point import FILE as POINTS
from prunedeploy.pipeline.stages.operating_point import NETWORK, operating_point_stage
from prunedeploy.pipeline.stages.pattern import pattern_stage, with_the_pattern
from prunedeploy.pipeline.stages.robustness import (
    check_attacked_images,
    check_robustness,
    robustness_stage,
    strongest_attack,
)
from prunedeploy.pipeline.stages.score import check_scores
from prunedeploy.pipeline.stages.square import check_square, square_stage
from prunedeploy.pipeline.stages.train import original_stage, pretrain_stage
from prunedeploy.pipeline.store.key import canonical_json
from prunedeploy.pipeline.store.store import Store, read_json
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
    target: RatioTarget | None = None,
) -> BuildOutcome:
    """Run every stage that the store does not hold yet and write the output folder.

    Args:
        config: What to build.
        store: Folder of the stage store; made if it is not there.
        out: Output folder; default: `default_out`.
        overwrite: Replace another build in ``out``.
        progress: Where long work says how far it is.
        command: What was typed, for the record.
        target: Search for the ratio that meets it, instead of taking the configuration's. A folder that is given is
            claimed before the search and stays this target's; the default one is that of the ratio that is found.

    Raises:
        PrunedeployError: Anything that the user can fix; finished stages stay in the store.
    """
    config = with_imported_network(config, store)
    check_robustness(config)
    check_square(config)
    check_adaptive(config)
    check_flood(config)
    if target is not None:
        check_target(config, target)
        config = with_what_is_searched(config, target)
    config = config.with_divided_steps()
    with ExitStack() as stack:
        folder = None
        if target is None or out is not None:
            folder = stack.enter_context(_claimed(out, config, target, command, overwrite))
        stages = stack.enter_context(Store(store, progress.message))
        check_reachable(config if target is None else config.model_copy(update={"ratio": 0.0}))
        context = open_context(config, stages, progress)
        check_scores(config, context.network.cfg)
        check_calibration_images(context)
        check_attacked_images(context)
        check_images_stage(context)
        search: RatioSearch | None = None
        tried: list[StageResult] = []
        if target is not None:
            search, tried = find_ratio(context, target)
            context = replace(context, config=config.model_copy(update={"ratio": search.chosen}))
        if folder is None:
            folder = stack.enter_context(_claimed(None, context.config, None, command, overwrite))
        original = original_stage(context)
        robust = pretrain_stage(context, original)
        built = _measured(context, pruned_networks(context, original, robust))
        computed = tuple(result.name for result in (*tried, *context.results) if result.computed)
        if not is_main_process():
            return BuildOutcome(folder.path, {}, computed)
        found = None
        if search is not None:
            found = search.as_dict(final_value(context, built, search.target))
            _say_if_missed(search, found, progress)
        if is_complete(folder, context):
            results = read_json(folder.path / "results.json")
            if results.get("search") == found:
                return BuildOutcome(folder.path, results, computed)
        results = collect_results(context, built, command)
        if found is not None:
            results["search"] = found
        write_output(context, built, folder, results)
        return BuildOutcome(folder.path, results, computed)


def _measured(context: BuildContext, networks: Networks) -> BuildResults:
    """The stages from the finished networks to the last measurement."""
    rows = networks.rows
    exports = {row: export_stage(context, model) for row, model in rows.items()}
    artefacts, left_out = artefact_stages(context, networks.pruned, exports["pruned"])
    pattern = pattern_stage(context, networks.prune, artefacts)
    artefacts, without_pattern = with_the_pattern(pattern, artefacts)
    left_out += without_pattern
    check_something_is_left(artefacts, left_out)
    evaluations = {
        row: evaluate_stage(context, row, model, exports[row], artefacts if row == "pruned" else ())
        for row, model in rows.items()
    }
    robustness = {}
    if context.config.robustness.is_wanted:
        parents = {"pruned": rows["robust"]}
        robustness = {row: robustness_stage(context, row, model, parents.get(row)) for row, model in rows.items()}
    artefacts, failed_map = without_what_failed(evaluations["pruned"], artefacts)
    left_out += failed_map
    check_something_is_left(artefacts, left_out)
    corruptions = {}
    if context.config.robustness.corruptions:
        corruptions = {
            row: corruptions_stage(context, row, model, artefacts if row == "pruned" else ())
            for row, model in rows.items()
        }
    adaptive = None
    if context.config.robustness.adaptive:
        adaptive = adaptive_stage(context, networks.pruned, artefacts)
    engines, missing_engines, failed_engines = engine_stages(context, artefacts)
    left_out += failed_engines
    comparison = compare_stage(context, evaluations)
    points = {
        row: operating_point_stage(context, row, model, artefacts if row == "pruned" else ())
        for row, model in rows.items()
    }
    gallery = gallery_stage(
        context,
        rows,
        {row: stage.read(POINTS)[NETWORK]["score_threshold"] for row, stage in points.items()},
        {row: attack for row, stage in robustness.items() if (attack := strongest_attack(stage)) is not None},
    )
    deployed = deployment(context, networks.pruned, points["pruned"], artefacts)
    square = {}
    if context.config.robustness.asks_files:
        square = {
            runner_key(runtime, one): square_stage(context, networks.pruned, one, runtime, deployed)
            for one in artefacts
            for runtime in (cpu_runtimes(context) if one.target != "gpu" else (ENGINE,))
        }
    latency = latency_stage(context, rows, exports, artefacts)
    flood = flood_stage(context, networks.pruned, artefacts, deployed) if context.config.latency.flood else None
    return BuildResults(
        networks=networks,
        exports=exports,
        artefacts=artefacts,
        left_out=left_out,
        pattern=pattern,
        engines=engines,
        missing_engines=missing_engines,
        evaluations=evaluations,
        comparison=comparison,
        robustness=robustness,
        corruptions=corruptions,
        adaptive=adaptive,
        square=square,
        points=points,
        gallery=gallery,
        latency=latency,
        flood=flood,
    )


def _say_if_missed(search: RatioSearch, found: dict[str, Any], progress: Progress) -> None:
    final, target = found["final"], search.target
    if final is not None and not final["meets"]:
        progress.message(
            f"search: warning: the finished network misses the target: {target.show(final['value'])}"
            f"{' (noisy)' if final.get('noisy') else ''}, "
            f"although the trial of ratio {search.chosen:g} met it; ask for a little more than you need"
        )


@contextmanager
def _claimed(
    out: Path | None, config: BuildConfig, target: RatioTarget | None, command: str | None, overwrite: bool
) -> Iterator[OutputFolder]:
    """The output folder for the time of the build, given back if the build ends before it wrote anything.

    So a command with a mistake in it can be corrected and given again. Of several processes under a launcher only
    the first one claims the folder.
    """
    out = default_out(config) if out is None else out
    if os.environ.get("RANK", "0") != "0":
        yield OutputFolder(out, resumed=False)
        return
    identity = config_hash(config)
    provenance: dict[str, Any] = {"command": command, "configuration": as_dict(config)}
    if target is not None:
        # The ratio is not known yet; which one the configuration has does not matter.
        text = canonical_json([config_hash(config.model_copy(update={"ratio": 0.0})), target.as_dict()])
        identity = hashlib.sha256(text.encode()).hexdigest()
        provenance |= {"target": target.as_dict(), "configuration": {**as_dict(config), "ratio": None}}
    with open_output_folder(out, identity, provenance=provenance, overwrite=overwrite) as folder:
        try:
            yield folder
        except BaseException:
            if {path.name for path in folder.path.iterdir()} <= {MARKER, LOCK}:
                (folder.path / MARKER).unlink(missing_ok=True)
            raise

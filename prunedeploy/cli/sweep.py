"""``prunedeploy sweep``: a grid of builds, in parallel and resumable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prunedeploy.cli.group import Command, Session, examples
from prunedeploy.cli.options import RESUMED_FROM
from prunedeploy.cli.output import print_json, quiet_stdout
from prunedeploy.cli.sweep_output import counted, plan_document, print_outcome, print_plan

if TYPE_CHECKING:
    from prunedeploy.pipeline.progress import Progress
    from prunedeploy.study.sweep.grid import Cell, Sweep
    from prunedeploy.study.sweep.tasks import Executor, Phase

ONLY = ("configuration", "ratio", "seed")


@click.command(
    "sweep",
    cls=Command,
    epilog=examples(
        "prunedeploy sweep --config study-demo --dry-run",
        "prunedeploy sweep --config study-demo",
        "prunedeploy sweep --config my-study.yaml --executor ray --ray-address auto --gpus-per-task 1",
        "prunedeploy sweep --config my-study.yaml --only configuration=structured-scaled --only seed=0",
        "prunedeploy report runs/study-demo",
    ),
)
@click.option(
    "--config",
    "source",
    required=True,
    metavar="F",
    help="YAML file, or the name of one that ships: paper, study-demo, study-smoke.",
)
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    metavar="E",
    help="Where the work is done: local: processes on this machine; ray: a Ray cluster (prunedeploy[cluster]).",
)
@click.option(
    "--ray-address",
    metavar="A",
    help="HOST:PORT of the cluster; auto: the one this machine is a node of; local: Ray on this machine only. "
    "Default: RAY_ADDRESS of the environment, else local.",
)
@click.option(
    "--gpus-per-task",
    type=click.FloatRange(min=0.0),
    default=0.0,
    show_default=True,
    metavar="X",
    help="GPUs that Ray gives each task; 0.5: two tasks share one. CPUs: the configuration's threads.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Models trained at once, at most; default: the cores (ray: of all nodes, and the GPUs), divided by what "
    "each takes. Changes no result.",
)
@click.option(
    "--dry-run", is_flag=True, help="Compute nothing: say how many stages there are and are done, and what is left."
)
@click.option(
    "--only",
    multiple=True,
    metavar="KEY=V,...",
    help="Only these cells: configuration=NAME,..., ratio=R,... or seed=N,...; repeated, values of one key add up.",
)
@click.option("--retry", is_flag=True, help="Try models that failed before again.")
@click.option(
    "--samples",
    type=click.IntRange(0, 8),
    default=2,
    show_default=True,
    metavar="N",
    help="Test images that every model of the first seed makes pictures of, for the report's Figure 5; 0: none. "
    "Changes no row.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder to write rows.jsonl into; default: runs/<name>.",
)
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=Path("runs/.store"),
    show_default=True,
    metavar="DIR",
    help="Where the results of stages are kept and shared.",
)
@click.pass_obj
def command(
    session: Session,
    /,
    source: str,
    executor: str,
    ray_address: str | None,
    gpus_per_task: float,
    workers: int | None,
    dry_run: bool,
    only: tuple[str, ...],
    retry: bool,
    samples: int,
    out: Path | None,
    store: Path,
    as_json: bool,
) -> None:
    """Build every model of a study: configurations x ratios x seeds.

    What models share is computed once: one adversarial pre-training per seed and colour mode, one scoring per score.
    Models are trained and evaluated by several processes at once; then latency is measured, one model at a time.
    Every finished model is a line in rows.jsonl; after a kill at any moment, the same command resumes. A model
    that fails is recorded with its error and the rest goes on.
    """
    from prunedeploy.process_setup import keep_freed_memory

    keep_freed_memory()
    from prunedeploy.study.sweep.grid import load_sweep

    if executor != "ray" and (ray_address is not None or gpus_per_task):
        raise click.UsageError("--ray-address and --gpus-per-task are for --executor ray")
    sweep = load_sweep(source)  # before torch is loaded: a typing error is told at once
    cells = select_cells(sweep, only)
    out = out or Path("runs") / sweep.config.name
    threads = sweep.config.threads
    if dry_run:
        _show_plan(sweep, cells, store, out, workers or default_workers(threads), retry, as_json)
        return
    from prunedeploy.pipeline.progress import Progress

    session.resumes_from(store, *RESUMED_FROM)
    progress = Progress()
    with quiet_stdout(), _executors(executor, threads, workers, ray_address, gpus_per_task, progress) as executors:
        from prunedeploy.study.sweep.driver import run_sweep

        outcome = run_sweep(
            sweep, cells, store=store, out=out, executors=executors, retry=retry, samples=samples, progress=progress
        )
    show = print_json if as_json else print_outcome
    failed = [{**key._asdict(), "error": error} for key, error in outcome.failed.items()]
    show({**vars(outcome), "failed": failed})
    if outcome.failed:
        from prunedeploy_engines.errors import PruningError

        what = f"{counted(len(failed), 'model')} failed"
        raise PruningError(what, out / "rows.jsonl", "fix what the lines above say, then add --retry")


def usable_cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(threads: int) -> int:
    """Processes that train at once on this machine, each with this many threads."""
    return max(1, usable_cores() // threads)


def select_cells(sweep: Sweep, only: Sequence[str]) -> list[Cell]:
    """The cells that ``--only`` leaves.

    Raises:
        click.UsageError: A key or value that the sweep does not have, or nothing is left.
    """
    chosen: dict[int, set[str]] = {}
    for text in only:
        key, equals, values = text.partition("=")
        if key not in ONLY or not equals:
            raise click.UsageError(f"--only {text!r} is not of the form {'=..., '.join(ONLY)}=...")
        place = ONLY.index(key)
        known = {_spelled(cell.key[place]): None for cell in sweep.cells}
        wanted = [_spelled(value.strip(), key) for value in values.split(",") if value.strip()]
        missing = [value for value in wanted if value not in known]
        if missing or not wanted:
            what = f"--only {text!r}: {f'there is no {key} {missing[0]}' if missing else 'is empty'}"
            raise click.UsageError(f"{what}; there are: {', '.join(known)}")
        chosen.setdefault(place, set()).update(wanted)
    cells = [cell for cell in sweep.cells if all(_spelled(cell.key[place]) in some for place, some in chosen.items())]
    if not cells:
        raise click.UsageError(f"--only {' and '.join(only)}: no model is all of that")
    return cells


def _spelled(value: object, key: str = "") -> str:
    if key == "ratio":
        try:
            value = float(str(value))
        except ValueError:
            return str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


@contextmanager
def _executors(
    executor: str, threads: int, workers: int | None, ray_address: str | None, gpus_per_task: float, progress: Progress
) -> Iterator[Callable[[Phase, Path], Executor]]:
    """What works off the tasks of a phase. Latency is measured by processes of this machine, one model at a time."""
    from prunedeploy.study.sweep.local_executor import LocalExecutor

    with ExitStack() as stack:
        # One for both phases: what has trained has PyTorch loaded already when latency is measured.
        local = cache(partial(LocalExecutor, workers or default_workers(threads), threads=threads))
        train: Callable[[Path], Executor] = local
        if executor == "ray":
            from prunedeploy.study.sweep.ray_cluster import RayCluster

            cluster = RayCluster(ray_address, usable_cores())  # before torch is loaded, for errors
            stack.callback(cluster.close)
            from prunedeploy.study.sweep.ray_executor import RayExecutor

            train = partial(
                RayExecutor, cluster, threads=threads, gpus=gpus_per_task, workers=workers, say=progress.message
            )
        yield lambda phase, log: train(log) if phase == "train" else local(log)


def _show_plan(
    sweep: Sweep, cells: list[Cell], store: Path, out: Path, workers: int, retry: bool, as_json: bool
) -> None:
    from prunedeploy.pipeline.progress import Progress
    from prunedeploy.pipeline.store.store import Store
    from prunedeploy.study.sweep.driver import read_standings
    from prunedeploy.study.sweep.plan import plan_sweep

    there = read_standings(sweep, out)
    with quiet_stdout(), Store(store) as stages:
        progress = Progress()
        plan = plan_sweep(cells, stages, progress)
        left = plan_sweep([cell for cell in cells if there[cell.key].is_open(retry)], stages, progress)
    show = print_json if as_json else print_plan
    show(plan_document(sweep, there, plan, left, workers, store))

"""``prunedeploy data``: make the demo set, check a data set, write one as a COCO folder."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prunedeploy.cli.failures import USER
from prunedeploy.cli.group import Group, examples
from prunedeploy.cli.options import PATH
from prunedeploy.cli.output import print_json, print_table, quiet_stdout

if TYPE_CHECKING:
    from prunedeploy.data.records import Problem

EXAMPLES_PER_GROUP = 3


@click.group("data", cls=Group)
def command() -> None:
    """Make the demo set, check a data set, or write one as a COCO folder."""


@command.command("demo", epilog=examples("prunedeploy data demo demo-data"))
@click.argument("folder", metavar="DIR", type=PATH)
def demo(folder: Path, as_json: bool) -> None:
    """Write the demo set into DIR as a COCO folder.

    Scenes of 160 x 160 pixels with one to four objects of ten classes, composed from real product photos
    (Fashion-MNIST, Zalando SE, MIT licence); the same on every machine. A DIR that already holds it is left
    as it is; one that holds something else is refused.
    """
    from prunedeploy.data.demo import CLASS_NAMES, DemoSettings, write_demo
    from prunedeploy.pipeline.progress import Progress

    settings = DemoSettings()
    scenes = settings.train_scenes + settings.test_scenes
    with quiet_stdout(), Progress().task("compose the demo set", scenes) as advance:
        write_demo(folder, settings, lambda done: advance(1))
    if as_json:
        print_json(
            {
                "folder": folder,
                "train_images": settings.train_scenes,
                "test_images": settings.test_scenes,
                "class_names": CLASS_NAMES,
            }
        )
    else:
        click.echo(f"{folder}: {settings.train_scenes} training and {settings.test_scenes} test images")


@command.command("bccd", epilog=examples("prunedeploy data bccd bccd"))
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--mirror", metavar="URL", help="A zip of the repository, instead of its authors'.")
def bccd(folder: Path, mirror: str | None, as_json: bool) -> None:
    """Download 364 photos of blood cells with boxes into DIR: the data of the configuration blood-cells.

    BCCD, Copyright (c) 2017 shenggan, MIT licence; 10 MB. The download is checked against a SHA-256 before DIR is made;
    a DIR that holds it is left as it is.
    """
    from prunedeploy.data.bccd import FILES, URL, fetch_bccd
    from prunedeploy.pipeline.progress import Progress

    url = mirror or URL
    Progress().message(f"fetch BCCD, 10 MB, from {url}")
    fetch_bccd(folder, url)
    if as_json:
        print_json({"folder": folder, "files": FILES})
    else:
        click.echo(f"{folder}: 364 photos with labels")


@command.command(
    "check",
    epilog=examples(
        "prunedeploy data check coco/", "prunedeploy data check my-photos/ --names classes.txt --decode --all"
    ),
)
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--names", type=PATH, help="File with the network's class names, one per line.")
@click.option("--only-known-classes", is_flag=True, help="As data.only_known_classes: leave boxes of others out.")
@click.option("--decode", is_flag=True, help="Decode every image, to find damage behind the header: 5 ms per photo.")
@click.option("--all", "show_all", is_flag=True, help="Show every problem, not three of each kind.")
@click.pass_context
def check(
    ctx: click.Context,
    folder: Path,
    names: Path | None,
    only_known_classes: bool,
    decode: bool,
    show_all: bool,
    as_json: bool,
) -> None:
    """Check a data set: say what it is, what is in it, and everything that is wrong with it.

    DIR holds COCO JSON as COCO, Roboflow, Ultralytics, CVAT, FiftyOne, Datumaro or Label Studio arrange it, YOLO labels
    with a data.yaml, or Pascal VOC's XML. Exits with 2 if a build would not take it; single training records
    with something wrong are left out of a build and are not an error.
    """
    from prunedeploy.data.check import inspect_coco
    from prunedeploy.data.class_names import read_names

    class_names = None if names is None else read_names(names)
    with quiet_stdout():
        report = inspect_coco(folder, class_names, decode, only_known_classes)
    if as_json:
        print_json(report.as_json())
    else:
        if report.format:
            click.echo(f"{folder}: {report.format}")
        for line in report.summary():
            click.echo(line)
        if report.rows:
            click.echo()
            rows = [[row.kind, row.split, row.becomes, str(row.count)] for row in report.rows]
            print_table(["what is wrong", "split", "in a build", "records"], rows, left=3)
            click.echo()
            for line in grouped(report.problems, None if show_all else EXAMPLES_PER_GROUP):
                click.echo(line)
        else:
            click.echo("nothing is wrong")
    if count := len(report.problems):
        usable = "" if not report.usable else "; a build takes the folder all the same"
        click.echo(f"{folder}: {count} problem{'s' * (count > 1)}{usable}", err=True)
    if not report.usable:
        ctx.exit(USER)


_old_name = copy.copy(check)  # from when only COCO folders were read
_old_name.hidden = True
_old_name.epilog = (check.epilog or "").replace("data check", "data coco")
command.add_command(_old_name, "coco")


@command.command("convert", epilog=examples("prunedeploy data convert my-photos/ my-photos-coco/"))
@click.argument("folder", metavar="DIR", type=PATH)
@click.argument("out", metavar="OUT", type=PATH)
@click.option("--all", "show_all", is_flag=True, help="Show everything that was left out, not three of each kind.")
def convert_folder(folder: Path, out: Path, show_all: bool, as_json: bool) -> None:
    """Write a data set of any format that is read here as a COCO folder: boxes and classes, images as they are.

    For DIR see `prunedeploy data check`. What cannot be used is left out and listed.
    """
    from prunedeploy.data.convert import convert

    with quiet_stdout():
        done = convert(folder, out)
    if as_json:
        splits = [
            {**asdict(one), "problems": [{**asdict(each), "file": str(each.file)} for each in one.problems]}
            for one in done.splits
        ]
        print_json({"format": done.format, "class_names": list(done.class_names), "splits": splits})
        return
    click.echo(f"{folder}: {done.format}, {len(done.class_names)} classes: {', '.join(done.class_names)}")
    for split in done.splits:
        click.echo(f"{split.name} (from {split.source}): {split.images} images, {split.boxes} boxes")
    problems = [problem for split in done.splits for problem in split.problems]
    for line in grouped(problems, None if show_all else EXAMPLES_PER_GROUP):
        click.echo(line, err=True)


def grouped(problems: Iterable[Problem], examples: int | None) -> Iterator[str]:
    """Yield the lines that list problems, those of a kind together, the most frequent kind first.

    Args:
        problems: Problems of one folder.
        examples: How many of a kind are shown; None: all.
    """
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.group, []).append(problem)
    for same in sorted(kinds.values(), key=len, reverse=True):
        yield f"{len(same)} x {same[0].fix}:" if len(same) > 1 else f"{same[0].fix}:"
        for problem in same[:examples]:
            yield f"  {problem.file}: {problem.what}"
        if examples is not None and len(same) > examples:
            yield f"  and {len(same) - examples} more (--all shows them)"

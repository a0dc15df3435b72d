"""``prunedeploy doctor``."""

from __future__ import annotations

from dataclasses import asdict

import click

from prunedeploy.cli.group import Command
from prunedeploy.cli.output import print_json, quiet_stdout


@click.command("doctor", cls=Command)
def command(as_json: bool) -> None:
    """Say what is installed, what each runtime can do on this machine, and what to install.

    A runtime counts as usable when it has been seen to run a model here, not when it is listed. Always
    exits with 0.
    """
    from prunedeploy_engines.doctor.doctor import diagnose

    with quiet_stdout():
        findings = diagnose()
    if as_json:
        print_json([asdict(finding) for finding in findings])
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        click.echo(f"{finding.name:<{width}}  {finding.status:<7}  {finding.detail}")
        if finding.advice:
            click.echo(f"{'':<{width}}  {'':<7}  -> {finding.advice}")
    counts = [sum(finding.status == status for finding in findings) for status in ("ok", "limited", "missing")]
    click.echo(f"\n{counts[0]} ok, {counts[1]} limited, {counts[2]} missing")

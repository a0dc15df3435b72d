"""The command line; `main` is what the installed program ``prunedeploy`` calls.

- `group`: the commands by name, each loaded when it is used; ``--debug`` and ``--json``; what a failure looks like.
- `failures`: an exception -> one line and an exit code.
- `options`: what the options of several commands have in common.
- `output`: one JSON document on stdout, or tables for people.
- one module per command: `build`, `evaluate`, `bench`, `detect`, `engine`, `data`,
  `weights`, `store`, `doctor`, `report`. Nothing but click is imported before a command runs. For `bench`,
  `detect`, `engine` and `doctor` the base install is enough, which is all that a device has.
- `prunedeploy_engines.bundle.source`: what the MODEL of a command line is, and the files that belong to it.
"""

from prunedeploy.cli.group import cli, main

__all__ = ["cli", "main"]

"""What is worth saying once of a cfg that has been read: what it says in vain."""

from __future__ import annotations

from pathlib import Path

from prunedeploy.models.darknet_cfg import DarknetCfg

_MOST_NAMES = 8


def cfg_notes(cfg: DarknetCfg) -> list[str]:
    """Lines for people: options that are ignored, in one line, and any that stand twice in ``[net]``."""
    name, notes = Path(cfg.where).name, []
    ignored = list(dict.fromkeys(one.option for one in cfg.ignored_options))
    if ignored:
        named = ", ".join(ignored[:_MOST_NAMES]) + ", ..." * (len(ignored) > _MOST_NAMES)
        count = f"({len(ignored)} key{'s' * (len(ignored) > 1)})"
        notes.append(f"{name}: ignored, since only Darknet itself reads them: {named} {count}")
    for option, before in cfg.net.overruled.items():
        lines = ", ".join(map(str, [*before, cfg.net.option_lines[option]]))
        twice = f"{option}= stands more than once in [net], at lines {lines}"
        notes.append(f"{name}: {twice}: the last is taken, while Darknet itself takes the first")
    return notes

"""What the options of a cfg mean here."""

from __future__ import annotations

from dataclasses import dataclass

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.sections import options_read


@dataclass(frozen=True)
class KeyMeaning:
    """An option of a kind of section that this cfg uses, and that counts.

    Attributes:
        section: Kind of the section.
        option: Its name.
        values: The different values it has in this file, in the order of the file.
        meaning: What it means here.
    """

    section: str
    option: str
    values: tuple[str, ...]
    meaning: str


def key_meanings(cfg: DarknetCfg) -> tuple[KeyMeaning, ...]:
    """The options that count, once per kind of section, in the order in which they first stand in the file."""
    values: dict[str, dict[str, dict[str, None]]] = {}
    for section in (cfg.net, *cfg.sections):
        of_kind = values.setdefault(section.kind, {})
        for option, value in section.options.items():
            if option in options_read(section.kind):
                of_kind.setdefault(option, {})[value] = None
    return tuple(
        KeyMeaning(kind, option, tuple(different), options_read(kind)[option])
        for kind, options in values.items()
        for option, different in options.items()
    )

"""A cfg read by nothing but its text, for what tests count by hand."""

from __future__ import annotations


def sections_of(text: str) -> list[tuple[str, dict[str, str]]]:
    """Name and options of every section, in order; comments behind ``#`` are left out."""
    sections: list[tuple[str, dict[str, str]]] = []
    for line in (line.split("#")[0].strip() for line in text.splitlines()):
        if line.startswith("["):
            sections.append((line.strip("[]"), {}))
        elif "=" in line:
            key, value = line.split("=", 1)
            sections[-1][1][key.strip()] = value.strip()
    return sections

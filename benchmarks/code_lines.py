"""How many lines of code the three packages have, without blank lines, comments and docstrings, by room.

    python benchmarks/code_lines.py [--root DIR]

A line counts if a token of code stands on it, so a call over three lines counts three times.
"""

from __future__ import annotations

import argparse
import ast
import tokenize
from collections import Counter
from pathlib import Path

PACKAGES = ("prunedeploy", "export/prunedeploy_export", "engines/prunedeploy_engines")
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}  # fmt: skip


def code_lines(path: Path) -> int:
    """Lines of one file with code on them."""
    with path.open("rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type not in NO_CODE]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(path.read_bytes())):
        for statement in node.body if isinstance(getattr(node, "body", None), list) else ():
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                lines -= set(range(statement.lineno, (statement.end_lineno or statement.lineno) + 1))
    return len(lines)


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    root = parser.parse_args().root
    rooms: Counter[str] = Counter()
    for package in PACKAGES:
        for path in (root / package).rglob("*.py"):
            room = path.relative_to(root / package).parts
            rooms[f"{Path(package).name}/{room[0]}" if len(room) > 1 else Path(package).name] += code_lines(path)
    for room, lines in rooms.most_common():
        print(f"{lines:6,}  {room}")
    print(f"{rooms.total():6,}  in all")


if __name__ == "__main__":
    main()

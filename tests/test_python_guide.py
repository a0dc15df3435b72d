"""The snippets of docs/guides/python.md, run one after the other as a reader would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
GUIDE = REPOSITORY / "docs" / "guides" / "python.md"


def test_every_snippet_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    snippets = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) >= 6
    monkeypatch.chdir(tmp_path)
    reader: dict[str, object] = {}
    for number, snippet in enumerate(snippets, 1):
        exec(compile(snippet, f"snippet {number}", "exec"), reader)
    printed = capsys.readouterr().out
    assert re.search(r"'map_pgd': 0\.\d+", printed), "the bundled robust network finds attacked objects"
    kept, before = map(int, re.search(r"(\d+) of (\d+) parameters", printed).groups())  # type: ignore[union-attr]
    assert 0.2 < kept / before < 0.3
    assert re.search(r"\d+\.\d+ ms; \S.* takes \d+%", printed)

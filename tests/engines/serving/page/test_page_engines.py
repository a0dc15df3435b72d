"""The script that lists engines, run without a browser: what it says, and when it says nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from prunedeploy_engines.serving.http import page
from served_page import ENGINES, ENGINES_HEAD, ENGINES_ROW

# Elements that hold children and text is all that it needs of a document.
RUN = """
class Element {
  constructor() { this.children = []; }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  querySelector(name) { return (this[name] ??= new Element()); }
}
globalThis.document = { createElement: () => new Element() };
const [script, models] = JSON.parse(await new Promise((done) => process.stdin.once("data", done)));
const { showEngines } = await import(script);
const section = new Element();
showEngines(section, models);
const texts = (row) => row.children.map((one) => one.textContent);
const rows = [section["#engines-head"], ...section["#engines"].children];
console.log(JSON.stringify({ hidden: section.hidden, rows: rows.map(texts) }));
"""


def shown(*models: dict[str, Any]) -> dict[str, Any]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here to run scripts with")
    asked = json.dumps([(page.FOLDER / "engines.js").as_uri(), models])
    command = [node, "--input-type=module", "--eval", RUN]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=60, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def model(name: str, engines: list[dict[str, Any]] | None, precision: str = "fp32") -> dict[str, Any]:
    metrics = {"map_clean": 0.5} if engines is None else {"map_clean": 0.5, "engines": engines}
    return {"name": name, "runtime": "onnxruntime", "precision": precision, "metrics": metrics}


def test_figures_of_the_engine_that_runs_and_columns_that_have_some() -> None:
    found = shown(model("of no build", None), model("pruned", ENGINES))
    assert found == {"hidden": False, "rows": [ENGINES_HEAD, ENGINES_ROW]}


def test_of_two_int8_files_that_for_cpus_counts() -> None:
    gpu = {"runtime": "onnxruntime", "precision": "int8", "target": "gpu", "map_clean": 0.3, "mpc": 0.2}
    (_, row) = shown(model("both", [gpu, {**gpu, "target": "cpu", "mpc": 0.1}], "int8"))["rows"]
    assert row == ["both", "onnxruntime, int8", "0.300", "0.100"]


def test_nothing_is_shown_of_builds_that_were_asked_for_no_more_than_transfer() -> None:
    plain = {key: ENGINES[1][key] for key in ("runtime", "precision", "target", "map_clean", "map_pgd_transfer")}
    plain |= {"lowest": {"map": 0.47, "attack": "pgd_transfer", "images": 60}, "latency_ms": {"p99": 1.0}}
    assert shown(model("plain", [plain]))["hidden"] is True

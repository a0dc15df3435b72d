"""Time and memory that the report of a whole study takes: the paper's 450 models, every table and figure.

    python benchmarks/study_report.py [--runs 3]

Each run is a fresh process that reads the rows from a file and writes everything into an empty folder; memory is the
process's peak resident size. On a busy machine the CPU time says more than the wall time. The figures to show: under
20 s and 500 MB, without torch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prunedeploy.study.rows.file import RowFile
from prunedeploy.study.statistics.paper import CONFIGURATION_HASH, paper_rows

PROGRAM = """
import json, resource, sys, time
from pathlib import Path
from prunedeploy.study.report.page import write_report
from prunedeploy.study.rows.file import read_rows
rows = read_rows(Path(sys.argv[1])).rows
files = write_report(rows, Path(sys.argv[2]), title="the paper's own numbers", compare_paper=True)
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "models": len(rows), "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024,
    "page_kb": files.page.stat().st_size / 1024, "files": 1 + len(files.tables) + len(files.figures),
    "torch": "torch" in sys.modules,
}))
"""


def main() -> None:
    """Print a line per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with RowFile(path, CONFIGURATION_HASH) as file:
            file.append(*paper_rows())
        for number in range(arguments.runs):
            command = [sys.executable, "-c", PROGRAM, str(path), str(Path(folder) / str(number))]
            start = time.perf_counter()
            told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            wall = time.perf_counter() - start
            torch = "with torch" if told["torch"] else "without torch"
            print(
                f"{told['models']} rows: {wall:.1f} s wall, {told['cpu_s']:.1f} s CPU, peak {told['peak_mb']:.0f} MB, "
                f"{torch}; {told['files']} files, page of {told['page_kb']:.0f} kB"
            )


if __name__ == "__main__":
    main()

"""Ask whether installed packages have known security holes; where nobody can be asked, say so.

    python .ci/audit.py

pip-audit calls a package that its service does not know "skipped" and ends well, so it is first asked about a release
that is known to have holes. Ends with 1 if a hole is found, else with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

CANARY = "jinja2==2.11.0"  # CVE-2020-28493 among others
SECONDS = 120


def audited(*arguments: str) -> dict[str, list[str]] | None:
    """Holes by package; None if nobody could be asked."""
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None
    found = {package["name"]: [hole["id"] for hole in package.get("vulns", [])] for package in packages}
    return {name: holes for name, holes in found.items() if holes}


def main() -> int:
    """Audit the environment that this runs in."""
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder) / "requirements.txt"
        canary.write_text(f"{CANARY}\n", encoding="ascii")
        if not audited("--requirement", str(canary), "--no-deps", "--disable-pip"):
            print("audit: no service that knows of security holes can be reached from here; nothing was checked")
            return 0
    holes = audited("--local", "--skip-editable")
    if holes is None:
        print("audit: it was broken off; nothing was checked")
        return 0
    for name, found in holes.items():
        print(f"audit: {name}: {', '.join(found)}")
    print(f"audit: {len(holes)} packages with known holes")
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(main())

"""Fails unless unit and integration tests reach enough lines of the engine; run it after a run with coverage.

Each line is counted under the kind of test that ran it (`tests/conftest.py` sets that, also for processes that a
test starts), so that what only a chaos test reaches does not help.

Usage: coverage_gate.py [PERCENT]
"""

import json
import sys
import tempfile
from pathlib import Path

import coverage

ROOT = Path(__file__).parents[1]
# "" is what runs while modules are imported.
KINDS = ["^(unit|integration|)$"]


def main(needed: float) -> int:
    """Print the coverage of core/ and say whether it is enough."""
    measured = coverage.Coverage(config_file=str(ROOT / "pyproject.toml"))
    measured.load()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        measured.json_report(outfile=str(report), include=["core/*"], contexts=KINDS)
        found = json.loads(report.read_text())
    for path, file in sorted(found["files"].items(), key=lambda item: item[1]["summary"]["percent_covered"])[
        :10
    ]:
        summary = file["summary"]
        if summary["missing_lines"]:
            print(f"  {path}: {summary['missing_lines']} of {summary['num_statements']} lines not reached")
    totals = found["totals"]
    lines = 100 * totals["covered_lines"] / totals["num_statements"]
    branches = 100 * totals["covered_branches"] / max(1, totals["num_branches"])
    print(f"core/ by unit and integration tests: {lines:.1f} % of lines, {branches:.1f} % of branches")
    if lines < needed:
        print(f"error: {needed:g} % of lines are needed", file=sys.stderr)
    return lines < needed


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 90))

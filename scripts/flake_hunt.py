"""Runs every test several times in a row, and writes what came of it into docs/testing.md.

First which tests of which commit, and how many that is of all; then a line for each run: when, how long, how many passed
and failed; then the tests that failed, how often, and why. The document is written anew after each run, so a hunt that is broken off
has its record, too. Exits with 1 if a test failed in any run.

Usage: flake_hunt.py [--runs N] [--jobs N] [PYTEST ARGUMENT...]: all tests, or those that the arguments choose.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "testing.md"
_CAUSE = 200
"""Characters of what a failure says."""
BEGIN, END = "<!-- the last flake hunt: begin -->", "<!-- the last flake hunt: end -->"


class Run(NamedTuple):
    """How one run ended."""

    number: int
    began: datetime
    seconds: float
    kinds: Counter[str]
    passed: int
    failed: Mapping[str, str]
    exit_code: int

    def line(self) -> str:
        """For people."""
        minutes, seconds = divmod(round(self.seconds), 60)
        ended = (
            "" if bool(self.failed) == bool(self.exit_code) else f", and pytest ended with {self.exit_code}"
        )
        return (
            f"run {self.number:>2}  {self.began:%Y-%m-%d %H:%M} UTC  {minutes:>2} min {seconds:02} s  "
            f"{self.passed} passed, {len(self.failed)} failed{ended}"
        )


def run(number: int, jobs: int, arguments: Sequence[str], report: Path) -> Run:
    """Run the tests once."""
    report.unlink(missing_ok=True)
    began, clock = datetime.now(UTC), time.monotonic()
    order = ("--dist", "loadfile", "--no-loadscope-reorder")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"-n{jobs}", *order, f"--junit-xml={report}", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    seconds = time.monotonic() - clock
    kinds: Counter[str] = Counter()
    passed = 0
    failed: dict[str, str] = {}
    if report.exists():
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            # tests.unit.test_backup: the folder is the kind.
            kinds[str(case.get("classname")).split(".")[1]] += 1
            trouble = [found for found in (case.find("failure"), case.find("error")) if found is not None]
            if trouble:
                # Its cause is one line; the rest is for whoever looks for it.
                cause = str(trouble[0].get("message")).splitlines()[0][:_CAUSE]
                failed[f"{case.get('classname')}::{case.get('name')}"] = cause
            elif case.find("skipped") is None:
                passed += 1
    return Run(number, began, seconds, kinds, passed, failed, ended.returncode)


def said_by(*command: str) -> str:
    """What a command writes."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def what_runs(arguments: Sequence[str], jobs: int, first: Run) -> str:
    """Which tests these are, and of what."""
    suite = said_by(sys.executable, "-m", "pytest", "--collect-only", "-q").count("::")
    kinds = ", ".join(f"{count} {kind}" for kind, count in first.kinds.most_common())
    return (
        f"pytest {' '.join(arguments) or 'of all tests'}\n{first.kinds.total()} of the {suite} tests of commit "
        f"{said_by('git', 'rev-parse', '--short', 'HEAD')}: {kinds}; {jobs} at a time, on {os.cpu_count()} cores"
    )


def conclusion(runs: Sequence[Run], wanted: int) -> str:
    """What all runs say together."""
    if len(runs) < wanted:
        return f"Broken off: {wanted} runs were asked for. {conclusion(runs, len(runs))}"
    bad = [each for each in runs if each.failed or each.exit_code]
    if not bad:
        return f"{len(runs)} runs in a row without one failure."
    counts = Counter(name for each in runs for name in each.failed)
    causes = {name: cause for each in runs for name, cause in each.failed.items()}
    names = "".join(
        f"\n  {count} of {len(runs)}  {name}\n    {causes[name]}" for name, count in counts.most_common()
    )
    return f"{len(bad)} of {len(runs)} runs failed:{names}"


def write(text: str) -> None:
    """Put the text between the marks in the document."""
    document = DOCUMENT.read_text()
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.S)
    if not pattern.search(document):
        raise SystemExit(f"{DOCUMENT} lacks the line {BEGIN} or {END}")
    DOCUMENT.write_text(pattern.sub(lambda _: f"{BEGIN}\n```\n{text}\n```\n{END}", document))


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    chosen, arguments = parser.parse_known_args()
    report = ROOT / ".pytest_cache" / "flake-hunt.xml"
    report.parent.mkdir(exist_ok=True)
    runs: list[Run] = []
    for number in range(1, chosen.runs + 1):
        runs.append(run(number, chosen.jobs, arguments, report))
        print(runs[-1].line(), flush=True)
        if number == 1:
            what = what_runs(arguments, chosen.jobs, runs[0])
            print(what, flush=True)
        write("\n".join([what, *(each.line() for each in runs), conclusion(runs, chosen.runs)]))
    print(conclusion(runs, chosen.runs))
    return int(any(each.failed or each.exit_code for each in runs))


if __name__ == "__main__":
    sys.exit(main())

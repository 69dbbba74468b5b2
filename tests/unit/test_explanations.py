"""`pytest --explain`, and the rule that every test explains itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.testing_prd import ROOT

SHOWN = "tests/unit/test_backup.py::test_timestamp_filtering_handles_no_matches"


def _pytest(*arguments: str) -> tuple[int, list[str]]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout.splitlines()


def test_explanations_are_printed_below_results() -> None:
    """Tests that --explain prints what a test tests, why it matters and what could go wrong, below its result.

    It matters because a list of names tells nobody what was proved.
    A person who reads the results could not judge what is missing.
    """
    code, lines = _pytest(SHOWN, "--explain")
    assert code == 0
    (result,) = [number for number, line in enumerate(lines) if "test_timestamp_filtering_handles" in line]
    assert "PASSED" in lines[result]
    assert lines[result + 1] == "    Tests a span in which there is nothing."
    assert lines[result + 2].startswith("    It matters because ")
    assert lines[result + 3].startswith("    ")


def test_a_test_without_an_explanation_is_refused(tmp_path: Path) -> None:
    """Tests that a test with a docstring of one line is an error of its file.

    It matters because nobody writes the explanation later.
    The suite would fill with tests of which nobody knows whether they may be deleted.
    """
    path = tmp_path / "test_one.py"
    path.write_text('def test_something():\n    """Tests something."""\n')
    code, lines = _pytest("-p", "tests.conftest", str(path))
    assert code != 0
    assert any("test_something needs a docstring of three lines" in line for line in lines)

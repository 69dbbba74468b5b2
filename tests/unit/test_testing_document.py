"""docs/testing.md says what is tested; here it is held against the suite, and what the suite knows of the engine too."""

from __future__ import annotations

import re

from tests.support.mortal import POINTS, found
from tests.support.testing_prd import DOCUMENT, ROOT, SECTIONS, all_tests

_ROW = re.compile(r"\| `(\w+)` \| (?:`([^`]+)`|not yet) \|")
_PLACE = re.compile(r"`(tests/[\w./]+)(?:::(\w+))?`")


def test_every_test_that_the_document_names_exists() -> None:
    """Tests that each file and test which docs/testing.md names is there.

    It matters because people read there that a fault is covered.
    A renamed or deleted test would go on being counted.
    """
    known = {test.place for test in all_tests()}
    named = _PLACE.findall(DOCUMENT.read_text())
    assert len(named) > 40
    for path, test in named:
        assert (ROOT / path).exists(), path
        assert not test or f"{path}::{test}" in known, f"{path}::{test}"


def test_every_test_of_the_prd_has_a_row() -> None:
    """Tests that the table has a row for each name of the PRD, in each place where it is named.

    It matters because a list that leaves out what is missing looks complete.
    A failure mode that nobody tests would not even be known as open.
    """
    rows = [name for name, _ in _ROW.findall(DOCUMENT.read_text())]
    for names in SECTIONS.values():
        for name in names:
            assert name in rows


def test_every_point_at_which_a_process_is_killed_exists() -> None:
    """Tests that each named point of `tests/support/mortal.py` is a method of the engine.

    It matters because those tests take minutes, and a renamed method should show in seconds.
    A point that is never reached would be a crash that nobody tests.
    """
    for point in POINTS.values():
        found(point)

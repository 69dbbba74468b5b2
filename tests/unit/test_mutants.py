"""scripts/mutants.toml, held against the code: a line that moved must not drop out of the list unseen."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.support.testing_prd import ROOT, all_tests

MUTANTS: Sequence[Mapping[str, Any]] = tomllib.loads((ROOT / "scripts" / "mutants.toml").read_text())[
    "mutant"
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant["promise"].strip() for mutant in MUTANTS])
def test_the_line_of_each_mutant_stands_in_the_code(mutant: Mapping[str, Any]) -> None:
    """Tests that what a mutant takes out stands exactly once in its file, and what comes in its place compiles.

    It matters because those tests run for an hour, and a line is moved in a minute.
    A promise whose line is not found is one of which nobody knows any more whether a test would notice.
    """
    text = (ROOT / mutant["file"]).read_text()
    assert text.count(mutant["old"]) == 1, (
        f"{mutant['file']} holds {text.count(mutant['old'])} times: {mutant['old']}"
    )
    assert mutant["old"] != mutant["new"]
    compile(text.replace(mutant["old"], mutant["new"]), mutant["file"], "exec")


def test_each_mutant_names_tests_that_exist() -> None:
    """Tests that the tests which must notice a mutant are there, and that no promise is listed twice.

    It matters because pytest calls a file that is not there an error, as it does a test that fails.
    A renamed test file would look like a test that notices.
    """
    known = {str(test.path.relative_to(ROOT)) for test in all_tests()}
    for mutant in MUTANTS:
        for path in mutant["tests"]:
            assert any(each == path or each.startswith(f"{path}/") for each in known), path
    promises = [mutant["promise"].strip() for mutant in MUTANTS]
    assert len(set(promises)) == len(promises)

"""Keys: the ones that the format promises, and none that leaves its folder."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.repository import layout
from kafka_backup.repository.store import check_key

ID = "AbCdEfGhIjKlMnOpQrSt_-"
HOSTILE = ["", ".", "..", "../x", "a/b", "/", "a\0", "a b", "ä", "a" * 250, "a\n"]


def test_keys_are_those_of_the_format() -> None:
    """Every key is exactly what docs/repository-format.md says.

    It matters because repositories outlive releases.
    A changed key would make an old repository look empty.
    """
    segment = {
        "topic": "a.b_c-d",
        "topic_id": ID,
        "partition": 7,
        "first_offset": 2**40,
        "capture_id": "20260102T030405006Z-0a1b2c3d",
        "index": 12,
    }
    assert layout.REPOSITORY == "repository.json"
    assert (
        layout.segment_key(**segment, compression="none")
        == f"topics/a.b_c-d/{ID}/7/00000001099511627776-20260102T030405006Z-0a1b2c3d-12.log"
    )
    assert layout.segment_key(**segment, compression="zstd").endswith("-12.log.zst")
    place = layout.parse_segment_key(
        layout.segment_key(**segment, compression="zstd"), topic="a.b_c-d", topic_id=ID
    )
    assert place == layout.SegmentPlace(
        name="7/00000001099511627776-20260102T030405006Z-0a1b2c3d-12.log.zst",
        partition=7,
        first_offset=2**40,
        capture_id="20260102T030405006Z-0a1b2c3d",
    )
    assert layout.expiry_key("e-1") == "expiries/e-1.json"
    assert layout.commit_key("t", ID, 0) == f"topics/t/{ID}/commits/00000000000000000000.json"
    assert layout.checkpoint_key("t", ID, 9) == f"topics/t/{ID}/checkpoints/00000000000000000009.json"
    assert (
        layout.pack_key("t", ID, last=99, count=100)
        == f"topics/t/{ID}/checkpoints/00000000000000000099-100.jsonl.zst"
    )
    assert layout.capture_key("c-1") == "captures/c-1.json"
    assert layout.accepted_losses_key("c-1", 0) == "accepted/losses/c-1/00000000000000000000.json"
    absence = layout.accepted_absence_key("t", ID, 4)
    assert absence == f"accepted/absences/t/{ID}/00000000000000000004.json"
    assert layout.parse_accepted_absence_key(absence) == ("t", ID, 4)
    for other in (absence[9:], absence + "x", absence.replace("/t/", "/../"), f"x/{absence}"):
        assert layout.parse_accepted_absence_key(other) is None
    assert layout.restore_plan_key("r", 1) == "restores/r/plans/00000000000000000001.json"
    assert layout.attempt_key("r", 1) == "restores/r/attempts/00000000000000000001.json"
    assert layout.report_key("r", 10) == "restores/r/reports/00000000000000000010.json"
    assert layout.offset_map_key("r", "t", 3) == "restores/r/offset-map/t/3.json"


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    "key",
    [
        lambda name: layout.commit_key(name, ID, 0),
        lambda name: layout.commit_key("t", name, 0),
        lambda name: layout.capture_key(name),
        lambda name: layout.accepted_losses_key(name, 0),
        lambda name: layout.accepted_absence_key(name, ID, 0),
        lambda name: layout.accepted_absence_key("t", name, 0),
        lambda name: layout.restore_plan_key(name, 1),
        lambda name: layout.attempts_folder(name),
        lambda name: layout.offset_map_key("r", name, 0),
        lambda name: layout.segment_key(
            topic="t", topic_id=ID, partition=0, first_offset=0, capture_id=name, index=0, compression="none"
        ),
    ],
)
def test_no_name_leaves_its_folder(key: Callable[[str], str], name: str) -> None:
    """A name that is no topic, topic id, capture or restore never becomes part of a key.

    It matters because names come from brokers, documents and people.
    "../" could read or write anywhere.
    """
    with pytest.raises(ValueError, match=r"not a"):
        key(name)


def test_negative_numbers_are_in_no_key() -> None:
    """A negative partition or offset is a mistake in the program.

    It matters because Kafka's protocol uses -1 for "unknown".
    A key of it would sort before offset 0.
    """
    with pytest.raises(ValueError, match="below zero"):
        layout.commit_key("t", ID, -1)
    with pytest.raises(ValueError, match="below zero"):
        layout.offset_map_key("r", "t", -1)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_numbers_sort_as_they_count(one: int, other: int) -> None:
    """Keys of commits and segments are in the order of their numbers, and numbers read back.

    It matters because listings are in the order of keys.
    Commit 10 could be listed before commit 9, and taken for the older one.
    """
    keys = [layout.commit_key("t", ID, number) for number in (one, other)]
    assert (keys[0] < keys[1]) == (one < other)
    assert layout.parse_commit_key(keys[0], topic="t", topic_id=ID) == one
    assert check_key(keys[0]) == keys[0]


@given(st.text())
def test_any_listed_key_can_be_parsed(text: str) -> None:
    """Whatever lies in a repository, parsing its key gives a number, an id or None.

    It matters because people put files into buckets.
    One strange file could stop all reading.
    """
    for key in (text, f"captures/{text}.json", f"topics/t/{ID}/commits/{text}.json", f"topics/t/{ID}/{text}"):
        number = layout.parse_commit_key(key, topic="t", topic_id=ID)
        assert number is None or layout.commit_key("t", ID, number) == key
        capture_id = layout.parse_capture_key(key)
        assert capture_id is None or layout.capture_key(capture_id) == key
        place = layout.parse_segment_key(key, topic="t", topic_id=ID)
        assert place is None or layout.named_segment_key("t", ID, place.name) == key
        assert layout.parse_segment_key(f"{key}/x", topic="t", topic_id=ID) is None

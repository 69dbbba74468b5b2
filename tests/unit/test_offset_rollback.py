"""What a rollback rests on: positions kept, compared both ways, and the states of a reset."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.errors import ConfigurationError, DamagedError, RefusedError, WriterConflictError
from kafka_backup.kafka.groups import CommittedOffset
from kafka_backup.offset_rollback import (
    ResetLog,
    differences,
    goals_of,
    may_follow,
    positions_of,
)
from kafka_backup.position_mover import is_same
from kafka_backup.repository import layout
from kafka_backup.repository.group_documents import (
    GroupBefore,
    MovedPosition,
    PlannedGroup,
    PlannedPosition,
    PositionBefore,
    PositionsBefore,
    ResetPlan,
    ResetRequest,
    ResetState,
    ResetStep,
)
from kafka_backup.repository.group_store import GroupStore, ResetFolder
from kafka_backup.repository.store import put_once
from tests.unit.repositories import TOPIC, TOPIC_ID, memory_store

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
OFFSETS = st.none() | st.integers(0, 2**63 - 1)
STATES: tuple[ResetState, ...] = get_args(ResetState)


def before(
    *positions: tuple[str, int, int | None], metadata: str = "", reset_id: str = "r"
) -> PositionsBefore:
    return PositionsBefore(
        reset_id=reset_id,
        nonce="n",
        taken_at=1,
        groups=tuple(
            GroupBefore(
                group=group,
                state="Empty",
                positions=(
                    PositionBefore(
                        topic=TOPIC, topic_id=TOPIC_ID, partition=partition, offset=offset, metadata=metadata
                    ),
                ),
            )
            for group, partition, offset in positions
        ),
    )


def plan(offset: int | None, reset_id: str = "r", nonce: str = "n") -> ResetPlan:
    return ResetPlan(
        reset_id=reset_id,
        request=ResetRequest(groups=("a",), to="latest"),
        nonce=nonce,
        planned_at=0,
        cluster_id="c",
        groups=(
            PlannedGroup(
                group="a",
                positions=(
                    PlannedPosition(
                        topic=TOPIC,
                        topic_id=TOPIC_ID,
                        partition=0,
                        offset=offset,
                        log_start=0,
                        high_watermark=9,
                        before=None,
                    ),
                ),
            ),
        ),
    )


@given(TEXT, OFFSETS, TEXT)
def test_rollback_snapshot_serialization(group: str, offset: int | None, metadata: str) -> None:
    """What: positions before a reset, stored and read again, "there was no commit" included.

    Why: it is the only way back.
    Risk: a null that became 0: then the group would begin at the beginning instead of by its policy.
    """
    folder = GroupStore(memory_store()).reset("r")
    document = before((group, 0, offset), metadata=metadata)
    folder.put_before(document)
    assert folder.before() == document
    expected = None if offset is None else CommittedOffset(offset=offset, metadata=metadata)
    assert positions_of(document) == {(group, (TOPIC, 0)): expected}


def test_rollback_snapshot_is_never_taken_twice() -> None:
    """What: a second before.json for the same reset is refused; the same bytes again are not.

    Why: a second one, taken after the first change, would hold the changed positions.
    Risk: a rollback to where the reset went.
    """
    folder = GroupStore(memory_store()).reset("r")
    folder.put_before(before(("a", 0, 5)))
    folder.put_before(before(("a", 0, 5)))
    with pytest.raises(WriterConflictError):
        folder.put_before(before(("a", 0, 9)))
    assert folder.before() == before(("a", 0, 5))


def test_offset_comparison_says_what_differs_both_ways() -> None:
    """What: positions that are the same, elsewhere, missing, and there although they were not.

    Why: a rollback is verified by it.
    Risk: only what is in the snapshot is compared, and what was added stays unseen.
    """
    saved = {
        ("a", ("t", 0)): CommittedOffset(offset=5, leader_epoch=7, metadata="m"),
        ("a", ("t", 1)): CommittedOffset(offset=5),
        ("a", ("t", 2)): CommittedOffset(offset=5),
        ("a", ("t", 3)): None,
        ("a", ("t", 4)): None,
    }
    now = {
        ("a", ("t", 0)): CommittedOffset(offset=5, leader_epoch=-1, metadata="m"),
        ("a", ("t", 1)): CommittedOffset(offset=6),
        ("a", ("t", 2)): None,
        ("a", ("t", 3)): CommittedOffset(offset=0),
        ("b", ("t", 0)): CommittedOffset(offset=1),
    }
    assert differences(saved, now) == [
        "group 'a', t [1]: 6 instead of 5",
        "group 'a', t [2]: no commit instead of 5",
        "group 'a', t [3]: 0 instead of no commit",
        "group 'b', t [0]: 1 instead of no commit",
    ]
    assert differences(saved, saved) == []
    assert not is_same(CommittedOffset(offset=5, metadata="x"), CommittedOffset(offset=5))
    assert is_same(None, None)


def test_state_machine_has_no_other_way() -> None:
    """What: every pair of states: which may follow which.

    Why: whoever comes after a crash goes by the last state alone.
    Risk: "verified" without "applied", or a reset that goes on after its rollback began.
    """
    allowed = {
        (one, other)
        for one, other in itertools.product(("snapshotted", *STATES), STATES)
        if may_follow(one, other)
    }
    assert allowed == {
        ("snapshotted", "applying"),
        ("applying", "applying"),
        ("applying", "applied"),
        ("applying", "failed"),
        ("applying", "rolling_back"),
        ("applied", "applying"),
        ("applied", "verified"),
        ("applied", "failed"),
        ("applied", "rolling_back"),
        ("verified", "rolling_back"),
        ("failed", "rolling_back"),
        ("rolling_back", "rolling_back"),
        ("rolling_back", "rolled_back"),
        ("rolled_back", "rolling_back"),
    }


@given(st.lists(st.sampled_from(STATES), max_size=6))
def test_state_machine_survives_any_history(states: list[ResetState]) -> None:
    """What: any attempt at any sequence of states: what is allowed is stored, in order, and read again.

    Why: the log is opened by whichever process comes next.
    Risk: a step that is refused and stored all the same.
    """
    store = GroupStore(memory_store())
    expected: list[ResetState] = []
    for state in states:
        log = ResetLog(store.reset("r"))
        assert [step.state for step in log.steps] == expected
        try:
            log.advance(state, [MovedPosition(group="a", topic=TOPIC, partition=0, before=None, after=1)])
        except RefusedError:
            assert not may_follow(expected[-1] if expected else "snapshotted", state)
        else:
            expected.append(state)
    log = ResetLog(store.reset("r"))
    assert [step.state for step in log.steps] == expected
    assert log.state == (expected[-1] if expected else None)
    assert store.resets() == ({"r": expected[-1]} if expected else {})
    outcomes = [state for state in expected if state in ("verified", "failed")]
    outcome = log.outcome()
    assert (outcome and outcome.state) == (outcomes[-1] if outcomes else None)


def put_step(folder: ResetFolder, number: int, state: ResetState, nonce: str = "n") -> None:
    folder.put_step(ResetStep(reset_id="r", number=number, state=state, nonce=nonce, at=0))


def test_of_two_runs_one_is_told() -> None:
    """What: two runs write the same step, or a reset its outcome where a rollback has begun.

    Why: two processes may work on one reset: somebody lost patience.
    Risk: both go on, and undo each other's commits.
    """
    folder = GroupStore(memory_store()).reset("r")
    put_step(folder, 1, "applying")
    with pytest.raises(WriterConflictError):
        put_step(folder, 1, "applying", nonce="other")
    put_step(folder, 2, "rolling_back")
    with pytest.raises(WriterConflictError, match="rolling_back"):
        put_step(folder, 2, "applied")
    with pytest.raises(WriterConflictError, match="rolling_back"):
        put_step(folder, 2, "applying")
    assert [step.state for step in folder.steps()] == ["applying", "rolling_back"]
    put_step(folder, 3, "rolled_back")
    assert GroupStore(folder._store).resets() == {"r": "rolled_back"}


def test_a_new_try_beats_an_outcome() -> None:
    """What: a second run picks up a reset; the first one, not dead after all, comes with its outcome.

    Why: the second run has begun to change things; the first one's outcome is no longer true.
    Risk: "verified", while another process is at work.
    """
    folder = GroupStore(memory_store()).reset("r")
    put_step(folder, 1, "applying")
    put_step(folder, 2, "applying", nonce="second")
    with pytest.raises(WriterConflictError, match="applying"):
        put_step(folder, 2, "failed")
    with pytest.raises(WriterConflictError, match="applying"):
        put_step(folder, 2, "applied")
    assert [step.state for step in folder.steps()] == ["applying", "applying"]


@pytest.mark.parametrize(
    ("key", "data"),
    [
        (layout.reset_step_key("r", 2, "verified"), b"{}"),
        (layout.reset_step_key("r", 3, "verified"), None),
        (layout.reset_step_key("r", 2, "celebrating"), None),
        (layout.reset_step_key("r", 2, "rolled_back"), None),
    ],
    ids=["unreadable", "gap", "unknown_state", "impossible"],
)
def test_damaged_steps_are_named(key: str, data: bytes | None) -> None:
    """What: a step that cannot be read, one that is missing, and states that cannot be.

    Why: what may have been changed is known from the steps alone.
    Risk: a reset that looks finished.
    """
    memory = memory_store()
    folder = GroupStore(memory).reset("r")
    put_step(folder, 1, "applying")
    parsed = layout.parse_reset_step_key(key)
    assert parsed is not None
    step = ResetStep(reset_id="r", number=parsed[1], state="rolled_back", nonce="n", at=0)
    put_once(memory, key, data or step.to_bytes())
    with pytest.raises(DamagedError):
        ResetLog(folder)


def test_a_plan_keeps_where_everything_goes() -> None:
    """What: a plan stored and read again; another plan under its id is refused.

    Why: a reset that is picked up goes where the first run wanted to go, not to the "latest" of now.
    Risk: half of the groups at one end, half at another.
    """
    folder = GroupStore(memory_store()).reset("r")
    for offset in (None, 0, 9):
        assert goals_of(plan(offset)) == {
            ("a", (TOPIC, 0)): None if offset is None else CommittedOffset(offset=offset)
        }
    folder.put_plan(plan(9))
    assert folder.plan() == plan(9)
    with pytest.raises(WriterConflictError):
        folder.put_plan(plan(9, nonce="m"))
    with pytest.raises(ConfigurationError):
        GroupStore(memory_store()).reset("../r")

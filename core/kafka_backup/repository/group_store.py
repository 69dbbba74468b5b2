"""Finds and stores the documents of consumer positions in a repository."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from kafka_backup.errors import ConfigurationError, DamagedError, WriterConflictError
from kafka_backup.repository import layout
from kafka_backup.repository.documents import sha256_of
from kafka_backup.repository.expiry import expired_group_snapshots
from kafka_backup.repository.group_documents import (
    GroupSnapshot,
    PositionsBefore,
    ResetPlan,
    ResetState,
    ResetStep,
)
from kafka_backup.repository.store import ObjectNotFoundError, Store, put_once, read_in_place

OPEN_STATES = ("applying", "applied", "rolling_back")
"""States of a reset after which something is still to be done."""


class GroupStore:
    """The group snapshots and resets of one repository. Safe for many threads."""

    def __init__(self, store: Store) -> None:
        """Prepare; nothing is read yet."""
        self._store = store

    def snapshot_ids(self) -> Sequence[str]:
        """Return the ids of all group snapshots that have not expired, oldest first.

        One that has may be there still. Among those that are left it would not be told that the one
        before a moment is not the right one, because a later one is gone.
        """
        expired = expired_group_snapshots(self._store)
        return [
            snapshot_id
            for info in self._store.list(layout.GROUPS)
            if (snapshot_id := layout.parse_group_snapshot_key(info.key)) is not None
            and snapshot_id not in expired
        ]

    def snapshot(self, snapshot_id: str) -> GroupSnapshot:
        """Return one group snapshot.

        Raises:
            ConfigurationError: there is none with this id.
            DamagedError: it is unreadable, or stored under another id.
        """
        try:
            key = layout.group_snapshot_key(snapshot_id)
            data = self._store.get(key)
        except (ValueError, ObjectNotFoundError):
            raise ConfigurationError(
                f"the repository at {self._store.url} holds no group snapshot {snapshot_id!r}"
            ) from None
        snapshot = GroupSnapshot.from_stored(data, key=f"{self._store.url}/{key}")
        if snapshot.snapshot_id != snapshot_id:
            raise DamagedError(
                f"{self._store.url}/{key} is group snapshot {snapshot.snapshot_id}; put the right object back "
                "from a copy"
            )
        return snapshot

    def put_snapshot(self, snapshot: GroupSnapshot) -> tuple[str, str]:
        """Store a group snapshot and return where it is, and the object's SHA-256.

        Raises:
            WriterConflictError: another one has the same id.
        """
        key = layout.group_snapshot_key(snapshot.snapshot_id)
        data = snapshot.to_stored()
        put_once(self._store, key, data)
        return f"{self._store.url}/{key}", sha256_of(data)

    def reset(self, reset_id: str) -> ResetFolder:
        """What is stored of one reset, existing or not.

        Raises:
            ConfigurationError: no reset can have this id.
        """
        return ResetFolder(self._store, reset_id)

    def resets(self) -> Mapping[str, str]:
        """Return the state of each reset, oldest first: its last step's, or ``planned``. One listing."""
        states: dict[str, str] = {}
        numbers: dict[str, int] = {}
        for info in self._store.list(layout.RESETS):
            reset_id = info.key.removeprefix(layout.RESETS).partition("/")[0]
            if not layout.is_reset_id(reset_id):
                continue
            states.setdefault(reset_id, "planned")
            if (parsed := layout.parse_reset_step_key(info.key)) is not None:
                _, number, state = parsed
                known = numbers.get(reset_id, 0)
                if number == known:
                    state = _winner([state, states[reset_id]])
                if number >= known:
                    numbers[reset_id], states[reset_id] = number, state
        return states


class ResetFolder:
    """What is stored of one reset of consumer groups: its plan, the positions before it, its steps."""

    def __init__(self, store: Store, reset_id: str) -> None:
        """Prepare; nothing is read yet.

        Raises:
            ConfigurationError: no reset can have this id.
        """
        if not layout.is_reset_id(reset_id):
            raise ConfigurationError(f"the repository at {store.url} holds no reset {reset_id!r}")
        self._store = store
        self.reset_id = reset_id

    def plan(self) -> ResetPlan | None:
        """Return the plan, None if there is none."""
        return _read_plan(self._store, layout.reset_plan_key(self.reset_id))

    def put_plan(self, plan: ResetPlan) -> None:
        """Store the plan; the same plan again does nothing.

        Raises:
            WriterConflictError: another run has taken the id.
        """
        put_once(self._store, layout.reset_plan_key(self.reset_id), plan.to_bytes())

    def before(self) -> PositionsBefore | None:
        """Return the positions before the reset, None if they were not taken yet."""
        return _read_before(self._store, layout.reset_before_key(self.reset_id))

    def put_before(self, before: PositionsBefore) -> None:
        """Store the positions before the reset, once and for all.

        Raises:
            WriterConflictError: another run has stored them.
        """
        put_once(self._store, layout.reset_before_key(self.reset_id), before.to_bytes())

    def steps(self) -> Sequence[ResetStep]:
        """Return the steps in order; of two with one number, the one that `put_step` let win.

        Raises:
            DamagedError: one is missing or unreadable.
        """
        found: dict[int, list[str]] = {}
        for info in self._store.list(layout.reset_folder(self.reset_id)):
            if (parsed := layout.parse_reset_step_key(info.key)) is not None:
                found.setdefault(parsed[1], []).append(parsed[2])
        steps = []
        for number in range(1, max(found, default=0) + 1):
            states = found.get(number, [])
            key = layout.reset_step_key(self.reset_id, number, _winner(states) if states else "applying")
            step = _read_step(self._store, key)
            if step is None:
                raise DamagedError(
                    f"step {number} of reset {self.reset_id} is missing; put it back from a copy"
                )
            steps.append(step)
        return steps

    def put_step(self, step: ResetStep) -> None:
        """Store the next step.

        Of two runs at work on one reset, each writes its next step; the way back beats a new try,
        which beats an outcome, and whoever loses is told.

        Raises:
            WriterConflictError: another run works on this reset.
        """
        put_once(self._store, layout.reset_step_key(self.reset_id, step.number, step.state), step.to_bytes())
        rivals = [
            state
            for state in _PRECEDENCE
            if self._store.size(layout.reset_step_key(self.reset_id, step.number, state)) is not None
        ]
        if _winner(rivals) != step.state:
            raise WriterConflictError(
                f"another run works on reset {self.reset_id} and is now {rivals[0]}; this one stops. Wait for the "
                "other to end, then look at the positions"
            )


ResetFlaw = Literal["unreadable", "missing", "foreign"]


def reset_flaws(store: Store) -> Iterator[tuple[ResetFlaw, str, str]]:
    """Check all resets: each document readable and in its place, and none missing that others need.

    Yields:
        The kind of flaw (``unreadable``, ``missing``, ``foreign``), the key, a sentence.
    """
    keys: dict[str, set[str]] = {}
    for info in store.list(layout.RESETS):
        reset_id = info.key.removeprefix(layout.RESETS).partition("/")[0]
        known = layout.is_reset_id(reset_id)
        try:
            if known and info.key == layout.reset_plan_key(reset_id):
                _read_plan(store, info.key)
            elif known and info.key == layout.reset_before_key(reset_id):
                _read_before(store, info.key)
            elif layout.parse_reset_step_key(info.key) is not None:
                _read_step(store, info.key)
            else:
                yield "foreign", info.key, "not a key of a reset; remove it"
                continue
        except DamagedError as error:
            yield "unreadable", info.key, str(error)
        keys.setdefault(reset_id, set()).add(info.key)
    for reset_id, found in keys.items():
        numbers = {parsed[1] for key in found if (parsed := layout.parse_reset_step_key(key)) is not None}
        needed = {layout.reset_plan_key(reset_id)}
        if numbers:
            needed.add(layout.reset_before_key(reset_id))
        for key in sorted(needed - found):
            yield (
                "missing",
                key,
                "later documents of this reset exist, this one does not; put it back from a copy",
            )
        for number in sorted(set(range(1, max(numbers, default=0))) - numbers):
            key = layout.reset_step_key(reset_id, number, "applying")
            yield "missing", key, f"step {number} does not exist, later ones do; put it back from a copy"


def _read_plan(store: Store, key: str) -> ResetPlan | None:
    return read_in_place(store, key, ResetPlan, lambda found: layout.reset_plan_key(found.reset_id))


def _read_before(store: Store, key: str) -> PositionsBefore | None:
    return read_in_place(store, key, PositionsBefore, lambda found: layout.reset_before_key(found.reset_id))


def _read_step(store: Store, key: str) -> ResetStep | None:
    return read_in_place(
        store, key, ResetStep, lambda found: layout.reset_step_key(found.reset_id, found.number, found.state)
    )


_PRECEDENCE: Sequence[ResetState] = (
    "rolling_back",
    "applying",
    "rolled_back",
    "failed",
    "verified",
    "applied",
)


def _winner(states: Sequence[str]) -> str:
    """Of steps with one number, the one that counts."""
    return min(states, key=lambda state: _PRECEDENCE.index(state) if state in _PRECEDENCE else -1)

"""What planning a restore finds out: problems, which forbid it, and notes, which must be seen."""

from __future__ import annotations

from kafka_backup.errors import AuthorizationError, DamagedError, KafkaBackupError, RefusedError
from kafka_backup.repository.restore_documents import Finding, RestorePlan

NOT_AUTHORIZED = "not_authorized"
_DAMAGED_OBJECTS = frozenset({"damaged_object", "missing_object"})
_DAMAGE = _DAMAGED_OBJECTS | {"damaged_log"}


class Findings:
    """Collects findings, so that a plan shows all of them at once.

    Attributes:
        problems: what forbids the restore.
        notes: what does not, but must not be overlooked.
    """

    def __init__(self) -> None:
        self.problems: list[Finding] = []
        self.notes: list[Finding] = []

    def problem(self, kind: str, topic: str | None, detail: str, partition: int | None = None) -> None:
        """Add what forbids the restore; see `Finding`."""
        self.problems.append(Finding(kind=kind, topic=topic, partition=partition, detail=detail))

    def note(self, kind: str, topic: str | None, detail: str, partition: int | None = None) -> None:
        """Add what must be seen; see `Finding`."""
        self.notes.append(Finding(kind=kind, topic=topic, partition=partition, detail=detail))


def refusal(plan: RestorePlan) -> KafkaBackupError | None:
    """The error that a plan's problems amount to, with all of them in it; None without problems.

    Of several kinds the one decides that must not be missed: damage, then refusals, then rights.
    """
    if not plan.problems:
        return None
    listed = "; ".join(problem.detail for problem in plan.problems)
    message = f"restore {plan.request.restore_id} cannot be carried out: {listed}"
    kinds = {problem.kind for problem in plan.problems}
    if kinds <= _DAMAGED_OBJECTS:
        message += ". Put the objects back from a copy of the repository" + (
            "" if plan.request.replace else ", or say --skip-damaged to go on without them"
        )
    if kinds & _DAMAGE:
        return DamagedError(message)
    return AuthorizationError(message) if kinds == {NOT_AUTHORIZED} else RefusedError(message)

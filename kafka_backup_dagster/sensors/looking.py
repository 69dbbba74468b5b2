"""What the sensors have in common: they end in time, and tell only what is new."""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import dagster as dg

from kafka_backup_dagster.errors import as_failure
from kafka_backup_dagster.interrupts import run_interruptibly

if TYPE_CHECKING:
    from kafka_backup import Engine, StopToken
    from kafka_backup_dagster.resources.resource import KafkaBackupResource

SECONDS = 35.0
"""Dagster gives a sensor 60 s; a question that has to stop is given 20 s more."""
REPEAT_SECONDS = 3_600
"""How often a check that goes on failing is told again, with its newest words."""
_VERSION = 1

_T = TypeVar("_T")


def look(resource: "KafkaBackupResource", question: Callable[["Engine", "StopToken"], _T]) -> _T:
    """Ask the engine something, in time.

    Raises:
        Failure: the engine's error, or no answer within `SECONDS`.
    """
    began = time.monotonic()

    def check_time() -> None:
        if time.monotonic() - began > SECONDS:
            raise dg.Failure(description=f"the cluster or the repository did not answer within {SECONDS:g} s")

    with as_failure(), resource.engine() as engine:
        return run_interruptibly(lambda stop: question(engine, stop), on_slice=check_time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """When each check was told last (s since the epoch), and whether it had passed. A sensor's cursor."""

    checks: Mapping[str, tuple[bool, float]]
    known: Collection[str] = ()

    @classmethod
    def of(cls, context: dg.SensorEvaluationContext) -> "Told":
        """Read the cursor; what cannot be read counts as nothing told yet."""
        try:
            found = json.loads(context.cursor or "{}")
            if found.get("version") == _VERSION:
                checks = {name: (bool(passed), float(at)) for name, (passed, at) in found["checks"].items()}
                return cls(checks=checks, known=tuple(found["known"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            context.log.warning(f"the sensor's cursor cannot be read and is begun anew: {error}")
        return cls(checks={})

    def news(
        self, evaluations: Sequence[dg.AssetCheckEvaluation], *, now: float
    ) -> tuple[Sequence[dg.AssetCheckEvaluation], Mapping[str, tuple[bool, float]]]:
        """Return what is worth an event, and what has been told then."""
        told, fresh = {}, []
        for each in evaluations:
            name = f"{each.asset_key.to_user_string()}:{each.check_name}"
            passed, at = self.checks.get(name, (None, 0.0))
            if passed != each.passed or (not each.passed and now - at >= REPEAT_SECONDS):
                fresh.append(each)
                at = now
            told[name] = (each.passed, at)
        return fresh, told

    @staticmethod
    def cursor(checks: Mapping[str, tuple[bool, float]], known: Collection[str] = ()) -> str:
        """Write a cursor."""
        return json.dumps({"version": _VERSION, "checks": checks, "known": sorted(known)})

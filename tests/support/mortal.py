"""The command line in a process that kills itself with SIGKILL at a named point.

`run` is for a process of its own (`tests.support.forked`). The points that `POINTS` names are put around methods of the
engine from here: the engine itself knows nothing of them.
"""

import fnmatch
import importlib
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kafka_backup.cli import main

_STORE = "kafka_backup.repository.file_store:FileWriter.commit"
_DELETE = "kafka_backup.repository.file_store:FileStore.delete"
_TOPICS = "kafka_backup.kafka.topics:TopicAdmin"
_GROUPS = "kafka_backup.kafka.groups:GroupClient"
_TRANSACTION = "kafka_backup.kafka.group_transaction:GroupTransaction"
_PRODUCER = "kafka_backup.kafka.produce:TopicProducer"
_DELETE_TOPIC = "kafka_backup.restore_in_place:delete_topic"


@dataclass(frozen=True)
class Point:
    """A call at which to die: the nth one of a method or function, in the place that matches, before or after its work."""

    method: str
    place: str = "*"
    count: int = 1
    before: bool = False


def _stored(place: str, count: int = 1) -> dict[str, Point]:
    """The points around an object that is stored."""
    return {"before": Point(_STORE, place, count, before=True), "after": Point(_STORE, place, count)}


_OBJECTS: Mapping[str, Mapping[str, Mapping[str, Point]]] = {
    "backup": {
        "the repository": _stored("*/repository.json"),
        "the group snapshot": _stored("*/groups/*"),
        "the first segment": _stored("*.log*"),
        "the fifth segment": _stored("*.log*", 5),
        "the commit": _stored("*/commits/*"),
        "the capture": _stored("*/captures/*"),
    },
    "restore": {
        "the plan": _stored("*/plans/*"),
        "the topic": {
            "before": Point(f"{_TOPICS}.create_topic", before=True),
            "after": Point(f"{_TOPICS}.create_topic"),
        },
        "the safe settings": {"after": Point(f"{_TOPICS}.alter_configs")},
        "the attempt": _stored("*/attempts/*"),
        "the first request": {
            "before": Point(f"{_PRODUCER}.send", before=True),
            "after": Point(f"{_PRODUCER}.send"),
        },
        "the twentieth request": {"after": Point(f"{_PRODUCER}.send", count=20)},
        "an acknowledgement": {"before": Point(f"{_PRODUCER}.receive", count=10, before=True)},
        "the last offset map": _stored("*/offset-map/*", 3),
        "the verification": _stored("*/verified.json"),
        "the saved settings": {"after": Point(f"{_TOPICS}.alter_configs", count=2)},
        "the report": _stored("*/reports/*"),
    },
    "replacement": {
        "the first commit of the final capture": {"after": Point(_STORE, "*/commits/*")},
        "the final capture": {"after": Point(_STORE, "*/captures/*")},
        "the plan": {"after": Point(_STORE, "*/plans/*")},
        "the first deletion": {"before": Point(_DELETE_TOPIC, before=True), "after": Point(_DELETE_TOPIC)},
        "the second deletion": {"after": Point(_DELETE_TOPIC, count=2)},
        "the first topic": {"after": Point(f"{_TOPICS}.create_topic")},
        "the third request": {"after": Point(f"{_PRODUCER}.send", count=3)},
        "the end of the transaction": {"after": Point(f"{_TRANSACTION}.commit")},
    },
    "positions": {
        "the saved settings": {"after": Point(f"{_TOPICS}.alter_configs", count=2)},
        "the reset": _stored("*/resets/*/plan.json"),
        "the positions before": _stored("*/before.json"),
        "the first step": _stored("*-applying.json"),
        "the groups": {
            "before": Point(f"{_TRANSACTION}.add", before=True),
            "after": Point(f"{_TRANSACTION}.add"),
        },
        "the end of the transaction": {
            "before": Point(f"{_TRANSACTION}.commit", before=True),
            "after": Point(f"{_TRANSACTION}.commit"),
        },
        "the proof": _stored("*-verified.json"),
        "the report": _stored("*/reports/*"),
    },
    "reset": {
        "the plan": _stored("*/resets/*/plan.json"),
        "the positions before": _stored("*/before.json"),
        "the first step": _stored("*-applying.json"),
        "the commit": {
            "before": Point(f"{_GROUPS}.commit", before=True),
            "after": Point(f"{_GROUPS}.commit"),
        },
        "the second step": _stored("*-applied.json"),
        "the proof": _stored("*-verified.json"),
    },
    "rollback": {
        "the first step": _stored("*-rolling_back.json"),
        "the commit": {
            "before": Point(f"{_GROUPS}.commit", before=True),
            "after": Point(f"{_GROUPS}.commit"),
        },
        "the deletion of a group": {
            "before": Point(f"{_GROUPS}.delete_groups", before=True),
            "after": Point(f"{_GROUPS}.delete_groups"),
        },
        "the last step": _stored("*-rolled_back.json"),
    },
    "expire": {
        "the expiry": _stored("*/expiries/*"),
        "the expire commit": _stored("*/commits/*"),
        "the sweep commit": _stored("*/commits/*", 2),
        "the first deletion": {"before": Point(_DELETE, before=True), "after": Point(_DELETE)},
        "the third deletion": {"after": Point(_DELETE, count=3)},
    },
}

POINTS: Mapping[str, Point] = {
    f"{command}: {when} {what}": point
    for command, objects in _OBJECTS.items()
    for what, points in objects.items()
    for when, point in points.items()
}
"""Every named point, by ``command: before/after what``."""


def found(point: Point) -> tuple[Any, str]:
    """The class or module, and the name of its method or function, at which to die.

    Raises:
        ImportError, AttributeError: the engine has no such method any more.
    """
    module, _, path = point.method.partition(":")
    owner, _, name = path.rpartition(".")
    holder: Any = importlib.import_module(module)
    if owner:
        holder = getattr(holder, owner)
    getattr(holder, name)
    return holder, name


def _arm(point: Point) -> None:
    holder, name = found(point)
    real: Callable[..., Any] = getattr(holder, name)
    calls = 0
    lock = threading.Lock()

    def mortal(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        place = str(getattr(self, "_path", args[0] if args else ""))
        with lock:
            if fnmatch.fnmatch(place, point.place):
                calls += 1
            dies = calls == point.count
            if dies and point.before:
                os.kill(os.getpid(), signal.SIGKILL)
        done = real(self, *args, **kwargs)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(holder, name, mortal)


def run(point: str | None, arguments: Sequence[str]) -> None:
    """Runs `kafka-backup ARGUMENT...`, until a point at which it dies, and ends the process."""
    if point is not None:
        _arm(POINTS[point])
    main(list(arguments), prog_name="kafka-backup")

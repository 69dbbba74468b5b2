"""Logs on stderr: lines for people, or one JSON object per line for programs.

What a capture tells is logged as it comes; whatever else the engine logs is added. No message, field or error
holds a secret: the engine keeps them out of all of these.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal

from pydantic import BaseModel

from kafka_backup.errors import KafkaBackupError
from kafka_backup.progress import BackupEvent, BackupProgress
from kafka_backup.times import format_time

Format = Literal["text", "json"]

_ROOT = logging.getLogger("kafka_backup")
_EVENTS = logging.getLogger("kafka_backup.events")
_PROGRESS_SECONDS = 10.0


def set_up(*, level: str, style: Format) -> None:
    """Send the package's logs to stderr; nobody else's, and nothing to other handlers."""
    handler = _StderrHandler()
    handler.setFormatter(_JsonFormatter() if style == "json" else _TextFormatter())
    _ROOT.handlers = [handler]
    _ROOT.setLevel(level.upper())
    _ROOT.propagate = False


def tear_down() -> None:
    """Undo `set_up`."""
    _ROOT.handlers = []
    _ROOT.setLevel(logging.NOTSET)
    _ROOT.propagate = True


def line(level: str, message: str, *, style: Format) -> str:
    """Return one line for stderr that is no log record: what the command itself has to say."""
    if style == "json":
        return json.dumps({"time": _now(), "level": level, "message": message})
    return f"error: {message}" if level == "error" else message


class EventLog:
    """Logs the events of a capture; how far a topic is only now and then."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def add(self, event: BackupEvent) -> None:
        """Log an event with all its fields."""
        if isinstance(event, BackupProgress):
            told = self._told.get(event.topic)
            if told is not None and time.monotonic() - told < _PROGRESS_SECONDS:
                return
            self._told[event.topic] = time.monotonic()
        _EVENTS.info("%s", _words(type(event).__name__), extra={"fields": _plain(event)})


def _words(name: str) -> str:
    """``TopicCommitted`` as ``topic committed``."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()


def _plain(value: Any) -> Any:
    """An event's content as JSON has it."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, KafkaBackupError):
        return {"kind": type(value).__name__, "message": str(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _now() -> str:
    return format_time(time.time_ns() // 1_000_000)


class _StderrHandler(logging.StreamHandler[Any]):
    """Writes to whatever stderr is at the moment: progress bars put themselves in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, _value: Any) -> None:
        raise AttributeError("it is always stderr")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        content: dict[str, Any] = {
            "time": format_time(round(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told = " ".join(f"{name}={_short(value)}" for name, value in _fields(record).items())
        head = f"{format_time(round(record.created * 1000))} {record.levelname.lower()}"
        text = f"{head}: {record.getMessage()}{' ' if told else ''}{told}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    found = getattr(record, "fields", None)
    return found if isinstance(found, dict) else {}


def _short(value: Any) -> str:
    """A field's value on a line for people: lists by their length."""
    if isinstance(value, list):
        return str(len(value))
    if isinstance(value, dict):
        return json.dumps(value.get("message", value), default=str)
    return json.dumps(value) if isinstance(value, str) and " " in value else str(value)

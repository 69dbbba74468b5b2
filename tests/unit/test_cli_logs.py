"""What the command line logs: for people one line each, for programs one JSON object per line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kafka_backup.cli import logs, main
from kafka_backup.engine import Engine
from kafka_backup.errors import UnreachableError
from kafka_backup.progress import (
    BackupEvent,
    BackupProgress,
    CaptureFinished,
    PartitionResult,
    TopicCommitted,
    TopicFailed,
)
from kafka_backup.repository.documents import LostSpan, Window

EVENTS: Sequence[BackupEvent] = (
    *(
        BackupProgress(
            capture="c1",
            topic="orders",
            offsets_done=n,
            offsets_total=9,
            records=n,
            raw_bytes=5 * n,
            seconds=1.0,
        )
        for n in range(1, 5)
    ),
    TopicCommitted(
        capture="c1",
        topic="orders",
        topic_id="AAAAAAAAAAAAAAAAAAAAAA",
        commit=3,
        commit_sha256="0" * 64,
        records=4,
        stored_bytes=10,
        raw_bytes=20,
        segments=1,
        partitions=(
            PartitionResult(
                partition=0,
                start=0,
                end=9,
                records=4,
                control=0,
                aborted=0,
                compacted=0,
                lost=5,
                lost_spans=(LostSpan(start=0, end=5, reason="retention"),),
            ),
        ),
        object_uri="file:///r/commit",
        seconds=1.5,
    ),
    TopicFailed(capture="c1", topic="bills", partition=7, error=UnreachableError("broker 1\nis gone")),
    CaptureFinished(
        capture="c1", status="partial", window=Window(start=1, end=2), recovery_point=5, seconds=2.0
    ),
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration, and an engine that tells these events."""

    def told(_engine: Engine, *_args: Any, **_options: Any) -> Iterator[BackupEvent]:
        logging.getLogger("kafka_backup.backup").info("tried again", extra={"fields": {"partition": 7}})
        yield from EVENTS

    monkeypatch.setattr(Engine, "backup", told)
    path = tmp_path / "kafka-backup.yaml"
    path.write_text(
        'cluster: {bootstrap_servers: "127.0.0.1:1"}\nrepository: {url: "memory://logs"}\n', encoding="utf-8"
    )
    return path


def call(config: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(config), *options, "backup"])


def test_every_line_is_a_json_object(config: Path) -> None:
    """What: everything on stderr under `--log-format json`: events, the engine's logs, the command's errors.

    Why: what collects logs parses line by line.
    Risk: one line of plain text, and the error in it is never found.
    """
    result = call(config, "--log-format", "json", "--log-level", "info")
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    messages = [line["message"] for line in lines]
    assert messages[:5] == [
        "tried again",
        "backup progress",
        "topic committed",
        "topic failed",
        "capture finished",
    ]
    by_message = {line["message"]: line for line in lines}
    assert by_message["tried again"]["partition"] == 7
    committed = by_message["topic committed"]
    assert (committed["topic"], committed["commit"], committed["capture"]) == ("orders", 3, "c1")
    assert committed["partitions"][0]["lost_spans"] == [{"start": 0, "end": 5, "reason": "retention"}]
    assert by_message["topic failed"]["error"] == {"kind": "UnreachableError", "message": "broker 1\nis gone"}
    assert by_message["capture finished"]["window"] == {"start": 1, "end": 2}
    assert [line["message"] for line in lines if line["level"] == "error"] == [
        "bills [7]: broker 1 is gone",
        "orders [0]: offsets [0, 5) are lost (retention)",
    ]


def test_people_get_one_line_each(config: Path) -> None:
    """What: the same as text, and nothing of it at the default level.

    Why: a person reads stderr beside the table.
    Risk: a log that hides the errors.
    """
    quiet = call(config).stderr.splitlines()
    assert quiet == [
        "error: bills [7]: broker 1 is gone",
        "error: orders [0]: offsets [0, 5) are lost (retention)",
    ]
    lines = call(config, "--log-level", "info").stderr.splitlines()
    assert lines[-2:] == quiet
    assert any("info: topic committed" in line and "topic=orders" in line for line in lines)
    assert any('error="broker 1\\nis gone"' in line for line in lines)


@pytest.mark.parametrize("option", ["--log-level", "--log-format"])
def test_wrong_options_are_refused(config: Path, option: str) -> None:
    """What: a level and a format that there are not.

    Why: a typo must not switch logs off.
    Risk: silence.
    """
    assert call(config, option, "loud").exit_code == 2


def test_nothing_stays_behind(config: Path) -> None:
    """What: the package's logger after a command.

    Why: the engine is a library; whoever uses it sets up its own logs.
    Risk: logs that go to a stream that is closed, or nowhere.
    """
    call(config, "--log-level", "debug")
    logger = logging.getLogger("kafka_backup")
    assert (logger.handlers, logger.level, logger.propagate) == ([], logging.NOTSET, True)
    logs.set_up(level="error", style="text")
    assert not logger.propagate
    logs.tear_down()

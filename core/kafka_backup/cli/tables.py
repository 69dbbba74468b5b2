"""What people see: tables made from the JSON documents, and progress bars."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.filesize import decimal

from kafka_backup.cli.answers import Document
from kafka_backup.progress import BackupProgress, RestoreProgress, VerifyProgress

# A program that asks for JSON, and watches no bars, does not wait until the rest of rich is loaded.
if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table

_SHOWN = 100
"""Characters of a key, value or header that a table shows."""


def _table(title: str, *columns: str) -> Table:
    """Make a table; a column whose name begins with ``#`` holds numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(
            column.removeprefix("#"), justify="right" if column.startswith("#") else "left", overflow="fold"
        )
    return table


def _count(number: int) -> str:
    return f"{number:,}"


def _window(window: dict[str, str] | None) -> str:
    return f"{window['start']}/{window['end']}" if window else ""


def _sum(parts: Iterable[Document], field: str) -> int:
    return sum(part[field] for part in parts)


def capture(document: Document) -> Table:
    """Show the answer to ``backup``."""
    table = _table(
        f"capture {document['capture']}: {document['status']} ({document['seconds']} s)",
        *("topic", "status", "#commit", "#partitions", "#records", "#raw", "#stored", "#lost"),
    )
    for topic in document["topics"]:
        parts = topic["partitions"]
        table.add_row(
            topic["topic"],
            topic["status"],
            "" if topic["commit"] is None else str(topic["commit"]),
            _count(len(parts)),
            _count(topic["records"]),
            decimal(topic["raw_bytes"]),
            decimal(topic["stored_bytes"]),
            _count(_sum(parts, "lost")),
        )
    if saved := document["groups"]:
        table.caption = (
            f"{_count(saved['positions'])} positions of {_count(saved['groups'])} consumer groups: "
            f"group snapshot {saved['snapshot']}"
        )
        table.caption_justify = "left"
    return table


def captures(document: Document) -> tuple[Table, Table]:
    """Show the answer to ``list``."""
    table = _table("captures", "capture", "started", "window", "status", "#topics", "#changed", "#failures")
    for entry in document["captures"]:
        table.add_row(
            entry["capture"],
            entry["started_at"],
            _window(entry["window"]),
            entry["status"] + (", expired" if entry["expired"] else ""),
            _count(entry["topics"]),
            _count(entry["changed"]),
            _count(len(entry["failures"])),
        )
    topics = _table("topics", "topic", "topic ids")
    for topic in document["topics"]:
        topics.add_row(topic["topic"], " ".join(topic["topic_ids"]))
    return table, topics


def losses(document: Document) -> Table:
    """Show the answer to ``losses``."""
    table = _table(
        "losses",
        *("capture", "topic", "topic id", "#commit", "#partition", "kind", "offsets", "reason", "accepted"),
    )
    for loss in document["losses"]:
        table.add_row(
            loss["capture"],
            loss["topic"],
            loss["topic_id"],
            str(loss["commit"]),
            str(loss["partition"]),
            loss["kind"],
            f"[{loss['start']}, {loss['end']})",
            loss["reason"],
            "yes" if loss["accepted"] else "no",
        )
    return table


def commits(document: Document) -> Table:
    """Show the answer to ``show``: one row for each partition of each commit."""
    table = _table(
        f"commits of {document['topic']}",
        *("topic id", "#commit", "committed", "capture", "#partition", "offsets", "#records", "#control"),
        *("#aborted", "#compacted", "#lost"),
    )
    for commit in document["commits"]:
        if commit["action"] != "capture":
            done = f"{commit['action']}: {_count(commit['expired'] or commit['swept'])} segments"
            table.add_row(
                commit["topic_id"], str(commit["commit"]), commit["committed_at"], commit["capture"], "", done
            )
        for part in commit["partitions"]:
            table.add_row(
                commit["topic_id"],
                str(commit["commit"]),
                commit["committed_at"],
                commit["capture"],
                str(part["partition"]),
                f"[{part['start']}, {part['end']})",
                *(_count(part[field]) for field in ("records", "control", "aborted", "compacted", "lost")),
            )
    return table


def expiry(document: Document) -> tuple[Table, ...]:
    """Show the answer to ``expire``."""
    summary = _table(f"expire: {document['status']}", "", "#")
    summary.add_row("captures that go", _count(document["expired"]))
    summary.add_row("objects deleted", _count(document["deleted_objects"]))
    summary.add_row("bytes freed", decimal(document["freed_bytes"]))
    if not document["topics"]:
        return (summary,)
    topics = _table(
        "topics",
        *("topic", "topic id", "#segments that expire", "#to delete", "#freed"),
        *("#kept for restores", "#unfinished"),
    )
    for topic in document["topics"]:
        topics.add_row(
            topic["topic"],
            topic["topic_id"],
            _count(topic["expires"]),
            _count(topic["deletes"]),
            decimal(topic["freed_bytes"]),
            _count(topic["kept_for_restores"]),
            _count(topic["unfinished"]),
        )
    return summary, topics


def records(document: Document) -> Table:
    """Show the answer to ``records``."""
    table = _table(
        f"{document['topic']} [{document['partition']}]: offsets [{document['start']}, {document['end']})",
        *("#offset", "time", "key", "value", "headers"),
    )
    for record in document["records"]:
        table.add_row(
            str(record["offset"]),
            record["time"] or "",
            _shown(record, "key"),
            _shown(record, "value"),
            " ".join(f"{_shown(header, 'key')}={_shown(header, 'value')}" for header in record["headers"]),
        )
    return table


def _shown(holder: Document, field: str) -> str:
    """Bytes for people: what is not text, or could be taken for something else, is marked; JSON has all of them."""
    encoding, text = holder[f"{field}_encoding"], holder[field]
    if encoding is None:
        return "null"
    printable = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text[:_SHOWN]
    )
    more = f"... ({_count(len(text))} characters)" if len(text) > _SHOWN else ""
    return ("base64:" if encoding == "base64" else "") + printable + more


def verification(document: Document) -> tuple[Table, ...]:
    """Show the answer to ``verify``."""
    summary = _table(f"verify: {document['status']}", "checked", "#count")
    for name in ("topics", "commits", "segments", "records"):
        if name in document:
            summary.add_row(name, _count(document[name]))
    return (summary, *_problems(document, "kind", "object", "detail"))


def _problems(document: Document, *columns: str) -> tuple[Table, ...]:
    return tuple(
        _findings(title, document[title], *columns) for title in ("problems", "notes") if document.get(title)
    )


def _findings(title: str, found: Iterable[Document], *columns: str) -> Table:
    table = _table(title, *columns)
    for one in found:
        table.add_row(*("" if one[column] is None else str(one[column]) for column in columns))
    return table


def plan(document: Document, *, bounded: bool) -> tuple[Table, ...]:
    """Show the answer to ``restore`` without ``--execute``.

    Args:
        document: the plan.
        bounded: its record counts are upper limits, because of time bounds, or of damage that is to be left out.
    """
    table = _table(
        f"plan of restore {document['restore_id']} into cluster {document['target_cluster']}"
        f"{_bounds(document)}: {document['status']}",
        *("topic", "target", "#partitions", "#records", "#bytes", "newest record"),
        *("#fast batches", "#slow batches"),
    )
    for topic in document["topics"]:
        parts = topic["partitions"]
        table.add_row(
            topic["source"],
            topic["target"] + _state(topic),
            _count(len(parts)),
            ("<= " if bounded else "") + _count(_sum(parts, "records")),
            decimal(_sum(parts, "raw_bytes")),
            max((part["newest"] for part in parts if part["newest"]), default=""),
            _count(_sum(parts, "fast_batches")),
            _count(_sum(parts, "slow_batches")),
        )
    return (
        table,
        *_steps(document),
        *_settings(document),
        *_planned_groups(document, bounded=bounded),
        *_problems(document, "kind", "topic", "partition", "detail"),
    )


def _planned_groups(document: Document, *, bounded: bool) -> tuple[Table, ...]:
    """Show where the positions of consumer groups will go."""
    if document["group_snapshot"] is None:
        return ()
    table = _table(
        f"positions of group snapshot {document['group_snapshot']} ({document['group_snapshot_taken_at']})",
        *(
            "group",
            "source",
            "#source offset",
            "target",
            "#partition",
            "#target offset",
            "#still to read",
            "remark",
        ),
    )
    for entry in document["groups"]:
        told = entry["after"] is not None
        remarks = (
            f"now {entry['source_group']}" if entry["source_group"] != entry["group"] else "",
            "beyond what was captured: to the end" if entry["clamped_from"] is not None else "",
        )
        table.add_row(
            _visible(entry["group"]),
            entry["source_topic"],
            str(entry["source_offset"]),
            entry["topic"],
            str(entry["partition"]),
            str(entry["after"]) if told else "by its records",
            ("" if told and not bounded else "<= ") + _count(entry["remaining"]),
            "; ".join(filter(None, remarks)),
        )
    return (table,)


def restored_groups(document: Document) -> tuple[Table, ...]:
    """Show what ``restore --execute`` did with the positions of consumer groups."""
    if document["group_snapshot"] is None:
        return ()
    return moves({"reset": document["rollback"], **document})


def _bounds(document: Document) -> str:
    return "".join(f", {word} {document[word]}" for word in ("from", "until") if document[word])


def _state(topic: Document) -> str:
    if topic["replaces"]:
        return " (holds records, is replaced)"
    return " (new)" if topic["creates_target"] else " (exists)"


def _steps(document: Document) -> tuple[Table, ...]:
    """Show what would be done in which order, where it is more than to write and to configure."""
    if all(step["action"] in ("create", "write", "configure") for step in document["steps"]):
        return ()
    table = _table("steps", "#step", "does", "topic")
    for number, step in enumerate(document["steps"], start=1):
        table.add_row(str(number), step["action"], step["topic"])
    return (table,)


def _settings(document: Document) -> tuple[Table, ...]:
    """Show the saved settings of each target, those that cannot be applied there included."""
    table = _table("settings", "target", "setting", "value", "applied")
    for topic in document["topics"]:
        for name, value in sorted({**topic["configuration"], **topic["not_applied"]}.items()):
            table.add_row(
                topic["target"], name, value, "no" if name in topic["not_applied"] else "at the end"
            )
    return (table,) if table.row_count else ()


def restoration(document: Document) -> Table:
    """Show the answer to ``restore --execute``."""
    table = _table(
        f"restore {document['restore_id']}: {document['status']} ({document['seconds']} s)",
        *("topic", "target", "#partition", "target offsets", "#records", "#fast batches", "#slow batches"),
        *("verified", "retention"),
    )
    for topic in document["topics"]:
        for part in topic["partitions"]:
            table.add_row(
                topic["source"],
                topic["target"],
                str(part["partition"]),
                f"[{part['target_start']}, {part['target_end']})",
                _count(part["records"]),
                _count(part["fast_batches"]),
                _count(part["slow_batches"]),
                "yes" if part["verified"] else "no",
                "held" if topic["retention_held"] else "applied",
            )
    table.caption = f"more of it in the repository: {document['page']}"
    table.caption_justify = "left"
    return table


def drill(document: Document) -> Table:
    """The captures that a drill restored."""
    table = _table(
        f"Drill {document['drill']}: {document['status']}",
        "capture",
        "began",
        "#topics",
        "#records",
        "#bytes",
        "#seconds",
        "verified",
    )
    for each in document["captures"]:
        table.add_row(
            each["capture"],
            each["captured_at"],
            _count(len(each["topics"])),
            _count(each["records"]),
            decimal(each["raw_bytes"]),
            f"{each['seconds']:.1f}",
            "yes" if each["problem"] is None else "NO",
        )
    return table


def released(document: Document) -> Table:
    """Show the answer to ``restore --release-retention``."""
    table = _table(f"retention of restore {document['restore_id']}", "target", "retention")
    for topic in document["topics"]:
        table.add_row(topic["target"], "applied")
    return table


def abandoned(document: Document) -> Table:
    """Show the answer to ``restore --abandon``."""
    table = _table(f"restore {document['restore_id']}: {document['status']}", "target", "state")
    state = (
        "whole" if document["status"] == "finished" else "may be incomplete; delete it if you do not need it"
    )
    for topic in document["topics"]:
        table.add_row(topic["target"], state)
    return table


def offsets(document: Document) -> Table:
    """Show the answer to ``offset-map``."""
    table = _table(
        f"{document['topic']} [{document['partition']}] in restore {document['restore_id']}",
        *("#source", "#target", "record"),
    )
    for entry in document["offsets"]:
        if entry["exact"]:
            record = "this one"
        elif entry["source"] is None:
            record = "none at this offset"
        else:
            record = "the next restored one, or the end" + (
                "; this one is missing: damaged" if entry["missing"] else ""
            )
        source = "" if entry["source"] is None else str(entry["source"])
        table.add_row(source, str(entry["target"]), record)
    return table


def positions(document: Document) -> Table:
    """Show the positions of a group snapshot: one row for each, and one for a group without any."""
    table = _table(
        f"group snapshot {document['snapshot']}: {document['status']}, taken {document['taken_at']}",
        *("group", "type", "state", "topic", "#partition", "#next offset", "remark"),
    )
    for group in document["groups"]:
        about = _visible(group["group"]), group["type"], group["state"]
        remark = group["error"] or group["note"] or ("" if group["offsets"] else "no positions")
        for offset in group["offsets"]:
            gone = "" if offset["topic_id"] else "the topic is not there, or hidden from us"
            table.add_row(*about, offset["topic"], str(offset["partition"]), str(offset["offset"]), gone)
        if not group["offsets"]:
            table.add_row(*about, "", "", "", remark)
    return table


def history_table(document: Document) -> Table:
    """Show the answer to ``groups show --at``."""
    table = _table(
        f"consumer groups at {document['at']}: {document['status']}",
        *("group", "topic", "#partition", "#next offset", "committed", "remark"),
    )
    for group in document["groups"]:
        for offset in group["offsets"]:
            table.add_row(
                _visible(group["group"]),
                offset["topic"],
                str(offset["partition"]),
                str(offset["offset"]),
                offset["committed_at"],
                offset["doubt"] or "",
            )
    return table


def group_snapshots(document: Document) -> tuple[Table, Table]:
    """Show the answer to ``groups list``."""
    table = _table("group snapshots", "snapshot")
    for entry in document["snapshots"]:
        table.add_row(entry["snapshot"])
    newest = _table(f"groups of {document['snapshot'] or 'none'}", "group", "type", "state", "#positions")
    for group in document["groups"]:
        newest.add_row(_visible(group["group"]), group["type"], group["state"], _count(group["positions"]))
    return table, newest


def moves(document: Document) -> tuple[Table, ...]:
    """Show the answer to ``groups reset`` and ``groups rollback``: where each position goes, or went."""
    table = _table(
        f"positions: {document['status']}"
        + (
            f" (groups rollback {document['rollback']} undoes it)"
            if document.get("reset") and document["rollback"]
            else ""
        ),
        *("group", "topic", "#partition", "#before", "#after", "#still to read", "remark"),
    )
    for entry in document["groups"]:
        remarks = [
            f"{entry['source_topic']} offset {entry['source_offset']}" if entry.get("source_topic") else "",
            f"clamped from {entry['clamped_from']}" if entry.get("clamped_from") is not None else "",
            entry["error"] or "",
        ]
        table.add_row(
            _visible(entry["group"]),
            entry["topic"],
            str(entry["partition"]),
            *("none" if entry[field] is None else str(entry[field]) for field in ("before", "after")),
            str(entry.get("remaining", "")),
            "; ".join(filter(None, remarks)),
        )
    return (table, *_problems(document, "kind", "group", "topic", "partition", "detail"))


def _visible(name: str) -> str:
    """A group's name with what a terminal would act upon escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name) or "''"


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.fields[told]}", markup=False),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr, markup=False, highlight=False, emoji=False),
        transient=True,
    )


class ProgressBars:
    """A bar on stderr for each topic at work; nothing where nobody watches.

    May be told from any thread.
    """

    def __init__(self, *, visible: bool) -> None:
        self._bars = _bars() if visible else None
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def backup(self, progress: BackupProgress) -> None:
        """Show how far a topic of a capture is."""
        told = (
            f"{decimal(progress.raw_bytes)}  {progress.records:,} records  "
            f"{decimal(int(progress.bytes_per_second))}/s  lag {progress.lag:,}"
        )
        self._show(progress.topic, progress.offsets_done, progress.offsets_total, told)

    def restore(self, progress: RestoreProgress) -> None:
        """Show how far a topic of a restore is."""
        label = f"{progress.phase} {progress.target}"
        rate = progress.raw_bytes / progress.seconds if progress.seconds > 0 else 0.0
        self._show(label, progress.records_done, progress.records_total, f"{decimal(int(rate))}/s")

    def verify(self, progress: VerifyProgress) -> None:
        """Show how far a verification is."""
        told = f"{decimal(progress.stored_bytes)}  {progress.segments:,} segments  {progress.topic}"
        self._show("verify", progress.topics_done, progress.topics_total, told)

    def _show(self, label: str, done: int, total: int, told: str) -> None:
        if self._bars is None:
            return
        with self._lock:
            if done >= total:
                if (task := self._tasks.pop(label, None)) is not None:
                    self._bars.remove_task(task)
                return
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(label, told="")
            self._bars.update(self._tasks[label], completed=done, total=total, told=told)

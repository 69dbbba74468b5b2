"""A restore's page for people, and the command that repeats it."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import Any

import dagster
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.cli import main
from kafka_backup.engine import Engine
from kafka_backup.errors import DamagedError, RefusedError
from kafka_backup.repository.documents import sha256_of
from kafka_backup.repository.layout import report_page_key
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import (
    Finding,
    MissingSpan,
    RenameRule,
    RestoredPartition,
    RestoredTopic,
    RestorePlan,
    RestoreReport,
    RestoreRequest,
)
from kafka_backup.repository.restore_folder import read_restore_document
from kafka_backup.restore_context import RestoreLimits
from kafka_backup.restore_page import command_of, page_of
from kafka_backup_dagster.jobs.restore import whole
from tests.unit.repositories import CLUSTER, TOPIC_ID, memory_store, replace_object

identifiers = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,20}", fullmatch=True)
topics = st.from_regex(r"[a-zA-Z0-9_*-]{1,20}", fullmatch=True).filter(lambda name: not name.startswith("-"))
times = st.none() | st.integers(-(2**62), 2**62)
requests = st.builds(
    RestoreRequest,
    restore_id=identifiers,
    topics=st.lists(topics | st.just("/^a b'\"$(x)/"), max_size=3).map(tuple),
    partitions=st.lists(st.integers(0, 9), max_size=2).map(tuple),
    rename=st.lists(
        st.builds(
            RenameRule,
            pattern=st.sampled_from(["(.*)", "a|b", "x=y", "a b"]),
            replacement=st.sampled_from(["", r"\1", "n"]),
        ),
        max_size=2,
    ).map(tuple),
    prefix=st.sampled_from(["", "p-", "restored."]),
    groups=st.lists(topics | st.just("/^a b'\"$(x)/"), max_size=2).map(tuple),
    rename_groups=st.lists(st.just(RenameRule(pattern="a (.*)", replacement=r"b=c \1"[:1])), max_size=1).map(
        tuple
    ),
    from_ms=times,
    until_ms=times,
    capture=st.none() | identifiers,
    incarnation=st.none() | identifiers,
    replication_factor=st.none() | st.integers(1, 9),
    original_offset_header=st.booleans(),
    original_timestamp_header=st.booleans(),
    replace=st.booleans(),
)
limits = st.builds(
    RestoreLimits,
    max_bytes_per_second=st.none() | st.integers(1, 2**40),
    max_records_per_second=st.none() | st.integers(1, 2**31),
)


class _Asked(Exception):
    """Ends the command once the engine was asked."""


@given(request=requests, limits=limits, skip_damaged=st.booleans())
def test_the_command_asks_for_the_same(
    request: RestoreRequest, limits: RestoreLimits, skip_damaged: bool
) -> None:
    """Tests that the command in a report, typed into a shell, asks the engine for the very same restore.

    It matters because on the next bad day somebody copies it from the last report.
    An option left out of it, or a name that a shell takes apart, restores something else.
    """
    if skip_damaged and request.replace:
        return
    seen: dict[str, Any] = {}

    class Recorder:
        def __enter__(self) -> Recorder:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def plan_restore(self, asked: RestoreRequest, *, skip_damaged: bool) -> RestorePlan:
            seen.update(request=asked, skip_damaged=skip_damaged)
            return _plan(request=asked)

        def restore(self, _plan: RestorePlan, *, limits: RestoreLimits, **_: object) -> None:
            seen["limits"] = limits
            raise RefusedError("enough")

    words = shlex.split(command_of(request, limits=limits, skip_damaged=skip_damaged))
    assert words[:2] == ["kafka-backup", "restore"]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(Engine, "open", lambda _config: Recorder())
        config = Path(folder, "kafka-backup.yaml")
        config.write_text("cluster: {bootstrap_servers: 'x:1'}\nrepository: {url: 'memory://x'}\n")
        result = CliRunner().invoke(main, ["--config", str(config), *words[1:]])
    assert result.exit_code == 5, result.output
    assert seen == {"request": request, "skip_damaged": skip_damaged, "limits": limits}


def _plan(**changes: object) -> RestorePlan:
    plan = RestorePlan(
        request=RestoreRequest(restore_id="r", until_ms=1_700_000_000_000),
        nonce="n",
        planned_at=1,
        repository_id="repository-1",
        target_cluster_id="cluster-2",
        topics=(),
        notes=(Finding(kind="lost", topic="orders", partition=3, detail="offsets [4, 5) were lost"),),
    )
    return plan.model_copy(update=changes)


def _report(**changes: object) -> RestoreReport:
    part = RestoredPartition(
        partition=0,
        records=1_234_567,
        fast_batches=89,
        slow_batches=10,
        raw_bytes=500_000_000,
        source_start=3,
        source_end=1_234_570,
        target_start=0,
        target_end=1_234_567,
        oldest=1_600_000_000_000,
        newest=1_700_000_000_000,
        digest="ab" * 32,
        produce_seconds=2.0,
        verify_seconds=1.0,
        verified=True,
    )
    topic = RestoredTopic(
        source="orders",
        target="restored-orders",
        target_topic_id=TOPIC_ID,
        partitions=(part,),
        configuration={"cleanup.policy": "compact|x"},
        not_applied={"min.insync.replicas": "2"},
        retention_held=True,
    )
    report = RestoreReport(
        restore_id="r",
        attempt=2,
        status="verified",
        started_at=1_700_000_000_000,
        verified_at=1_700_000_001_000,
        ended_at=1_700_000_002_000,
        target_cluster_id="cluster-2",
        topics=(topic,),
        seconds=2.0,
        command="kafka-backup restore --id r --execute",
    )
    return report.model_copy(update=changes)


def test_a_page_says_what_was_done() -> None:
    """Tests that the page holds ranges, counts, times, rates, digest, settings, the notes and what to do next.

    It matters because it is what somebody shows to whoever asks how much was lost.
    A page that says "verified" and nothing else is no proof.
    """
    page = page_of(_report(), _plan())
    for text in (
        "# Restore r: verified",
        "until 2023-11-14T22:13:20.000Z (inclusive)",
        "    kafka-backup restore --id r --execute",
        "[3, 1234570)",
        "[0, 1234567)",
        "1,234,567",
        "250.0 MB/s",
        "500.0 MB/s",
        "2020-09-13T12:26:40.000Z",
        "ab" * 32,
        "| cleanup.policy | compact&#124;x | yes |",
        "| min.insync.replicas | 2 | **no** |",
        "orders [3]: offsets [4, 5) were lost",
        "--release-retention r",
    ):
        assert text in page, text
    assert "Missing" not in page


def test_a_page_begins_with_what_is_missing() -> None:
    """Tests the page of a restore that left a damaged segment out: said in the title and listed exactly.

    It matters because an incomplete restore looks like a complete one from afar.
    Somebody would find out by a customer who is not there any more.
    """
    report = _report(status="incomplete")
    topic = report.topics[0]
    span = MissingSpan(start=100, end=250, records=150, segment="topics/x", damage="it was flipped")
    part = topic.partitions[0].model_copy(update={"missing": (span,)})
    report = report.model_copy(update={"topics": (topic.model_copy(update={"partitions": (part,)}),)})
    page = page_of(report, _plan())
    assert page.startswith("# Restore r: incomplete\n\n**Damaged segments were left out")
    assert "partition 0: source offsets [100, 250), up to 150 records" in page
    assert "it was flipped" in page
    with pytest.raises(
        dagster.Failure, match=r"incomplete:\nrestored-orders \[0\] lacks source offsets \[100, 250\)"
    ):
        whole(report)
    assert whole(_report()).status == "verified"


def test_a_page_is_proved_by_its_report() -> None:
    """Tests that a page is the one that its report names: another one is damage, one without a report is none yet.

    It matters because the page is what is printed and signed.
    Whoever changes a number in it would not be noticed.
    """
    store = memory_store()
    folder = Repository.open(store, cluster_id=CLUSTER, create=True).restore_folder("r")
    page = page_of(_report(), _plan())
    key = report_page_key("r", 2)
    folder.put_page(2, page.encode())
    assert read_restore_document(store, key) is None
    report = _report(page_sha256=sha256_of(page.encode()))
    folder.put_report(report)
    assert folder.report() == report
    assert folder.page(report) == page
    assert read_restore_document(store, key) == report
    replace_object(store, key, page.replace("1,234,567", "1,234,568").encode())
    with pytest.raises(DamagedError, match=key):
        read_restore_document(store, key)

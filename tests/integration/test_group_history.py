"""Where groups were at a moment: the captured log of their commits, against what the broker said at that moment."""

from __future__ import annotations

import datetime
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from kio.schema.offset_commit.v2.request import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from kio.schema.offset_commit.v2.response import OffsetCommitResponse

from kafka_backup.cli import main
from kafka_backup.kafka.settings import Address
from tests.support.engine import capture, open_engine
from tests.support.groups import (
    Positions,
    commit,
    filled_topic,
    group_client,
    open_offsets_transaction,
    positions,
    positions_of,
    read_and_commit,
    read_on,
    reset,
    states,
)
from tests.support.kafka_cluster import KafkaCluster
from tests.support.kafka_image import OLDEST, image
from tests.support.waiting import wait_for

OFFSETS = "__consumer_offsets"


@pytest.fixture(scope="module", params=["newest", "oldest"])
def broker(request: pytest.FixtureRequest) -> Iterator[KafkaCluster]:
    """A broker that looks for expired positions all the time."""
    chosen = image(OLDEST) if request.param == "oldest" else None
    with KafkaCluster(1, image=chosen, config={"offsets.retention.check.interval.ms": 300}) as cluster:
        yield cluster


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def quiet_moment() -> int:
    """A millisecond with nothing just before or after it: coordinators collect commits for some time."""
    began = now_ms()
    wait_for(lambda: now_ms() > began + 40)
    moment = now_ms()
    wait_for(lambda: now_ms() > moment + 40)
    return moment


def commit_that_expires(kafka: KafkaCluster, group: str, topic: str, offset: int) -> None:
    """Commits with a retention of one millisecond, as old clients could."""
    request = OffsetCommitRequest(
        group_id=group,  # type: ignore[arg-type]
        member_id="",
        retention_time=datetime.timedelta(milliseconds=1),  # type: ignore[arg-type]
        topics=(
            OffsetCommitRequestTopic(
                name=topic,  # type: ignore[arg-type]
                partitions=(
                    OffsetCommitRequestPartition(
                        partition_index=0,  # type: ignore[arg-type]
                        committed_offset=offset,  # type: ignore[arg-type]
                        committed_metadata="",
                    ),
                ),
            ),
        ),
    )
    with group_client(kafka) as client:
        place = client.coordinators.of_groups([group])[1][group]
        assert isinstance(place, Address)
        (answer,) = client.cluster.ask(place, request, OffsetCommitResponse).topics
        assert not answer.partitions[0].error_code


def test_offset_accuracy_against_consumer_offsets(broker: KafkaCluster, tmp_path: Path) -> None:
    """What: commits, rewinds, transactions, deletions and an expiry; the history at each moment in between.

    Why: "where was this group at 14:29" is only useful if it is what the broker said at 14:29.
    Risk: a transaction that counts before its marker, a deleted position that comes back, the wrong millisecond.
    """
    topic = filled_topic(broker, 2)
    prefix = f"history-{secrets.token_hex(4)}"
    plain, tx, gone, old = (f"{prefix}-{name}" for name in ("plain", "tx", "gone", "old"))
    groups = [plain, tx, gone, old]
    noted: list[tuple[int, dict[str, Positions]]] = []

    def note(*, stable: bool = True) -> None:
        if stable:
            seen = positions_of(broker, groups)
        else:  # as consumers see it that do not wait for the end of the transaction
            with group_client(broker) as client:
                found = client.fetch(groups, stable=False)
            seen = {
                group: {part: committed.offset for part, committed in offsets.items()}  # type: ignore[union-attr]
                for group, offsets in found.items()
            }
        moment = quiet_moment()
        noted.append((moment, {group: offsets for group, offsets in seen.items() if offsets}))

    servers = broker.bootstrap_servers
    commit(servers, plain, {(topic, 0): 5, (topic, 1): 1})
    commit(servers, gone, {(topic, 0): 9})
    note()
    read_and_commit(servers, tx, topic, 30)
    note()
    with open_offsets_transaction(servers, tx, {(topic, 0): 21, (topic, 1): 22}) as producer:
        note(stable=False)
        commit(servers, plain, {(topic, 0): 3})  # back
        note(stable=False)
        producer.commit_transaction(60)
        wait_for(lambda: positions(broker, tx).get((topic, 1)) == 22, what="the marker")
        note()
    with open_offsets_transaction(servers, tx, {(topic, 0): 29}) as producer:
        note(stable=False)
        producer.abort_transaction(60)
    wait_for(lambda: positions(broker, tx).get((topic, 0)) == 21, what="the abort marker")
    note()
    admin = broker.admin()
    admin.delete_consumer_groups([gone])[gone].result(30)
    note()
    commit_that_expires(broker, old, topic, 8)
    wait_for(lambda: old not in states(broker), 30, "the expiry")
    commit(servers, gone, {(topic, 1): 2})
    note()
    quiet_moment()

    with open_engine(broker, tmp_path, consumer_groups=[f"{prefix}-*"]) as engine:
        capture(engine, OFFSETS)
        for moment, seen in noted:
            history = engine.groups.history(moment, [f"{prefix}-*"])
            said = {
                group: {(p.state.topic, p.state.partition): p.state.committed_offset for p in found}
                for group, found in history.groups.items()
            }
            assert said == seen, noted.index((moment, seen))
            assert history.doubts == []
            assert all(p.doubt is None for found in history.groups.values() for p in found)
        assert engine.verify(level="data").status == "ok"
        listed = [stored.record for n in range(3) for stored in engine.stored_partition(OFFSETS, n).records()]
        assert all(record.key is None or len(record.key) > 4 for record in listed)  # markers are no records
        capture(engine, OFFSETS)
        moment, seen = noted[3]
        assert {
            (p.state.topic, p.state.partition): p.state.committed_offset
            for p in engine.groups.history(moment, [tx]).groups[tx]
        } == seen[tx]


def test_a_reset_to_a_moment_of_the_history(broker: KafkaCluster, tmp_path: Path) -> None:
    """What: a group reads on after a moment; it is put back to that moment, and reads the rest again.

    Why: that is what the history is for.
    Risk: the position of another moment, or that of the last capture.
    """
    topic, group = filled_topic(broker, 2), f"back-{secrets.token_hex(4)}"
    first = read_and_commit(broker.bootstrap_servers, group, topic, 25)
    then = positions(broker, group)
    moment = quiet_moment()
    second = read_and_commit(broker.bootstrap_servers, group, topic, 30)
    quiet_moment()
    with open_engine(broker, tmp_path) as engine:
        capture(engine, OFFSETS, topic)
        report = reset(engine, group, at_ms=moment)
        assert report.status == "verified"
        assert positions(broker, group) == then
        again = read_on(broker.bootstrap_servers, group, topic)
    everything = sorted(b"%d-%d" % (p, i) for p in range(2) for i in range(30))
    assert sorted([*first, *again[0], *again[1]]) == everything
    assert set(second) <= {*again[0], *again[1]}


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(folder / "kafka-backup.yaml"), *arguments])


def test_the_history_by_the_command_line(broker: KafkaCluster, tmp_path: Path) -> None:
    """What: groups show --at and groups reset --at; without the captured topic, and beyond it.

    Why: times are typed by hand on the bad day.
    Risk: an answer for a time that nobody has captured.
    """
    config: dict[str, object] = {
        "cluster": {"bootstrap_servers": broker.bootstrap_servers, "retry_seconds": 30},
        "repository": {"url": f"file://{tmp_path}/repository"},
    }
    (tmp_path / "kafka-backup.yaml").write_text(json.dumps(config))
    topic, group = filled_topic(broker), f"cli-{secrets.token_hex(4)}"
    commit(broker.bootstrap_servers, group, {(topic, 0): 17})
    moment = quiet_moment()
    commit(broker.bootstrap_servers, group, {(topic, 0): 4})
    quiet_moment()
    show = ("groups", "show", "--group", group, "--at")
    assert run(tmp_path, "backup", "--topic", topic).exit_code == 0
    early = run(tmp_path, *show, str(moment))
    assert (early.exit_code, OFFSETS in early.stderr) == (2, True)
    assert run(tmp_path, "backup", "--topic", topic, "--topic", OFFSETS).exit_code == 0
    shown = run(tmp_path, *show, str(moment), "--json")
    document = json.loads(shown.stdout)
    assert (shown.exit_code, document["snapshot"], document["status"]) == (0, None, "exact")
    ((row,),) = [each["offsets"] for each in document["groups"]]
    assert (row["topic"], row["partition"], row["offset"], row["doubt"]) == (topic, 0, 17, None)
    assert "17" in run(tmp_path, *show, str(moment)).stdout
    for arguments, words in (
        ((*show, str(now_ms() + 60_000)), "reaches to"),
        (("groups", "show", "--group", "no-such", "--at", str(moment)), "no-such"),
        ((*show, "yesterday"), "time"),
        ((*show, str(moment), "--snapshot", "x"), "--snapshot"),
        (("groups", "reset", "--group", "no-such", "--at", str(moment)), "no-such"),
    ):
        wrong = run(tmp_path, *arguments)
        assert (wrong.exit_code, words in wrong.stderr) == (2, True), (arguments, wrong.stderr)
    back = run(tmp_path, "groups", "reset", "--group", group, "--at", str(moment), "--execute", "--json")
    assert (back.exit_code, json.loads(back.stdout)["status"]) == (0, "verified")
    assert positions(broker, group) == {(topic, 0): 17}

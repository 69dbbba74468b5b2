"""`expire` and `records` on the command line, on repositories that need no broker."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kafka_backup.cli import main
from kafka_backup.records.codec import Record, encode_batch
from kafka_backup.records.compression import Codec
from kafka_backup.repository.store import Store
from kafka_backup.repository.stores import open_store
from tests.unit import histories
from tests.unit.repositories import batch, capture


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "kafka-backup.yaml"
    path.write_text(
        'cluster: {bootstrap_servers: "127.0.0.1:1", retry_seconds: 0.2}\n'
        f'repository: {{url: "file://{tmp_path}/repository"}}\n'
    )
    return path


@pytest.fixture
def store(config: Path) -> Store:
    return open_store(f"file://{config.parent}/repository")


def call(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(config), *arguments])


def answer(config: Path, *arguments: str, exit_code: int = 0) -> Any:
    result = call(config, *arguments, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def told(entry: Mapping[str, Any], name: str) -> bytes | None:
    """The bytes that the JSON says, as the help tells how to read it."""
    match entry[f"{name}_encoding"]:
        case None:
            assert entry[name] is None
            return None
        case "utf-8":
            return str(entry[name]).encode("utf-8")
        case encoding:
            assert encoding == "base64"
            return base64.b64decode(entry[name], validate=True)


bytes_or_none = st.none() | st.binary(max_size=12) | st.text(max_size=6).map(str.encode)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            bytes_or_none,
            bytes_or_none,
            st.lists(st.tuples(st.binary(max_size=5), bytes_or_none), max_size=3),
            st.integers(-1, 2**62),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_records_are_printed_without_loss(
    tmp_path_factory: pytest.TempPathFactory,
    made: list[tuple[bytes | None, bytes | None, list[tuple[bytes, bytes | None]], int]],
) -> None:
    """Whatever bytes a record has, they can be told exactly from its JSON.

    It matters because people look into a backup to see what is in it.
    Null could look like empty, binary like text, or two headers of one name become one.
    """
    folder = tmp_path_factory.mktemp("records")
    config = folder / "c.yaml"
    config.write_text(
        f'cluster: {{bootstrap_servers: "127.0.0.1:1"}}\nrepository: {{url: "file://{folder}/repository"}}\n'
    )
    expected = [
        Record(offset=offset, timestamp=timestamp, key=key, value=value, headers=tuple(headers))
        for offset, (key, value, headers, timestamp) in enumerate(made)
    ]
    capture(open_store(f"file://{folder}/repository"), {0: [encode_batch(expected)]})
    document = answer(config, "records", "orders", "--partition", "0")
    found = [
        Record(
            offset=entry["offset"],
            timestamp=entry["timestamp"],
            key=told(entry, "key"),
            value=told(entry, "value"),
            headers=tuple((told(each, "key") or b"", told(each, "value")) for each in entry["headers"]),
        )
        for entry in document["records"]
    ]
    assert found == expected
    assert (document["start"], document["end"], document["next_offset"]) == (0, len(made), None)


def test_records_from_an_offset_on(config: Path, store: Store) -> None:
    """Records begin with the offset asked for, or the next one, and say where to go on after the limit.

    It matters because nobody reads a partition from its beginning to see one record.
    A limit that is not said would pass for the end of the data.
    """
    capture(store, {0: [batch(0, 5) + batch(10, 5)], 1: []}, compression="zstd", capture_id="c1")
    capture(store, {0: [batch(15, 5, codec=Codec.LZ4)], 1: []}, capture_id="c2")

    def offsets(*arguments: str) -> tuple[list[int], int | None]:
        document = answer(config, "records", "orders", "--partition", "0", *arguments)
        return [entry["offset"] for entry in document["records"]], document["next_offset"]

    whole = [*range(5), *range(10, 20)]
    assert offsets() == (whole, None)
    assert offsets("--offset", "3", "--limit", "4") == ([3, 4, 10, 11], 12)
    assert offsets("--offset", "12", "--limit", "8") == (whole[7:], None)
    assert offsets("--offset", "7", "--limit", "1") == ([10], 11)
    assert offsets("--offset", "19") == ([19], None)
    assert offsets("--offset", "20") == ([], None)
    empty = answer(config, "records", "orders", "--partition", "1")
    assert (empty["records"], empty["start"], empty["end"]) == ([], 0, 0)
    result = call(config, "records", "orders", "--partition", "0", "--limit", "2")
    assert "there are more records, from offset 2 on" in result.stderr


def test_records_for_people(config: Path, store: Store) -> None:
    """The table shows text as it is, null as null, and marks what is not text.

    It matters because a terminal obeys what a record holds.
    A record could clear the screen, or pass for another one.
    """
    records = [
        Record(offset=0, timestamp=0, key=None, value=b"\x1b[2J", headers=((b"h", b"\xff"),)),
        Record(offset=1, timestamp=-1, key=b"", value="grüße".encode()),
        Record(offset=2, timestamp=-1, key=b"", value=b"x" * 1234),
    ]
    capture(store, {0: [encode_batch(records, log_append_time=None)]})
    shown = call(config, "records", "orders", "--partition", "0").stdout
    assert "\x1b" not in shown
    assert r"\x1b[2J" in shown
    assert "h=base64:/w==" in shown
    assert "grüße" in shown
    assert "x" * 100 + "... (1,234 characters)" in shown.replace("\n", "")
    assert "null" in shown


def test_log_append_time_is_named(config: Path, store: Store) -> None:
    """A record of a LogAppendTime topic has the broker's time, and says so.

    It matters because the two times mean different things.
    The time when a record was written would pass for the time of what it tells.
    """
    records = [Record(offset=0, timestamp=5, key=None, value=b"x")]
    capture(store, {0: [encode_batch(records, log_append_time=1000)]})
    (entry,) = answer(config, "records", "orders", "--partition", "0")["records"]
    assert (entry["timestamp"], entry["timestamp_type"]) == (1000, "LogAppendTime")
    assert entry["time"] == "1970-01-01T00:00:01.000Z"


def test_records_of_what_is_not_there(config: Path, store: Store) -> None:
    """A topic, partition or incarnation that is not in the repository is exit 2 with its name.

    It matters because names are typed by people.
    "No records" would be taken for an empty backup.
    """
    assert (
        "there is no repository"
        in answer(config, "records", "x", "--partition", "0", exit_code=2)["error"]["message"]
    )
    capture(store, {0: [batch(0, 1)]})
    for arguments, reason in [
        (("payments", "--partition", "0"), "no topic 'payments'"),
        (("../x", "--partition", "0"), "no topic '../x'"),
        (("orders", "--partition", "1"), "no partition 1 of orders"),
        (("orders", "--partition", "0", "--incarnation", "x"), "no incarnation 'x'"),
    ]:
        document = answer(config, "records", *arguments, exit_code=2)
        assert reason in document["error"]["message"]
        assert document["records"] == []


def test_records_of_a_topic_that_was_made_again(config: Path, store: Store) -> None:
    """Where an older incarnation holds records, the user must say which is meant.

    It matters because a client may have made a deleted topic again, empty.
    The backup would look empty on the day it is needed.
    """
    ids = [f"{number:022}" for number in range(2)]
    capture(store, {0: [batch(0, 3)]}, topic_id=ids[0], capture_id="c1", started_at=1)
    capture(store, {0: []}, topic_id=ids[1], capture_id="c2", started_at=2)
    document = answer(config, "records", "orders", "--partition", "0", exit_code=5)
    assert f"{ids[0]} (3 records), {ids[1]} (0 records)" in document["error"]["message"]
    for topic_id, count in zip(ids, (3, 0), strict=True):
        found = answer(config, "records", "orders", "--partition", "0", "--incarnation", topic_id)
        assert len(found["records"]) == count


def test_damage_is_exit_4(config: Path, store: Store) -> None:
    """A segment that was changed is exit 4, named, and none of its records is printed.

    It matters because what is printed is believed.
    A changed record would be printed as if it were the saved one.
    """
    log = capture(store, {0: [batch(0, 3)]})
    key = log.segments(0)[0].key
    data = store.get(key)
    store.delete(key)
    with store.create(key) as writer:
        writer.write(data[:-1] + bytes([data[-1] ^ 1]))
        writer.commit()
    document = answer(config, "records", "orders", "--partition", "0", exit_code=4)
    assert key in document["error"]["message"]
    assert document["records"] == []


def test_expire_is_dry_until_told(config: Path, store: Store) -> None:
    """`expire` says what would go; with --execute it goes, and a second time there is nothing to do.

    It matters because this is the only command that deletes.
    Looking at a plan would carry it out.
    """
    cluster = histories.Cluster()
    log = cluster.create("orders").logs[0]
    ids = []
    for _ in range(4):
        log.produce(5)
        log.delete_below(log.end - 10)
        ids.append(histories.capture(store, cluster))
    before = [(info.key, info.size) for info in store.list("")]
    dry = answer(config, "expire", "--keep-captures", "1")
    assert [(info.key, info.size) for info in store.list("")] == before
    assert (dry["status"], dry["expired"], dry["deleted_objects"]) == ("planned", 3, 2)
    done = answer(config, "expire", "--keep-captures", "1", "--execute")
    assert done == {**dry, "status": "done"}
    after = {info.key for info in store.list("")}
    gone = [(key, size) for key, size in before if key not in after]
    assert (len(gone), sum(size for _, size in gone)) == (done["deleted_objects"], done["freed_bytes"])
    again = answer(config, "expire", "--keep-captures", "1", "--execute")
    assert (again["status"], again["expired"], again["deleted_objects"], again["freed_bytes"]) == (
        "done",
        0,
        0,
        0,
    )
    listed = answer(config, "list")["captures"]
    assert [(entry["capture"], entry["expired"]) for entry in listed] == [
        *((each, True) for each in ids[:3]),
        (ids[3], False),
    ]
    commits = answer(config, "show", "orders")["commits"]
    assert [(c["action"], c["expired"], c["swept"]) for c in commits[4:]] == [
        ("expire", 2, 0),
        ("sweep", 0, 2),
    ]
    kept = answer(config, "records", "orders", "--partition", "0")
    assert [entry["offset"] for entry in kept["records"]] == list(range(10, 20))
    assert kept["start"] == 10
    assert answer(config, "verify", "--level", "data")["status"] == "ok"


def test_expire_for_people(config: Path, store: Store) -> None:
    """The table says what would go, and stderr that nothing was changed, and what an unfinished capture holds.

    It matters because people decide by what they see.
    "Nothing to delete" would be read where something waits for a capture to end.
    """
    cluster = histories.Cluster()
    log = cluster.create("orders").logs[0]
    for _ in range(3):
        log.produce(5)
        log.delete_below(log.end - 5)
        histories.capture(store, cluster)
    log.produce(5)
    histories.capture(store, cluster, commits=False, capture_id="running")
    result = call(config, "expire", "--keep-captures", "1")
    assert result.exit_code == 0
    assert "expire: planned" in result.stdout
    assert "orders" in result.stdout
    assert "nothing was changed; add --execute to do it" in result.stderr
    assert "1 objects may belong to a capture that still runs and stay" in result.stderr
    for command in ("list", "show orders"):
        assert call(config, *command.split()).exit_code == 0
    call(config, "expire", "--keep-captures", "1", "--execute")
    assert "expired" in call(config, "list").stdout
    assert "sweep: 2 segments" in call(config, "show", "orders").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("expire", "--keep-captures", "0"),
        ("expire", "--keep-days", "-1"),
        ("expire", "--keep-days", "soon"),
        ("expire", "everything"),
        ("records",),
        ("records", "orders"),
        ("records", "orders", "--partition", "x"),
        ("records", "orders", "--partition", "0", "--limit", "0"),
        ("records", "orders", "--partition", "0", "--offset", "-1"),
    ],
)
def test_wrong_input_changes_nothing(config: Path, store: Store, arguments: tuple[str, ...]) -> None:
    """A wrong argument is exit 2 before anything happens.

    It matters because a typing error must not delete.
    A number that could not be read would be taken for "not set", or for 0.
    """
    capture(store, {0: [batch(0, 3)]})
    before = [(info.key, info.size) for info in store.list("")]
    assert call(config, *arguments).exit_code == 2
    assert [(info.key, info.size) for info in store.list("")] == before

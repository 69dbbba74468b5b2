"""The command line as people and schedulers use it: a process, its output and its exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.support import topics
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.shell import Shell
from tests.support.topics import produce, read_topic
from tests.support.waiting import wait_for

BASE = 1_700_000_000_000


@pytest.fixture
def shell(kafka: KafkaCluster, tmp_path: Path) -> Shell:
    """A shell whose configuration names the broker."""
    return Shell(tmp_path, kafka.bootstrap_servers)


def new_topic(kafka: KafkaCluster, partitions: int = 1, *, name: str | None = None) -> str:
    """A topic that keeps records of 2023: the broker would delete them half a minute after its start."""
    return topics.new_topic(kafka, partitions, name=name, config={"retention.ms": -1})


def records(count: int) -> list[NewRecord]:
    return [NewRecord(f"v{i}".encode(), f"k{i}".encode(), timestamp=BASE + i * 1000) for i in range(count)]


def test_a_topic_goes_round_by_commands_alone(kafka: KafkaCluster, shell: Shell) -> None:
    """Backs up, lists, shows, verifies, plans, restores, proves and looks up offsets, each by its JSON.

    It is what somebody does on the day when Dagster is down as well.
    A command could print a success that the topic does not have, or a second document on stdout.
    """
    topic = new_topic(kafka, 2)
    produce(kafka.bootstrap_servers, topic, records(500), partition=0, codec="zstd")
    produce(kafka.bootstrap_servers, topic, records(20), partition=1)

    backup = shell.json("backup", "--topic", topic, spawn=True)
    (entry,) = backup["topics"]
    assert (backup["status"], backup["failures"]) == ("complete", [])
    assert (entry["topic"], entry["status"], entry["records"], entry["commit"]) == (
        topic,
        "committed",
        520,
        0,
    )
    assert [(p["start"], p["end"], p["records"]) for p in entry["partitions"]] == [(0, 500, 500), (0, 20, 20)]
    again = shell.json("backup", "--topic", topic, spawn=True)
    assert [(t["status"], t["commit"]) for t in again["topics"]] == [("unchanged", 0)]

    listed = shell.json("list", spawn=True)
    assert [c["capture"] for c in listed["captures"]] == [backup["capture"], again["capture"]]
    assert [t["topic"] for t in listed["topics"]] == [topic]
    (commit,) = shell.json("show", topic, spawn=True)["commits"]
    assert (commit["capture"], commit["records"], commit["lost"]) == (backup["capture"], 520, 0)
    assert commit["topic_id"] == entry["topic_id"]

    for level in ("structure", "data"):
        verified = shell.json("verify", "--level", level, spawn=True)
        assert (verified["status"], verified["problems"]) == ("ok", [])

    target = f"restored.{topic}"
    asked = ("restore", "--id", "r1", "--topic", topic, "--rename", r"(.*)=restored.\1")
    plan = shell.json(*asked, spawn=True)
    assert (plan["status"], plan["problems"], plan["topics"][0]["target"]) == ("planned", [], target)
    assert sum(p["records"] for p in plan["topics"][0]["partitions"]) == 520
    assert target not in kafka.admin().list_topics(timeout=60).topics

    done = shell.json(*asked, "--execute", spawn=True)
    assert (done["restore_id"], done["status"], done["groups"]) == ("r1", "verified", [])
    (restored,) = done["topics"]
    assert (restored["source"], restored["target"]) == (topic, target)
    assert [(p["records"], p["target_start"], p["target_end"]) for p in restored["partitions"]] == [
        (500, 0, 500),
        (20, 0, 20),
    ]
    assert all(p["verified"] and p["slow_batches"] == 0 for p in restored["partitions"])
    assert read_topic(kafka.bootstrap_servers, target) == read_topic(kafka.bootstrap_servers, topic)

    assert shell.json("verify", "--restore", "r1")["status"] == "ok"
    looked_up = shell.json(
        "offset-map", "--restore", "r1", "--topic", topic, "--partition", "0", "0", "499", "9999"
    )
    assert [(o["source"], o["target"], o["exact"]) for o in looked_up["offsets"]] == [
        (0, 0, True),
        (499, 499, True),
        (9999, 500, False),
    ]


def test_people_get_tables(kafka: KafkaCluster, shell: Shell) -> None:
    """Without --json every command prints a table with the names in full, and no progress in a pipe.

    Whoever reads it at night copies names and numbers from it.
    A table is cut to 80 columns when stdout is no terminal; bars would fill log files.
    """
    topic = new_topic(kafka, name=f"a-rather-long-topic-name-{os.getpid()}-{time.time_ns()}")
    produce(kafka.bootstrap_servers, topic, records(10))
    asked = ("restore", "--id", "r", "--topic", topic, "--prefix", "x.")
    for arguments, words in (
        (("backup", "--topic", topic), ["complete", topic, "10"]),
        (("list",), ["complete", topic]),
        (("show", topic), [topic, "[0, 10)"]),
        (("verify",), ["ok"]),
        (asked, ["planned", f"x.{topic} (new)"]),
        ((*asked, "--execute"), ["verified", f"x.{topic}", "[0, 10)", "yes"]),
        (("offset-map", "--restore", "r", "--topic", topic, "--partition", "0", "7"), ["7", "this one"]),
    ):
        done = shell.run(*arguments)
        assert [word for word in words if word not in done.stdout] == [], done.stdout
        assert done.stderr in ("", "nothing was changed; add --execute to do it\n")


def test_time_bounds_are_inclusive_on_the_command_line(kafka: KafkaCluster, shell: Shell) -> None:
    """Restores what lies between two times, one written with an offset and one in milliseconds.

    A point in time is typed by hand; both forms must mean the same instant, to the millisecond.
    An exclusive end would lose the last record before the accident.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, records(20))
    shell.json("backup", "--topic", topic)
    done = shell.json(
        *("restore", "--id", "r", "--topic", topic, "--prefix", "x.", "--execute"),
        *("--from", "2023-11-14T23:13:25+01:00", "--until", str(BASE + 10_000)),
    )
    assert [p["records"] for p in done["topics"][0]["partitions"]] == [6]
    assert [r.value for r in read_topic(kafka.bootstrap_servers, f"x.{topic}")[0]] == [
        f"v{i}".encode() for i in range(5, 11)
    ]


def test_a_filled_target_is_exit_5(kafka: KafkaCluster, shell: Shell) -> None:
    """Refuses a target that holds records, in the plan and when executing, and writes nothing to it.

    Two topics in one cannot be taken apart again.
    The plan could only warn, and --execute go on.
    """
    topic, target = new_topic(kafka), new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, records(5))
    produce(kafka.bootstrap_servers, target, records(1))
    shell.json("backup", "--topic", topic)
    for execute in ([], ["--execute"]):
        plan = shell.json(
            "restore", "--id", "r", "--topic", topic, "--rename", f"{topic}={target}", *execute, code=5
        )
        assert plan["status"] == "refused"
        assert [(p["kind"], p["partition"]) for p in plan["problems"]] == [("target_not_empty", 0)]
    assert len(read_topic(kafka.bootstrap_servers, target)[0]) == 1


def test_a_topic_that_does_not_exist_is_exit_2(kafka: KafkaCluster, shell: Shell) -> None:
    """Names the missing topic, the missing repository, restore or capture, with exit 2.

    A slip in a name must not become an empty success.
    A missing object in the repository could pass for damage, or for a bug.
    """
    topic = new_topic(kafka)
    assert "no-such-topic" in shell.run("backup", "--topic", "no-such-topic", code=2).stderr
    assert "repository" in shell.run("list", code=2).stderr
    assert not shell.repository.exists()
    shell.run("backup", "--topic", topic)
    before = shell.files()
    for arguments in (
        ("show", "no-such-topic"),
        ("verify", "--topic", "no-such-topic"),
        ("verify", "--restore", "no-such-restore"),
        ("restore", "--id", "r", "--topic", "no-such-topic", "--execute"),
        ("restore", "--id", "r", "--capture", "no-such-capture", "--execute"),
        ("restore", "--release-retention", "no-such-restore"),
        ("offset-map", "--restore", "no-such-restore", "--topic", topic, "--partition", "0", "0"),
    ):
        wrong = shell.run(*arguments, code=2)
        assert re.search(r"^error: .*no-such-", wrong.stderr, re.MULTILINE)
        assert wrong.stdout == ""
    assert shell.files() == before


def test_damage_is_exit_4(kafka: KafkaCluster, shell: Shell) -> None:
    """One flipped bit in a segment makes verify and restore end with 4, naming the object.

    It is the reason why there is a verify at all.
    A check of sizes alone would call the repository sound, and the restore would spread the damage.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, records(50), codec="lz4")
    shell.json("backup", "--topic", topic)
    (segment,) = shell.segments()
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.chmod(0o600)
    segment.write_bytes(data)
    found = shell.json("verify", "--level", "data", code=4)
    assert found["status"] == "damaged"
    assert [segment.name in p["object"] for p in found["problems"]] == [True]
    asked = ("restore", "--id", "r", "--topic", topic, "--prefix", "x.", "--execute")
    assert segment.name in shell.json(*asked, code=4)["error"]["message"]


@pytest.mark.parametrize("arguments", [["backup"], ["restore", "--id", "r"]])
def test_no_broker_is_exit_3_in_bounded_time(kafka: KafkaCluster, shell: Shell, arguments: list[str]) -> None:
    """With nobody at the broker's address, ends with 3 and names the address, soon after retry_seconds.

    "Try again later" is for a scheduler to do, not for a process that hangs.
    Client libraries retry for ever by default.
    """
    shell.run("backup", "--topic", new_topic(kafka))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        shell.configure(address)
        began = time.monotonic()
        document = shell.json(*arguments, code=3)
        assert time.monotonic() - began < 60
    assert document["error"]["kind"] == "unreachable"
    assert address in document["error"]["message"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_backup_with_130(kafka: KafkaCluster, shell: Shell, number: signal.Signals) -> None:
    """A signal in the middle of a capture stops it cleanly; the next run completes it.

    Operators press Ctrl-C, orchestrators send SIGTERM.
    A stop could leave half a commit, a stack trace, or a process that does not end.
    """
    topic = new_topic(kafka)
    value = os.urandom(50_000)
    produce(kafka.bootstrap_servers, topic, [NewRecord(value, None) for _ in range(4000)])
    settings = {"topics": [topic], "segment_bytes": "1MiB", "compression": "none"}
    # However fast the machine: it has not ended when the signal comes.
    shell.configure(kafka.bootstrap_servers, max_bytes_per_second="4MiB", **settings)
    with shell.start("backup", "--json") as process:
        wait_for(lambda: shell.segments() or process.poll() is not None, what="the first segment")
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    document = json.loads(out)
    assert (document["status"], document["error"]["kind"]) == ("interrupted", "cancelled")
    assert "Traceback" not in err
    shell.configure(kafka.bootstrap_servers, **settings)
    (entry,) = shell.json("backup")["topics"]
    assert entry["partitions"][0]["end"] == 4000
    verified = shell.json("verify", "--level", "data")
    assert verified["status"] == "ok"
    assert sum(c["records"] for c in shell.json("show", topic)["commits"]) == 4000


def test_a_second_signal_ends_it_at_once(shell: Shell) -> None:
    """While the command waits for a broker that accepts and never answers, two signals end it with 130.

    Somebody who presses Ctrl-C twice means it.
    A thread inside a client library would keep the process alive for its whole timeout.
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        shell.configure(f"127.0.0.1:{silent.getsockname()[1]}")
        with shell.start("backup", "--json") as process:
            silent.settimeout(60)
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            assert process.stderr.readline().startswith("stopping")
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
            connection.close()
    assert process.returncode == 130
    assert json.loads(out)["error"]["kind"] == "cancelled"


def test_a_reader_that_goes_away_is_harmless(kafka: KafkaCluster, shell: Shell) -> None:
    """When nobody reads stdout any more, the backup is made and ends with 0.

    ``kafka-backup backup | head`` must not lose a capture.
    Python reports a broken pipe as an error, and once more when it ends.
    """
    topic = new_topic(kafka)
    for option in ([], ["--json"]):
        with shell.start("backup", "--topic", topic, *option) as process:
            assert process.stdout is not None
            process.stdout.close()
            assert process.stderr is not None
            assert process.stderr.read() == ""
        assert process.returncode == 0
    assert len(shell.json("list")["captures"]) == 2

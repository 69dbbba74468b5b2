"""Captures that are killed, frozen, overtaken, or have no room: what is committed stays, and the next run goes on."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord, renumbered
from tests.support.shell import COMMAND, Shell
from tests.support.topics import new_topic, produce, read_topic
from tests.support.waiting import wait_for

SEGMENT = 1 << 20
_OFTEN = f"""
import kafka_backup.backup
kafka_backup.backup.COMMIT_BYTES = {3 * SEGMENT}
from kafka_backup.cli import main
main()
"""
"""The command line, but a topic is committed each 3 MiB."""


@pytest.fixture
def shell(kafka: KafkaCluster, tmp_path: Path) -> Shell:
    return Shell(
        tmp_path, kafka.bootstrap_servers, retry_seconds=30, segment_bytes="1MiB", compression="none"
    )


def fill(kafka: KafkaCluster, topic: str, *, megabytes: int) -> None:
    """Random records of 50 kB, in both partitions."""
    for partition in range(2):
        values = [NewRecord(os.urandom(50_000), None) for _ in range(megabytes * 10)]
        produce(kafka.bootstrap_servers, topic, values, partition=partition)


def capture_freely(shell: Shell, kafka: KafkaCluster, topic: str, **more: object) -> None:
    """Captures of `topic` take as little time as they can."""
    shell.configure(
        kafka.bootstrap_servers,
        retry_seconds=30,
        topics=[topic],
        segment_bytes="1MiB",
        compression="none",
        **more,
    )


def capture_slowly(shell: Shell, kafka: KafkaCluster, topic: str) -> None:
    """Captures take seconds: what is to be struck in the middle must not have ended before."""
    capture_freely(shell, kafka, topic, max_bytes_per_second="4MiB")


def start_often(shell: Shell, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _OFTEN, *arguments],
        cwd=shell.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def accounts_for_everything(shell: Shell, topic: str, counts: dict[int, int]) -> None:
    """Each commit begins where the one before ended, and together they hold each record once."""
    ends: dict[int, int] = {}
    records = 0
    for commit in shell.json("show", topic)["commits"]:
        for part in commit["partitions"]:
            assert part["start"] == ends.get(part["partition"], 0)
            ends[part["partition"]] = part["end"]
            records += part["records"]
    assert ends == counts
    assert records == sum(counts.values())
    assert shell.json("verify", "--level", "data")["status"] == "ok"


def test_killed_at_any_moment(kafka: KafkaCluster, shell: Shell) -> None:
    """Tests captures that are killed one after the other, each a few objects later than the last, then one that is not.

    It matters because machines lose power and containers are killed without a word.
    A record could be in two commits or in none, or an object that was half written be taken for a whole one.
    """
    topic = new_topic(kafka, 2)
    fill(kafka, topic, megabytes=12)
    capture_slowly(shell, kafka, topic)
    kills = 0
    for more in (0, 1, 2, 3, 5, 8, 11, 14):
        # Temporary files count too: some of the kills come in the middle of a write.
        before = len(shell.files())
        with start_often(shell, "backup", "--json") as process:
            wait_for(
                lambda: len(shell.files()) > before + more or process.poll() is not None,  # noqa: B023
                60,
                "objects of a capture",
            )
            process.kill()
            process.communicate(timeout=30)
        kills += process.returncode == -signal.SIGKILL
        if (shell.repository / "repository.json").exists():
            assert shell.json("verify", "--level", "data")["status"] == "ok"
    assert kills >= 5
    capture_freely(shell, kafka, topic)
    assert [path for path in shell.files() if path.name.startswith("tmp~")]
    shell.json("backup")
    accounts_for_everything(shell, topic, {0: 120, 1: 120})
    shell.json("expire", "--execute")
    shell.json("restore", "--id", "r", "--topic", topic, "--prefix", "x-", "--execute")
    held, restored = (read_topic(kafka.bootstrap_servers, name) for name in (topic, f"x-{topic}"))
    assert {p: renumbered(records) for p, records in restored.items()} == held
    named = sum(commit["segments"] for commit in shell.json("show", topic)["commits"])
    assert len(shell.segments()) == named
    assert not [path for path in shell.files() if path.name.startswith("tmp~")]


@pytest.mark.parametrize("meanwhile", ["backup", "expire"])
def test_a_frozen_capture_wakes_up_too_late(kafka: KafkaCluster, shell: Shell, meanwhile: str) -> None:
    """Tests a capture that is frozen in the middle while another one runs, or an expiry that sweeps: it stops with 5.

    It matters because virtual machines are frozen for minutes, and schedules overlap.
    Both could commit the same records, or a commit name segments that were swept away.
    """
    topic = new_topic(kafka, 2)
    capture_freely(shell, kafka, topic)
    produce(kafka.bootstrap_servers, topic, [NewRecord(b"first", None)])
    shell.json("backup")
    fill(kafka, topic, megabytes=8)
    known = len(shell.segments())
    capture_slowly(shell, kafka, topic)
    with shell.start("backup", "--json") as process:
        wait_for(lambda: len(shell.segments()) > known, 60, "the first segment")
        process.send_signal(signal.SIGSTOP)
        try:
            capture_freely(shell, kafka, topic)
            if meanwhile == "backup":
                assert shell.json("backup")["status"] == "complete"
            else:
                left_alone = shell.json("expire", "--execute")
                assert left_alone["deleted_objects"] == 0
                assert left_alone["topics"][0]["unfinished"] > 0
                assert shell.json("expire", "--unfinished", "--execute")["deleted_objects"] > 0
        finally:
            process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    document = json.loads(out)
    assert document["error"]["kind"] == "writer_conflict"
    assert topic in document["error"]["message"]
    assert shell.json("backup")["status"] == "complete"
    accounts_for_everything(shell, topic, {0: 81, 1: 80})


def test_a_file_that_may_not_grow(kafka: KafkaCluster, shell: Shell) -> None:
    """Tests a capture whose files may have 300 kB at most, as on a disk that is full: exit 3, and nothing half-done.

    It matters because disks fill up at night.
    A segment that was cut off could be committed.
    """
    topic = new_topic(kafka, 2)
    fill(kafka, topic, megabytes=2)
    shell.configure(kafka.bootstrap_servers, retry_seconds=3, segment_bytes="1MiB", compression="none")
    done = subprocess.run(
        [*COMMAND, "backup", "--topic", topic, "--json"],
        cwd=shell.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        # What coverage writes when it ends would be cut off as well, and spoil what all tests have found out.
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    assert done.returncode == 3, done.stderr
    assert "make room" in done.stderr
    assert shell.segments() == []
    assert not [path for path in shell.files() if path.name.startswith("tmp~")]
    assert shell.json("backup", "--topic", topic)["status"] == "complete"
    accounts_for_everything(shell, topic, {0: 20, 1: 20})


def _own_mounts() -> list[str]:
    """A command that may mount file systems of its own, as root or as whoever the system lets."""
    if shutil.which("unshare") is None:
        pytest.skip("needs Linux: a disk of its own for the test")
    for command in (["unshare", "--mount"], ["unshare", "-rm"], ["sudo", "-n", "unshare", "--mount"]):
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    pytest.skip("needs the right to mount a file system (unshare)")


def test_a_full_disk(kafka: KafkaCluster, shell: Shell) -> None:
    """Tests a capture onto a disk that is too small, then the same onto the same disk made larger.

    It matters because a disk fills up between any two bytes, also those of a commit.
    What was committed before could be lost, or the next run begin anew beside it.
    """
    topic = new_topic(kafka, 2)
    fill(kafka, topic, megabytes=10)
    shell.configure(
        kafka.bootstrap_servers, retry_seconds=5, topics=[topic], segment_bytes="1MiB", compression="none"
    )
    shell.repository.mkdir()
    often = f"{sys.executable} -c '{_OFTEN}'"
    script = f"""
        mount -t tmpfs -o size=9m,mode=777 tmpfs {shell.repository}
        {often} backup --json >full.json 2>full.err; echo $? >full.code
        {often} verify --level data --json >verified.json; echo $? >verified.code
        find {shell.repository} -name 'tmp~*' >left
        mount -o remount,size=64m {shell.repository}
        {often} backup --json >larger.json; echo $? >larger.code
        cp -r {shell.repository} {shell.folder}/copy
    """
    subprocess.run(
        [*_own_mounts(), "bash", "-c", script], cwd=shell.folder, check=True, timeout=240, capture_output=True
    )

    def said(name: str) -> Any:
        return json.loads((shell.folder / f"{name}.json").read_text())

    assert (shell.folder / "full.code").read_text().strip() == "3", (shell.folder / "full.err").read_text()
    assert "make room" in (shell.folder / "full.err").read_text()
    assert (shell.folder / "left").read_text() == ""
    assert (shell.folder / "verified.code").read_text().strip() == "0"
    assert said("verified")["status"] == "ok"
    assert 0 < said("verified")["records"] < 200
    assert (shell.folder / "larger.code").read_text().strip() == "0"
    assert said("larger")["status"] == "complete"
    shell.repository.rmdir()
    (shell.folder / "copy").rename(shell.repository)
    accounts_for_everything(shell, topic, {0: 100, 1: 100})

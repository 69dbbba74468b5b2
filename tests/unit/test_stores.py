"""The stores on this machine: files, memory, and that of the other tests. The same contract runs on S3 in tests/integration."""

from __future__ import annotations

import errno
import os
import resource
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from kafka_backup.errors import ConfigurationError, UnreachableError
from kafka_backup.repository import cloud_store as clouds
from kafka_backup.repository import file_store as files
from kafka_backup.repository.store import ObjectExistsError, Store, put_once
from kafka_backup.repository.stores import open_store
from tests.unit.faults import Fault, FaultyStore
from tests.unit.repositories import memory_store
from tests.unit.store_contract import StoreContract, put


@pytest.fixture
def file_store(tmp_path: Path) -> Store:
    return open_store((tmp_path / "not" / "yet there").as_uri())


class TestFileStore(StoreContract):
    @pytest.fixture
    def store(self, file_store: Store) -> Store:
        return file_store


def cloud_store() -> Store:
    """What talks to S3, GCS and Azure, with memory behind it."""
    return open_store(f"memory://{secrets.token_hex(8)}")


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return cloud_store()


class TestPlainStore(StoreContract):
    """The one that the other tests use."""

    @pytest.fixture
    def store(self) -> Store:
        return memory_store()


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_of_racing_writers_exactly_one_wins(kind: str, file_store: Store) -> None:
    """Eight threads commit the same key at the same moment, fifty times.

    It matters because this is the whole lock of the repository.
    With two winners one run's commit would vanish, with none nobody could ever commit.
    """
    store = file_store if kind == "file" else cloud_store()
    writers = 8
    barrier = threading.Barrier(writers)

    def race(writer: int, round_: int) -> bool:
        with store.create(f"folder-{round_}/1.json") as one:
            one.write(b"%d" % writer)
            barrier.wait()
            try:
                one.commit()
            except ObjectExistsError:
                return False
            return True

    with ThreadPoolExecutor(writers) as pool:
        for round_ in range(50):
            won = list(pool.map(race, range(writers), [round_] * writers))
            assert won.count(True) == 1
            assert store.get(f"folder-{round_}/1.json") == b"%d" % won.index(True)
    assert len(list(store.list(""))) == 50


@pytest.mark.parametrize("fault", [Fault.ANSWER_LOST, Fault.TOLD_TWICE, Fault.FAILS])
def test_a_lost_acknowledgement_is_no_conflict(fault: Fault) -> None:
    """A commit whose answer is lost is found to be our own, at once or when it is tried again.

    It matters because networks lose answers, and obstore then reports "already exists" for our own object.
    The run would stop with "another writer" at its own commit.
    """
    store = cloud_store()
    commit_call = 3
    faulty = FaultyStore(store, fault, at=commit_call)
    try:
        result = put_once(faulty, "1.json", b"ours")
    except UnreachableError:
        result = put_once(store, "1.json", b"ours")
    assert result == ("created" if fault is Fault.FAILS else "ours")
    assert store.get("1.json") == b"ours"


def test_a_collision_that_stored_nothing_is_tried_again() -> None:
    """ "Already exists" where nothing is stored makes put_once try again, and not forever.

    It matters because S3 answers 409 to both of two writers that collide.
    Both would stop, or hang, although the place is free.
    """
    store = cloud_store()
    refusals = 3

    class Colliding(FaultyStore):
        def create(self, key: str):  # type: ignore[no-untyped-def]
            writer = store.create(key)
            commit = writer.commit

            def refuse() -> None:
                nonlocal refusals
                if refusals:
                    refusals -= 1
                    raise ObjectExistsError(key)
                commit()

            writer.commit = refuse  # type: ignore[method-assign]
            return writer

    assert put_once(Colliding(store), "1.json", b"ours") == "created"
    refusals = 1000
    with pytest.raises(UnreachableError, match=r"2\.json cannot be created"):
        put_once(Colliding(store), "2.json", b"ours")


def test_file_is_durable_when_commit_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced before it gets its name, and then each folder that holds a new name.

    It matters because Kafka may forget the records as soon as the capture is done.
    After a power cut the file could be empty, or a new folder gone with all that is in it.
    """
    events: list[str] = []
    fsync, link = os.fsync, os.link

    def note_fsync(file: int) -> None:
        events.append(f"sync {os.path.relpath(os.readlink(f'/proc/self/fd/{file}'), tmp_path)}")
        fsync(file)

    def note_link(source: str, target: str) -> None:
        events.append(f"link {os.path.relpath(target, tmp_path)}")
        link(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "link", note_link)
    store = open_store((tmp_path / "root").as_uri())
    put(store, "a/b/1.json", b"{}")
    named = events.index("link root/a/b/1.json")
    assert any(event.startswith("sync root/a/b/tmp~") for event in events[:named])
    assert events[named + 1 :] == ["sync root/a/b"]
    assert {"sync .", "sync root", "sync root/a"} <= set(events)

    # Another process relies on folders that it did not make, and cannot know to be synced.
    events.clear()
    put(open_store((tmp_path / "root").as_uri()), "a/b/2.json", b"{}")
    assert {"sync root", "sync root/a", "sync root/a/b"} <= set(events)


_DYING = """
import sys
from kafka_backup.repository.file_store import FileStore
writer = FileStore(sys.argv[1]).create("a/b/1.log")
writer.write(bytes(1000))
print("written", flush=True)
sys.stdin.read()
"""


def test_leftovers_of_dead_writers_are_told_from_those_at_work(tmp_path: Path) -> None:
    """The temporary file of a writer that was killed is found and removed, that of one at work never.

    It matters because each kill leaves up to a segment for each partition that was being captured.
    They would fill the disk; or a clean-up by age would take the file from under a slow writer.
    """
    store = open_store(tmp_path.as_uri())
    with store.create("a/1.log") as ours:
        ours.write(b"x" * 10)
        with subprocess.Popen(
            [sys.executable, "-c", _DYING, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as theirs:
            assert theirs.stdout is not None
            assert theirs.stdout.readline() == b"written\n"
            assert store.leftovers(remove=True) == []
            theirs.kill()
        (left,) = store.leftovers(remove=False)
        assert (left.key.startswith("a/b/tmp~"), left.size) == (True, 1000)
        assert store.leftovers(remove=True) == [left]
        assert store.leftovers(remove=True) == []
        ours.commit()
    assert [(info.key, info.size) for info in store.list("")] == [("a/1.log", 10)]
    assert store.leftovers(remove=True) == []


def test_a_writer_that_was_taken_for_dead_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary file that is removed between its creation and its lock is made again.

    It matters because a clean-up can look exactly then.
    The object would be written into a file without a name, and could never be committed.
    """
    store = open_store(tmp_path.as_uri())
    real, calls = files.fcntl.flock, 0

    def late(file: int, how: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            assert len(store.leftovers(remove=True)) == 1
        real(file, how)

    monkeypatch.setattr(files.fcntl, "flock", late)
    put(store, "a/1.json", b"{}")
    assert calls == 3
    assert store.get("a/1.json") == b"{}"
    assert store.leftovers(remove=True) == []


def test_what_a_crash_leaves_behind_is_never_seen(tmp_path: Path, file_store: Store) -> None:
    """A temporary file without its writer is not listed and is in nobody's way.

    It matters because a process can be killed at any moment.
    A piece of a segment could be listed as a segment, or stop the next try.
    """
    writer = file_store.create("a/1.json")
    writer.write(b"half")
    again = open_store(file_store.url)
    assert list(again.list("")) == []
    put(again, "a/1.json", b"whole")
    assert [(info.key, info.size) for info in again.list("")] == [("a/1.json", 5)]
    assert any(path.name.startswith("tmp~") for path in tmp_path.rglob("*"))
    writer.abort()
    assert not any(path.name.startswith("tmp~") for path in tmp_path.rglob("*"))


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file can grow beyond 64 KiB: the same path as a full disk, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room(file_store: Store, small_files: None) -> None:
    """A disk that takes no more bytes is an error that names the file, and leaves nothing behind.

    It matters because backups fill disks.
    A short write could pass for a whole segment.
    """
    with (
        pytest.raises(UnreachableError, match=r"a/1\.log: File too large; make room"),
        file_store.create("a/1.log") as writer,
    ):
        writer.write(bytes(1 << 17))
        writer.commit()
    assert list(file_store.list("")) == []


def test_no_room_for_a_temporary_file(
    small_files: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A cloud store's object that waits in a temporary file fills the disk: at once, or with its last bytes.

    It matters because a container has little room of its own, and segments of many partitions wait there.
    Bytes that only a buffer holds could fail when the object is sent, as a bug, or be missing from it.
    """
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = clouds.CloudStore("memory://room", MemoryStore(), spool_bytes=1 << 10)
    for piece in (1000, 1 << 17):
        with (
            store.create("a/1.log") as writer,
            pytest.raises(
                UnreachableError, match=rf"a/1\.log: .* {tmp_path} .*File too large\); make room there"
            ),
        ):
            for _ in range(70):
                writer.write(bytes(piece))
    assert list(store.list("")) == []
    with store.create("a/1.log") as writer:
        for _ in range(65):
            writer.write(bytes(1000))
        writer.commit()
    assert store.size("a/1.log") == 65_000


def test_nowhere_to_put_a_temporary_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder for temporary files can be written, as in a container whose file system is read-only.

    It matters because small objects never need one: the first large segment does, hours after the start.
    A stack trace would not say that TMPDIR must be set.
    """

    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    store = clouds.CloudStore("memory://room", MemoryStore(), spool_bytes=1 << 10)
    with (
        store.create("a/1.log") as writer,
        pytest.raises(ConfigurationError, match=r"No usable temporary directory .* set TMPDIR"),
    ):
        writer.write(bytes(2000))


def test_unusable_folders(tmp_path: Path) -> None:
    """A file where a folder must be is an error of the configuration that names the path.

    It matters because paths are typed by people.
    A stack trace would not say which path it was.
    """
    (tmp_path / "file").write_bytes(b"")
    store = open_store((tmp_path / "file" / "repository").as_uri())
    with pytest.raises(ConfigurationError, match=r"file/repository.*choose another folder"):
        store.create("1.json")
    if Path("/proc/self").exists():
        with pytest.raises(ConfigurationError, match=r"/proc/repository: no folder can be made there"):
            open_store("file:///proc/repository").create("1.json")


def test_a_folder_that_goes_away(tmp_path: Path) -> None:
    """Somebody removes the folder of a repository before an object is begun, and before one is committed.

    It matters because disks are unmounted, and tidied up, under a capture that runs.
    A missing folder could pass for damage of the repository (exit code 4), which nobody mends by running again.
    """
    store = open_store((tmp_path / "repository").as_uri())
    put(store, "a/1.json", b"{}")
    with store.create("a/2.json") as writer:
        writer.write(b"{}")
        shutil.rmtree(tmp_path / "repository")
        with pytest.raises(UnreachableError, match=r"a/2\.json cannot be made: .* was removed meanwhile"):
            writer.commit()
        with pytest.raises(UnreachableError, match=r"a/3\.json cannot be made: .* was removed meanwhile"):
            store.create("a/3.json")


@pytest.mark.parametrize(
    ("url", "options", "reason"),
    [
        ("", {}, "must begin with file://"),
        ("/var/backups", {}, "must begin with file://"),
        ("ftp://host/path", {}, "must begin with file://"),
        ("file://relative/path", {}, "absolute path"),
        ("file://", {}, "absolute path"),
        ("file:///backups", {"region": "x"}, "option 'region'"),
        ("memory://", {}, "one name"),
        ("memory://a/b", {}, "one name"),
        ("s3://", {}, "s3://"),
        ("s3://key:secret@bucket/prefix", {}, "credentials"),
        ("s3://bucket/prefix?token=secret", {}, "credentials"),
        ("s3://bucket", {"no_such_option": "secret"}, "no_such_option"),
        ("s3://bucket", {"allow_http": "secret"}, "allow_http"),
        ("az://account/container", {"access_key": "secret"}, "az://account/container"),
    ],
)
def test_wrong_urls_and_options(url: str, options: dict[str, str], reason: str) -> None:
    """A wrong URL or option is found before anything is contacted, and no secret is in the message.

    It matters because the message ends in logs and in the Dagster UI.
    A misspelt option could be ignored, or a key printed.
    """
    with pytest.raises(ConfigurationError, match=reason) as caught:
        open_store(url, options)
    assert "secret" not in str(caught.value)


def test_secrets_are_in_no_repr() -> None:
    """Neither a store's URL nor its repr holds an option's value.

    It matters because reprs end in stack traces.
    A secret key would be in the logs of whoever reads them.
    """
    options = {"access_key_id": "public-id", "secret_access_key": "very-secret", "region": "eu-1"}
    store = open_store("s3://bucket/prefix/", options)
    assert store.url == "s3://bucket/prefix"
    assert "very-secret" not in repr(store) + store.url


def test_memory_stores_are_shared_by_name() -> None:
    """The same name in one process is the same store, another name another.

    It matters because a test or a trial opens an engine several times.
    Each opening would find an empty repository.
    """
    put(open_store("memory://shared-by-name"), "1.json", b"x")
    assert open_store("memory://shared-by-name").size("1.json") == 1
    assert open_store("memory://another-name").size("1.json") is None

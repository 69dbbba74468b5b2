"""The command line: what it refuses, how it says so, and which exit code it ends with."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kafka_backup.cli import main
from kafka_backup.cli.answers import CaptureAnswer
from kafka_backup.engine import Engine
from kafka_backup.errors import (
    AuthorizationError,
    BrokerError,
    CancelledError,
    ConfigurationError,
    DamagedError,
    KafkaBackupError,
    RefusedError,
    UnreachableError,
    WriterConflictError,
)
from kafka_backup.progress import (
    BackupEvent,
    BackupProgress,
    CaptureFinished,
    PartitionResult,
    TopicCommitted,
    TopicFailed,
    TopicUnchanged,
)
from kafka_backup.repository.documents import LostSpan, Window
from kafka_backup.repository.restore_documents import RestoreRequest
from kafka_backup.restore_context import RestoreLimits

TOPIC_ID = "AAAAAAAAAAAAAAAAAAAAAA"
CAPTURE = "20260131T120000000Z-00000000"
SECRET = "hunter2hunter2"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose broker does not exist and whose repository would be made on first use."""
    path = tmp_path / "kafka-backup.yaml"
    path.write_text(
        'cluster: {bootstrap_servers: "127.0.0.1:1", retry_seconds: 0.2, '
        f"properties: {{sasl.username: u, sasl.password: {SECRET}}}}}\n"
        f'repository: {{url: "file://{tmp_path}/repository"}}\n'
    )
    return path


def call(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(config), *arguments])


def error_line(result: Result) -> str:
    """The one line of stderr."""
    (line,) = result.stderr.splitlines()
    return line


WRONG = [
    ([], "Missing command"),
    (["backups"], "No such command 'backups'"),
    (["backup", "orders"], "unexpected extra argument"),
    (["backup", "--groups", "*"], "No such option"),
    (["backup", "--topic", "/(/"], "not a valid regular expression"),
    (["backup", "--topic", "a b"], "'a b'"),
    (["backup", "--window", "2026-01-31T12:00:00/2026-01-31T13:00:00Z"], "offset from UTC"),
    (["backup", "--window", "5/4"], "must end after it starts"),
    (["backup", "--window", "5"], "START/END"),
    (["show"], "Missing argument"),
    (["verify", "--level", "deep"], "'deep'"),
    (["verify", "--restore", "r", "--level", "data"], "--restore goes with"),
    (["verify", "--restore", "r", "--topic", "a"], "--restore goes with"),
    (["restore"], "Missing option '--id'"),
    (["restore", "--id", "a/b"], "restore_id"),
    (["restore", "--id", "../x"], "restore_id"),
    (["restore", "--id", "r", "--rename", "orders"], "PATTERN=REPLACEMENT"),
    (["restore", "--id", "r", "--rename", "=x"], "PATTERN=REPLACEMENT"),
    (["restore", "--id", "r", "--rename", "(=x"], "not a valid regular expression"),
    (["restore", "--id", "r", "--partition", "-1"], "--partition"),
    (["restore", "--id", "r", "--partition", "one"], "--partition"),
    (["restore", "--id", "r", "--replication-factor", "0"], "--replication-factor"),
    (["restore", "--id", "r", "--max-bytes-per-second", "fast"], "not a size: 'fast'"),
    (["restore", "--id", "r", "--max-bytes-per-second", "0"], "no rate above 0"),
    (["restore", "--id", "r", "--max-records-per-second", "0"], "--max-records-per-second"),
    (["restore", "--id", "r", "--from", "2026-01-31T12:00:00"], "offset from UTC"),
    (["restore", "--id", "r", "--until", "noon"], "not a time"),
    (["restore", "--release-retention", "r", "--execute"], "goes with no other option"),
    (["restore", "--release-retention", "r", "--topic", "a"], "goes with no other option"),
    (["restore", "--abandon", "r", "--execute"], "--abandon goes with no other option"),
    (["restore", "--abandon", "r", "--release-retention", "r"], "goes with no other option"),
    (["offset-map", "--restore", "r", "--topic", "a", "--partition", "0"], "Missing argument"),
    (["offset-map", "--restore", "r", "--topic", "a", "5"], "Missing option '--partition'"),
    (["offset-map", "--restore", "r", "--topic", "a", "--partition", "0", "x"], "'x'"),
    (["offset-map", "--restore", "r", "--topic", "a", "--partition", "0", str(2**63)], "range"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(a) or "nothing" for a, _ in WRONG])
def test_wrong_input_is_exit_2_and_does_nothing(config: Path, arguments: list[str], message: str) -> None:
    """Each wrong command line ends with 2, one line that names the mistake, and no side effect.

    On a bad day commands are typed in a hurry; a half-understood one must not run.
    An option could be ignored, or be found wrong only after a topic was written.
    """
    result = call(config, *arguments)
    assert result.exit_code == 2
    assert error_line(result).startswith("error: ")
    assert message in error_line(result)
    assert result.stdout == ""
    assert list(config.parent.iterdir()) == [config]


@pytest.mark.parametrize(("arguments", "message"), WRONG[1:], ids=[" ".join(a) for a, _ in WRONG[1:]])
def test_wrong_input_is_one_json_document(config: Path, arguments: list[str], message: str) -> None:
    """With --json, each wrong command line also answers with one document on stdout.

    A program that reads the answer must not have to guess why there is none.
    Usage errors are found before a command sees its --json.
    """
    result = call(config, *arguments, "--json")
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert document["status"] == "error"
    assert document["error"]["kind"] in ("usage", "configuration")
    assert message in document["error"]["message"]


def test_no_configuration_says_where_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file, names the default and both ways to name another; the variable is honoured.

    It is the first thing that happens to everyone.
    An empty default configuration could be assumed.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KAFKA_BACKUP_CONFIG", raising=False)
    result = CliRunner().invoke(main, ["list"])
    assert result.exit_code == 2
    for word in ("kafka-backup.yaml", "--config", "$KAFKA_BACKUP_CONFIG"):
        assert word in error_line(result)
    monkeypatch.setenv("KAFKA_BACKUP_CONFIG", "elsewhere.yaml")
    assert "elsewhere.yaml" in CliRunner().invoke(main, ["list"]).stderr


def test_a_wrong_configuration_is_exit_2(config: Path) -> None:
    """A configuration with an unknown key or an unset variable ends with 2, naming the place.

    The exit code tells a scheduler that trying again is useless.
    A traceback would hide the one word that matters.
    """
    text = config.read_text()
    config.write_text(text + "backup: {topcis: [a]}\n")
    assert "backup.topcis: unknown key" in error_line(result := call(config, "backup"))
    assert result.exit_code == 2
    config.write_text(text.replace(SECRET, "'${NOT_SET_ANYWHERE}'"))
    assert "NOT_SET_ANYWHERE" in error_line(result := call(config, "backup"))
    assert result.exit_code == 2


def test_help_and_version_need_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Help of every command, and the version, are shown without a configuration, with exit 0.

    Help is read before there is a configuration.
    The group could load the file before it looks at the arguments.
    """
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["--version"]).stdout.startswith("kafka-backup, version ")
    for arguments in ([], *([name] for name in main.commands)):
        result = CliRunner().invoke(main, [*arguments, "--help"])
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.startswith("Usage: kafka-backup")


class ScriptedEngine:
    """Stands in for the engine: gives these events, or raises this error, whatever it is asked."""

    def __init__(self, *events: BackupEvent, error: BaseException | None = None) -> None:
        self.events = events
        self.error = error
        self.calls: list[str] = []

    def __enter__(self) -> "ScriptedEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append("close")

    def backup(self, topics: Sequence[str] | None, **_: object) -> Iterator[BackupEvent]:
        yield from self.events
        if self.error is not None:
            raise self.error

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object, **__: object) -> None:
            self.calls.append(name)
            raise self.error or AssertionError(name)

        return fail

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "ScriptedEngine":
        monkeypatch.setattr(Engine, "open", lambda _config: self)
        return self


COMMANDS = [
    ["backup"],
    ["list"],
    ["show", "orders"],
    ["verify"],
    ["restore", "--id", "r"],
    ["restore", "--id", "r", "--execute"],
    ["restore", "--release-retention", "r"],
    ["restore", "--abandon", "r"],
    ["offset-map", "--restore", "r", "--topic", "orders", "--partition", "0", "5"],
]
ERRORS = [
    (ConfigurationError("x y"), 2, "configuration"),
    (AuthorizationError("x y"), 2, "authorization"),
    (UnreachableError("x y"), 3, "unreachable"),
    (BrokerError("x y", code=7, name="REQUEST_TIMED_OUT", retriable=True), 3, "broker"),
    (DamagedError("x y"), 4, "damaged"),
    (RefusedError("x y"), 5, "refused"),
    (WriterConflictError("x y"), 5, "writer_conflict"),
    (CancelledError("x y"), 130, "cancelled"),
]
FIELDS = {
    "backup": {"capture", "status", "topics", "seconds"},
    "list": {"captures"},
    "show": {"commits"},
    "verify": {"status", "problems"},
    "restore": {"restore_id", "status", "topics", "groups", "problems"},
    "offset-map": {"offsets"},
}


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(("error", "code", "kind"), ERRORS, ids=[kind for _, _, kind in ERRORS])
def test_each_error_has_its_exit_code(
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    error: KafkaBackupError,
    code: int,
    kind: str,
) -> None:
    """Every command ends with the exit code of the engine's error, one line, and no stack trace.

    Schedulers decide by the exit code whether to try again, to page somebody, or to stop.
    A command with its own handling could turn a damaged repository into "try again".
    """
    engine = ScriptedEngine(error=error).install(monkeypatch)
    result = call(config, *arguments)
    assert (result.exit_code, error_line(result), result.stdout) == (code, "error: x y", "")
    assert engine.calls[-1] == "close"
    result = call(config, *arguments, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == code
    assert document["error"] == {"kind": kind, "message": "x y"}
    assert document["status"] == ("interrupted" if code == 130 else "error")
    assert FIELDS[arguments[0]] <= document.keys()


@pytest.mark.parametrize("error", [ValueError("x y"), KafkaBackupError("x y"), AssertionError("x y")])
def test_a_bug_is_exit_1_with_its_trace(
    config: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """An error that nobody foresaw ends with 1, says that it is a bug, and shows where.

    A bug must not look like a broken network: nobody would report it.
    Catching everything as "failed" would lose the trace.
    """
    ScriptedEngine(error=error).install(monkeypatch)
    result = call(config, "list", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["kind"] == "bug"
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: this is a bug in kafka-backup")


def test_debug_shows_the_trace_of_an_expected_error(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--debug, or its variable, adds the stack trace to an expected error, and changes nothing else.

    Who hunts a problem needs the chain of causes.
    The exit code or the last line could change with it.
    """
    ScriptedEngine(error=UnreachableError("x y")).install(monkeypatch)
    for result in (
        CliRunner().invoke(main, ["--config", str(config), "--debug", "list"]),
        CliRunner().invoke(main, ["--config", str(config), "list"], env={"KAFKA_BACKUP_DEBUG": "1"}),
    ):
        assert result.exit_code == 3
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1] == "error: x y"
        assert SECRET not in result.output


def test_limits_are_not_part_of_the_request(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast a restore may go reaches the engine, and may differ when the same restore is continued.

    A restore that is too fast at noon is stopped and continued more slowly.
    As part of the request, another limit would be refused as another restore.
    """
    seen: list[object] = []
    plan = SimpleNamespace(problems=())
    engine = ScriptedEngine().install(monkeypatch)
    monkeypatch.setattr(
        engine, "plan_restore", lambda request, **_: seen.append(request) or plan, raising=False
    )

    def restore(_plan: object, *, limits: object, **_: object) -> None:
        seen.append(limits)
        raise RefusedError("x")

    monkeypatch.setattr(engine, "restore", restore, raising=False)
    monkeypatch.setattr("kafka_backup.cli.answers.planned", lambda _plan, **_: {})
    for limits in ([], ["--max-bytes-per-second", "2MiB", "--max-records-per-second", "7"]):
        assert call(config, "restore", "--id", "r", "--execute", *limits).exit_code == 5
    assert seen[0] == seen[2]
    assert seen[1] == RestoreLimits()
    assert seen[3] == RestoreLimits(max_bytes_per_second=2 << 20, max_records_per_second=7)


def committed(
    commit: int, *ranges: tuple[int, int, int], topic: str = "orders", lost: Sequence[LostSpan] = ()
) -> TopicCommitted:
    """A commit of (partition, start, end) full of records, but for what partition 0 lost."""
    missing = sum(span.end - span.start for span in lost)
    parts = [
        PartitionResult(
            partition=partition,
            start=start,
            end=end,
            records=end - start - (0 if partition else missing),
            control=0,
            aborted=0,
            compacted=0,
            lost=0 if partition else missing,
            lost_spans=() if partition else lost,
        )
        for partition, start, end in ranges
    ]
    return TopicCommitted(
        capture=CAPTURE,
        topic=topic,
        topic_id=TOPIC_ID,
        commit=commit,
        commit_sha256="0" * 64,
        records=sum(part.records for part in parts),
        stored_bytes=10,
        raw_bytes=100,
        segments=1,
        partitions=parts,
        object_uri="file:///x",
        seconds=1.0,
    )


def failed(error: KafkaBackupError, partition: int | None = 0) -> TopicFailed:
    return TopicFailed(capture=CAPTURE, topic="orders", partition=partition, error=error)


def finished(status: Any) -> CaptureFinished:
    return CaptureFinished(
        capture=CAPTURE, status=status, window=Window(start=0, end=1000), recovery_point=1500, seconds=2.5
    )


def test_commits_of_one_topic_are_one_entry() -> None:
    """Several commits of a topic in one capture are added up, and their ranges joined.

    A long capture commits every five minutes; people ask what the capture saved, not which commit.
    The last commit alone would be shown, and the records of the others seem lost.
    """
    answer = CaptureAnswer()
    span = LostSpan(start=5, end=7, reason="retention")
    for event in (
        committed(3, (0, 0, 10), (1, 0, 4), lost=[span]),
        committed(4, (0, 10, 25), (2, 7, 8)),
        TopicUnchanged(capture=CAPTURE, topic="idle", topic_id=TOPIC_ID, commit=9, commit_sha256="0" * 64),
        finished("lossy"),
    ):
        answer.add(event)
    document = answer.document
    assert document["capture"] == CAPTURE
    assert document["window"] == {"start": "1970-01-01T00:00:00.000Z", "end": "1970-01-01T00:00:01.000Z"}
    idle, orders = document["topics"]
    assert (idle["topic"], idle["status"], idle["commit"], idle["partitions"]) == ("idle", "unchanged", 9, [])
    assert (orders["status"], orders["commit"], orders["records"]) == ("committed", 4, 28)
    assert (orders["stored_bytes"], orders["raw_bytes"], orders["segments"]) == (20, 200, 2)
    assert [(p["partition"], p["start"], p["end"], p["records"]) for p in orders["partitions"]] == [
        (0, 0, 25, 23),
        (1, 0, 4, 4),
        (2, 7, 8, 1),
    ]
    assert orders["partitions"][0]["lost"] == 2
    assert orders["partitions"][0]["lost_spans"] == [{"start": 5, "end": 7, "reason": "retention"}]


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ([committed(0, (0, 0, 1)), finished("complete")], 0),
        ([finished("held")], 0),
        ([committed(0, (0, 0, 1)), finished("lossy")], 4),
        ([failed(UnreachableError("x")), finished("partial")], 3),
        ([failed(AuthorizationError("x")), finished("partial")], 2),
        ([failed(UnreachableError("x")), failed(AuthorizationError("x"), 1), finished("partial")], 2),
        ([failed(AuthorizationError("x")), failed(RefusedError("x"), 1), finished("partial")], 5),
        ([failed(DamagedError("x")), failed(RefusedError("x"), 1), finished("partial")], 4),
        ([failed(KafkaBackupError("x")), failed(DamagedError("x"), 1), finished("partial")], 1),
        (
            [
                committed(0, (0, 0, 9), lost=[LostSpan(start=0, end=1, reason="unexplained")]),
                failed(UnreachableError("x"), 1),
                finished("partial"),
            ],
            4,
        ),
        ([finished("partial")], 1),
        ([committed(0, (0, 0, 1))], 1),
    ],
)
def test_a_backup_is_0_only_if_everything_is_saved(
    config: Path, monkeypatch: pytest.MonkeyPatch, events: list[BackupEvent], code: int
) -> None:
    """Several failures of one capture give the exit code that must not be missed; loss beats the rest.

    3 means "the same command may succeed later": it is right only if nothing else is wrong.
    A partial capture could end with 0, or the first failure hide a damaged one.
    """
    ScriptedEngine(*events).install(monkeypatch)
    assert call(config, "backup").exit_code == code
    assert call(config, "backup", "--json").exit_code == code


def test_a_partial_capture_names_each_failure(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each failed partition and each lost span is one line on stderr and an entry in the JSON.

    The answer to "what is missing?" must be in the output of the run itself.
    A table with a total hides which partition stayed behind.
    """
    span = LostSpan(start=3, end=5, reason="retention")
    ScriptedEngine(
        committed(0, (0, 0, 9), lost=[span]),
        BackupProgress(
            capture="c1", topic="orders", offsets_done=1, offsets_total=9, records=1, raw_bytes=1, seconds=0.0
        ),
        failed(UnreachableError("broker 1 is gone"), 7),
        finished("partial"),
    ).install(monkeypatch)
    result = call(config, "backup")
    assert result.stderr.splitlines() == [
        "error: orders [7]: broker 1 is gone",
        "error: orders [0]: offsets [3, 5) are lost (retention)",
    ]
    assert "partial" in result.stdout
    document = json.loads(call(config, "backup", "--json").stdout)
    assert document["topics"][0]["status"] == "failed"
    assert document["failures"] == [
        {
            "topic": "orders",
            "partition": 7,
            "group": None,
            "kind": "unreachable",
            "message": "broker 1 is gone",
        }
    ]


def test_an_aborted_capture_still_says_what_it_saved(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a capture ends with an error, the JSON holds the commits that were made before.

    Commits stay; a program that counts them must not count from zero.
    The error's document could be made without what was known.
    """
    ScriptedEngine(committed(0, (0, 0, 9)), error=UnreachableError("gone")).install(monkeypatch)
    result = call(config, "backup", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 3
    assert document["error"]["kind"] == "unreachable"
    assert (document["capture"], document["topics"][0]["records"]) == (CAPTURE, 9)


def test_a_restore_asks_for_what_was_typed(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option of restore reaches the engine's request, in the order in which it was typed.

    The request is what the restore id stands for; a lost option restores something else.
    The first rename rule that matches counts, so that their order is part of the meaning.
    """
    seen: list[RestoreRequest] = []

    def plan_restore(request: RestoreRequest, **_: object) -> None:
        seen.append(request)
        raise RefusedError("x")

    engine = ScriptedEngine().install(monkeypatch)
    monkeypatch.setattr(engine, "plan_restore", plan_restore, raising=False)
    call(
        config,
        *("restore", "--id", "r-1", "--topic", "app_*", "--topic", "orders", "--prefix", "p-"),
        *("--rename", "(?=a)(.*)=x_\\1", "--rename", "b=", "--partition", "3", "--partition", "0"),
        *("--from", "1969-12-31T23:59:59.999Z", "--until", "5", "--capture", "c", "--incarnation", "i"),
        *("--replication-factor", "2", "--original-offset-header", "--original-timestamp-header"),
        *("--groups", "billing", "--groups", "app_*", "--rename-groups", "app_(.*)=new_\\1"),
        "--replace",
    )
    (request,) = seen
    assert request.model_dump() == {
        "restore_id": "r-1",
        "topics": ("app_*", "orders"),
        "partitions": (3, 0),
        "rename": (
            {"pattern": "(?=a)(.*)", "replacement": "x_\\1"},
            {"pattern": "b", "replacement": ""},
        ),
        "prefix": "p-",
        "from_ms": -1,
        "until_ms": 5,
        "capture": "c",
        "incarnation": "i",
        "replication_factor": 2,
        "groups": ("billing", "app_*"),
        "rename_groups": ({"pattern": "app_(.*)", "replacement": "new_\\1"},),
        "original_offset_header": True,
        "original_timestamp_header": True,
        "replace": True,
    }


def test_every_command_is_found_and_a_backup_loads_only_its_own(config: Path) -> None:
    """What: the commands that the help names, each asked for its own help; and what a backup has loaded.

    Why: a scheduled capture of an idle topic takes as long as its start.
    Risk: a command that nobody finds since its module is not loaded; a backup that waits for restores.
    """
    names = main.list_commands(None)
    assert set(main.commands) <= set(names) and {"backup", "restore", "groups", "expire"} <= set(names)
    for name in names:
        assert call(config, name, "--help").exit_code == 0, name
    assert main.get_command(None, "restor") is None

    loaded = subprocess.run(
        [sys.executable, "-c", "import sys; from kafka_backup.cli import main; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    others = ("restore", "restore_plan", "offset_automation", "verify", "retention", "lag", "drill")
    assert "kafka_backup.backup" in loaded
    assert not {f"kafka_backup.{each}" for each in others} & set(loaded)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_program_is_loaded(number: signal.Signals) -> None:
    """What: a program that is stopped before its command has begun, as `kafka-backup` and as a module.

    Why: loading takes half a second, and more on the busy machine where somebody presses Ctrl-C.
    Risk: a stack trace and no answer, or an exit code that says "a bug" or "killed".
    """
    struck = f"""
import os, runpy, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "kafka_backup.engine":
            os.kill(os.getpid(), {number.value})
sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["list", "--json"]
"""
    for start in (
        "from kafka_backup.cli.__main__ import run; run()",
        "runpy.run_module('kafka_backup.cli', run_name='__main__')",
    ):
        done = subprocess.run([sys.executable, "-c", struck + start], capture_output=True, text=True)
        assert done.returncode == 130, done.stderr
        assert json.loads(done.stdout)["status"] == "interrupted"
        assert done.stderr == "error: stopped on request, before anything was begun\n"

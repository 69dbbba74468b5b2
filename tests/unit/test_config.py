"""The configuration file: everything wrong is found, named by its place, and no secret is shown."""

import re
import traceback
from pathlib import Path

import pytest

from kafka_backup.config import EngineConfig, load_config, parse_config
from kafka_backup.errors import ConfigurationError

SECRET = "hunter2hunter2"
GOOD = """
cluster: {bootstrap_servers: "127.0.0.1:9092"}
repository: {url: "file:///backups"}
"""


def load(tmp_path: Path, text: str, **environment: str) -> EngineConfig:
    path = tmp_path / "kafka-backup.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, environment=environment)


def test_the_documented_form_is_read(tmp_path: Path) -> None:
    """Reads every key of the documented file, with variables, sizes and numbers as text.

    It is what the README tells people to write.
    A key could be parsed but not used, or a boolean reach librdkafka as "True".
    """
    config = load(
        tmp_path,
        """
        cluster:
          bootstrap_servers: "${HOST}:9092,[::1]:9093"
          properties: {security.protocol: SASL_SSL, sasl.password: "${KAFKA_PASSWORD}",
                       socket.timeout.ms: 500, enable.ssl.certificate.verification: false}
          retry_seconds: 5
        target: {bootstrap_servers: "other:9092"}
        repository: {url: "s3://bucket/prefix", options: {region: eu-1, allow_http: true}}
        backup:
          topics: ["orders", "app_*", '/^events\\..*/']
          exclude: ["app_tmp"]
          compression: zstd
          segment_bytes: 32MiB
          max_concurrent_partitions: 4
          max_bytes_per_second: 50MB
          start: 2026-01-31T12:00:00.250+01:00
        """,
        HOST="kafka",
        KAFKA_PASSWORD=SECRET,
    )
    assert config.cluster.bootstrap_servers == "kafka:9092,[::1]:9093"
    assert config.cluster.properties == {
        "security.protocol": "SASL_SSL",
        "sasl.password": SECRET,
        "socket.timeout.ms": "500",
        "enable.ssl.certificate.verification": "false",
    }
    assert config.cluster.retry_seconds == 5
    assert config.backup.max_bytes_per_second == 50_000_000
    assert config.backup.start == 1_769_857_200_250
    assert config.restore_target.bootstrap_servers == "other:9092"
    assert config.repository.options == {"region": "eu-1", "allow_http": "true"}
    assert config.backup.segment_bytes == 32 << 20
    assert config.backup.selection.includes("events.x")
    assert not config.backup.selection.includes("app_tmp")


def test_a_short_file_has_defaults(tmp_path: Path) -> None:
    """Takes all topics, and restores into the same cluster, if nothing else is said.

    Two lines are enough to begin.
    A default that takes no topic at all would back up nothing.
    """
    config = load(tmp_path, GOOD)
    assert config.backup.topics == ("*",)
    assert config.restore_target is config.cluster


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "expected a mapping"),
        ("- cluster", "expected a mapping"),
        ('repository: {url: "file:///b"}', "cluster: this key is missing"),
        ('cluster: {bootstrap_servers: ""}\nrepository: {url: "file:///b"}', "cluster.bootstrap_servers"),
        (GOOD + "backups: {}", "backups: unknown key"),
        (GOOD + "backup: {topcis: [a]}", "backup.topcis: unknown key"),
        (GOOD + "backup: {topics: orders}", "backup.topics: expected a list"),
        (GOOD + "backup: {topics: [1]}", "backup.topics.0: expected text"),
        (GOOD + "backup:", "backup: expected a mapping"),
        (GOOD + "backup: {topics: ['/(/']}", "in topics: topic filter /(/"),
        (GOOD + "backup: {exclude: ['a b']}", "in exclude: topic filter 'a b'"),
        (GOOD + "backup: {compression: lz4}", "backup.compression"),
        (GOOD + "backup: {segment_bytes: 32mb}", "backup.segment_bytes: not a size: '32mb'"),
        (GOOD + "backup: {segment_bytes: -1}", "backup.segment_bytes"),
        (GOOD + "backup: {segment_bytes: 2GiB}", "backup.segment_bytes"),
        (GOOD + "backup: {max_concurrent_partitions: 0}", "backup.max_concurrent_partitions"),
        (GOOD + "target: {bootstrap_servers: a, retry_seconds: .inf}", "target.retry_seconds"),
        (GOOD + "target: {bootstrap_servers: a, retry_seconds: 0}", "target.retry_seconds"),
        (GOOD + "? [a]\n: b", "cannot be a key (line 4, column 3)"),
        (GOOD + "1: b", "1: Keys should be strings"),
        (GOOD + "---\na: b", "not valid YAML"),
        (GOOD + "target: &t [*t]", "contains itself"),
        (GOOD + "x: \x07", "not valid YAML"),
    ],
)
def test_a_wrong_file_names_the_place(tmp_path: Path, text: str, place: str) -> None:
    """Refuses a configuration that is malformed, and says in which file and at which key.

    A configuration is read at three at night; the message must say where to look.
    An unknown key that is ignored is a setting that somebody believes to be in force.
    """
    with pytest.raises(ConfigurationError, match=re.escape(place)) as caught:
        load(tmp_path, text)
    assert "kafka-backup.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        GOOD + 'cluster: {bootstrap_servers: "other:9092"}',
        'cluster: {bootstrap_servers: "a:1", bootstrap_servers: "b:1"}\nrepository: {url: "file:///b"}',
    ],
)
def test_a_key_written_twice_is_refused(tmp_path: Path, text: str) -> None:
    """Refuses the same key twice, at any depth, and names it with its line.

    YAML parsers take the last one without a word.
    A backup would go on from another cluster than the one that people read at the top of the file.
    """
    with pytest.raises(ConfigurationError, match=r"'(cluster|bootstrap_servers)' occurs twice \(line \d"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${NOT_SET}", "cluster.properties.sasl.password: the environment variable NOT_SET is not set"),
        ("a${NOT_SET}b", "the environment variable NOT_SET is not set"),
        ("${}", "must begin the name of an environment variable"),
        ("${NOT-A-NAME}", "must begin the name of an environment variable"),
        ("${NOT_CLOSED", "must begin the name of an environment variable"),
    ],
)
def test_an_unset_variable_is_refused(tmp_path: Path, value: str, message: str) -> None:
    """Refuses a ${VAR} that is not set or not a name, and names the place.

    An empty password would only show as a refused login, hours later.
    The text "${PASSWORD}" could be sent to the broker as it stands.
    """
    text = GOOD.replace('9092"', f'9092", properties: {{sasl.password: "{value}"}}')
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        load(tmp_path, text, PASSWORD="x")


def test_variables_are_filled_in_once(tmp_path: Path) -> None:
    """Takes what a variable holds as it is: ${...} in it, quotes and colons mean nothing.

    Passwords are made by generators and hold any character.
    Expanding twice, or before YAML is parsed, would change them or leak other variables.
    """
    value = "a${HOME}: '\"{}#"
    text = GOOD.replace('9092"', '9092", properties: {sasl.password: "${PASSWORD}"}')
    assert load(tmp_path, text, PASSWORD=value, HOME="x").cluster.properties["sasl.password"] == value


@pytest.mark.parametrize(
    ("size", "bytes_"),
    [
        ("65536", 65536),
        ("64KiB", 65536),
        ("1MB", 10**6),
        ("1 MiB", 1 << 20),
        ("1GiB", 1 << 30),
        ("70000B", 70000),
    ],
)
def test_sizes_have_units(tmp_path: Path, size: str, bytes_: int) -> None:
    """Reads decimal (MB) and binary (MiB) units and plain numbers as bytes.

    Segment sizes bound memory and the number of objects.
    MB taken for MiB would be wrong by five percent, KB for bytes by a thousand.
    """
    assert load(tmp_path, GOOD + f"backup: {{segment_bytes: {size}}}").backup.segment_bytes == bytes_


@pytest.mark.parametrize(
    "line",
    [
        f'properties: {{sasl.password: "{SECRET}',
        f"properties: {{sasl.password: *{SECRET}}}",
        f"properties: {{sasl.password: !{SECRET} x}}",
        f"properties: {{sasl.password: @{SECRET}}}",
        f"properties: {{sasl.password: [{SECRET}]}}",
        f"properties: {SECRET}",
        f"propertys: {{sasl.password: {SECRET}}}",
    ],
)
def test_no_error_shows_a_secret(tmp_path: Path, line: str) -> None:
    """Names the place of a slip in a line with a password without the password, in the traceback too.

    Error messages end up in tickets, chats and Dagster's event log.
    YAML's messages quote the line, pydantic's the value, and a chained traceback both.
    """
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, f'cluster:\n  bootstrap_servers: a\n  {line}\nrepository: {{url: "file:///b"}}\n')
    shown = "".join(traceback.format_exception(caught.value))
    assert "kafka-backup.yaml" in str(caught.value)
    assert SECRET not in shown


def test_no_repr_shows_a_secret() -> None:
    """Leaves properties and options out of the repr of a configuration.

    Configurations are logged and shown in tracebacks of other people's tools.
    A new field could bring the mapping back into the repr.
    """
    config = parse_config(
        {
            "cluster": {"bootstrap_servers": "a", "properties": {"sasl.password": SECRET}},
            "target": {"bootstrap_servers": "a", "properties": {"sasl.password": SECRET}},
            "repository": {"url": "s3://b", "options": {"secret_access_key": SECRET}},
        },
        source="test",
    )
    assert SECRET not in repr(config)
    assert SECRET not in str(config)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    """Says which file cannot be read: absent, or not UTF-8.

    The default name depends on the folder where the command is started.
    A missing file could pass for an empty configuration.
    """
    path = tmp_path / "absent.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"cannot read the configuration .*absent\.yaml"):
        load_config(path)


@pytest.mark.parametrize(
    ("written", "start"),
    [
        ("2026-01-31T12:00:00Z", 1_769_860_800_000),
        ('"2026-01-31T12:00:00Z"', 1_769_860_800_000),
        ("2026-01-31 13:00:00.25 +01:00", 1_769_860_800_250),
        ("1769860800000", 1_769_860_800_000),
        ('"-1"', -1),
        ("null", None),
    ],
)
def test_a_start_is_a_time_however_yaml_reads_it(tmp_path: Path, written: str, start: int | None) -> None:
    """Reads times as text, as numbers, and as YAML makes them by itself.

    It matters because YAML turns an unquoted RFC 3339 time into a time of its own, quoted ones not.
    A time read wrongly would leave records out, on purpose as it seems.
    """
    config = load(tmp_path, f"{GOOD}\nbackup: {{start: {written}}}")
    assert config.backup.start == start


@pytest.mark.parametrize("written", ["2026-01-31T12:00:00", "2026-01-31", "true", "noon", "[1]", "1.5"])
def test_a_start_that_is_no_moment_is_refused(tmp_path: Path, written: str) -> None:
    """Refuses a time without an offset from UTC, a day, and what is no time.

    It matters because a first capture that begins hours too late looks like any other.
    A guess of the time zone would be right on the author's machine only.
    """
    with pytest.raises(ConfigurationError, match=r"backup\.start: "):
        load(tmp_path, f"{GOOD}\nbackup: {{start: {written}}}")

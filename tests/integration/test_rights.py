"""Users with the smallest set of rights, on a broker that denies whatever no rule allows.

Each task works with exactly its set; with one right less it says which, before it does anything. The
sets are those of docs/security.md.
"""

import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kafka_backup.cli import main
from tests.support.acls import Right, allow, take
from tests.support.groups import commit, positions
from tests.support.records import NewRecord, renumbered
from tests.support.secure_cluster import SecureCluster
from tests.support.topics import new_topic, produce, read_topic

PASSWORD = "canary-password"
CLUSTER = Right("DESCRIBE", "kafka-cluster", "BROKER")


class User:
    """Somebody with a repository, who may do nothing yet."""

    def __init__(self, kafka: SecureCluster, folder: Path) -> None:
        self.kafka, self.repository = kafka, folder / "repository"
        self.name = f"user-{secrets.token_hex(4)}"
        self._config = folder / "kafka-backup.yaml"
        kafka.add_user(self.name, PASSWORD)

    def run(self, *command: str, topics: Sequence[str] = (), groups: Sequence[str] = ()) -> Result:
        """Runs the command line as this user, with these filters in the configuration."""
        properties = self.kafka.properties(
            "SASL_TLS", "SCRAM-SHA-512", sasl_username=self.name, sasl_password=PASSWORD
        )
        content = {
            "cluster": {
                "bootstrap_servers": self.kafka.servers("SASL_TLS"),
                "properties": properties,
                "retry_seconds": 30,
            },
            "repository": {"url": f"file://{self.repository}"},
            "backup": {"topics": topics, "consumer_groups": groups},
        }
        self._config.write_text(json.dumps(content))
        result = CliRunner().invoke(main, ["--config", str(self._config), *command, "--json"])
        assert PASSWORD not in result.output
        return result

    def needs_each(self, rights: Sequence[Right], refused: Callable[[Right], None]) -> None:
        """Gives all rights but one, for each in turn, and checks that it is refused; then all of them."""
        allow(self.kafka, self.name, *rights)
        for each in rights:
            take(self.kafka, self.name, each)
            refused(each)
            allow(self.kafka, self.name, each)


@pytest.fixture
def user(secure: SecureCluster, tmp_path: Path) -> User:
    return User(secure, tmp_path)


def filled_topic(kafka: SecureCluster, name: str, partitions: int = 2) -> str:
    """A topic of that name with a few records in each partition."""
    new_topic(kafka, partitions, name=name)
    for partition in range(partitions):
        records = [NewRecord(b"%d-%d" % (partition, n)) for n in range(10)]
        produce(kafka.bootstrap_servers, name, records, partition=partition)
    return name


def error_of(result: Result, code: int = 2) -> str:
    """The message of an invocation that failed as it should."""
    assert result.exit_code == code, result.output
    return str(json.loads(result.stdout)["error"]["message"])


def test_a_capture_of_named_topics_needs_two_rights_on_each(secure: SecureCluster, user: User) -> None:
    """What: READ and DESCRIBE_CONFIGS on two topics, and nothing else; then without each of the four.

    Why: whoever runs backups should hold no more than that; a missing right is found before anything is fetched.
    Risk: a topic that is left out silently, or half of a capture in the repository.
    """
    names = [filled_topic(secure, f"{user.name}-{n}") for n in "ab"]
    rights = [Right(each, name) for name in names for each in ("READ", "DESCRIBE_CONFIGS")]

    def refused(lacking: Right) -> None:
        told = error_of(user.run("backup", topics=names))
        assert f"{lacking.operation} on topic '{lacking.name}'" in told
        (other,) = {*names} - {lacking.name}
        assert other not in told
        assert not user.repository.exists()

    user.needs_each(rights, refused)
    result = user.run("backup", topics=names)
    assert result.exit_code == 0, result.output
    captured = {topic["topic"]: topic["records"] for topic in json.loads(result.stdout)["topics"]}
    assert captured == dict.fromkeys(names, 20)
    assert user.run("verify", "--level", "data", topics=names).exit_code == 0


def test_a_pattern_with_rights_on_all_that_it_matches(secure: SecureCluster, user: User) -> None:
    """What: a wildcard and prefixed rights, without any on the cluster; then without each of them.

    Why: topics come and go; their names' common part is what people give rights on.
    Risk: a new topic that nobody captures, because brokers do not show what may not be seen.
    """
    names = [filled_topic(secure, f"{user.name}.{n}") for n in "ab"]
    prefix = f"{user.name}."
    rights = [Right(each, prefix, prefixed=True) for each in ("READ", "DESCRIBE_CONFIGS")]

    def refused(lacking: Right) -> None:
        told = error_of(user.run("backup", topics=[f"{prefix}*"]))
        if lacking.operation == "READ":  # and with it DESCRIBE: no topic is seen at all
            assert f"topics that match {prefix}* may be hidden" in told
        else:
            assert all(f"DESCRIBE_CONFIGS on topic '{name}'" in told for name in names)
        assert not user.repository.exists()

    user.needs_each(rights, refused)
    result = user.run("backup", topics=[f"{prefix}*"])
    assert result.exit_code == 0, result.output
    assert {topic["topic"] for topic in json.loads(result.stdout)["topics"]} == {*names}


def test_a_pattern_that_matches_a_topic_without_rights(secure: SecureCluster, user: User) -> None:
    """What: rights on one of two matching topics; then DESCRIBE on the cluster as well; then the second topic.

    Why: brokers answer as if the other topic did not exist.
    Risk: a green capture of half the topics.
    """
    names = [filled_topic(secure, f"{user.name}.{n}") for n in "ab"]
    pattern = f"{user.name}.*"
    allow(secure, user.name, Right("READ", names[0]), Right("DESCRIBE_CONFIGS", names[0]))
    assert f"topics that match {pattern} may be hidden" in error_of(user.run("backup", topics=[pattern]))
    allow(secure, user.name, CLUSTER)
    told = error_of(user.run("backup", topics=[pattern]))
    assert f"READ on topic '{names[1]}'" in told
    assert names[0] not in told
    assert not user.repository.exists()
    allow(secure, user.name, Right("READ", names[1]), Right("DESCRIBE_CONFIGS", names[1]))
    result = user.run("backup", topics=[pattern])
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["topics"]) == 2


@pytest.mark.parametrize("pattern", ["{}.*", "/^{}\\./"])
def test_a_topic_that_is_denied_to_us_is_named(pattern: str, secure: SecureCluster, user: User) -> None:
    """What: rights on everything, one topic denied, which DESCRIBE on the cluster shows; excluded, the rest goes.

    Why: a denial hides a topic from whoever holds all other rights.
    Risk: nobody remembers the denial on the day of the restore.
    """
    names = [filled_topic(secure, f"{user.name}.{n}") for n in "ab"]
    wanted = pattern.format(user.name)
    allow(secure, user.name, Right("READ", "*"), Right("DESCRIBE_CONFIGS", "*"), CLUSTER)
    allow(secure, user.name, Right("DESCRIBE", names[1]), deny=True)
    told = error_of(user.run("backup", topics=[wanted]))
    assert f"READ on topic '{names[1]}'" in told
    assert not user.repository.exists()


def test_a_capture_of_positions_needs_rights_on_groups(secure: SecureCluster, user: User) -> None:
    """What: the rights for all topics and all groups, without each in turn.

    Why: brokers list only the groups that we may see, and leave out positions on topics that we may not.
    Risk: positions that are missing on the day they are needed.
    """
    topic = filled_topic(secure, f"{user.name}.a")
    group = f"{user.name}.group"
    commit(secure.bootstrap_servers, group, {(topic, 0): 5})
    rights = [
        Right("READ", f"{user.name}.", prefixed=True),
        Right("DESCRIBE_CONFIGS", f"{user.name}.", prefixed=True),
        Right("DESCRIBE", "__consumer_offsets"),
        Right("DESCRIBE", f"{user.name}.", "GROUP", prefixed=True),
    ]

    def refused(lacking: Right) -> None:
        result = user.run("backup", topics=[f"{user.name}.*"], groups=[f"{user.name}.*"])
        assert result.exit_code == 2, result.output
        assert lacking.operation in result.stdout
        assert lacking.name in result.stdout

    user.needs_each(rights, refused)
    result = user.run("backup", topics=[f"{user.name}.*"], groups=[f"{user.name}.*"])
    assert result.exit_code == 0, result.output
    shown = json.loads(user.run("groups", "show").stdout)
    assert group in json.dumps(shown)


@pytest.mark.parametrize("atomic", [False, True], ids=["plain", "atomic"])
def test_a_reset_needs_rights_on_group_and_topic(secure: SecureCluster, user: User, *, atomic: bool) -> None:
    """What: READ on the group and on its topic, for --atomic WRITE on the transactional id; then without each.

    Why: whoever resets positions needs no right to read a record of another topic, or to write one.
    Risk: a group that is moved half way before the missing right is found.
    """
    topic, group = filled_topic(secure, f"{user.name}.a"), f"{user.name}.group"
    commit(secure.bootstrap_servers, group, {(topic, 0): 5, (topic, 1): 6})
    rights = [Right("READ", topic), Right("READ", group, "GROUP"), Right("DESCRIBE", "__consumer_offsets")]
    if atomic:
        rights.append(Right("WRITE", "kafka-backup-", "TRANSACTIONAL_ID", prefixed=True))
    command = ["groups", "reset", "--group", group, "--to", "earliest", *(["--atomic"] if atomic else [])]
    named = [*command, "--topic", topic, "--execute"]

    def refused(lacking: Right) -> None:
        for asked in (named[:-1], named):  # without --execute, and with it
            result = user.run(*asked)
            assert result.exit_code == 2, result.output
            assert lacking.name in result.output
            assert ("WRITE on transactional ids" in result.output) == (lacking.kind == "TRANSACTIONAL_ID")
        assert positions(secure, group) == {(topic, 0): 5, (topic, 1): 6}
        assert not (user.repository / "resets").exists()

    user.needs_each(rights, refused)
    hidden = user.run(*command, "--execute")  # on which other topics may the group have positions?
    assert (hidden.exit_code, "match * may be hidden" in hidden.output) == (2, True)
    result = user.run(*named)
    assert result.exit_code == 0, result.output
    assert positions(secure, group) == {(topic, 0): 0, (topic, 1): 0}


@pytest.mark.parametrize("with_groups", [False, True], ids=["data", "groups"])
def test_a_restore_needs_four_rights_on_each_target(
    secure: SecureCluster, user: User, *, with_groups: bool
) -> None:
    """What: CREATE, READ, WRITE and ALTER_CONFIGS on the target, with groups those of a reset; then without each.

    Why: rights on a topic that does not exist yet cannot be found out by trying.
    Risk: a topic that is half written, or whose groups cannot be moved, when the missing right is found.
    """
    source, group = filled_topic(secure, f"{user.name}-source"), f"{user.name}.group"
    commit(secure.bootstrap_servers, group, {(source, 0): 5})
    seen = [Right("DESCRIBE", "__consumer_offsets"), Right("DESCRIBE", group, "GROUP")]
    allow(secure, user.name, Right("READ", source), Right("DESCRIBE_CONFIGS", source), *seen)
    assert user.run("backup", topics=[source], groups=[group]).exit_code == 0
    take(secure, user.name, *seen)
    target = f"again-{source}"
    command = ["restore", "--id", "r1", "--prefix", "again-", "--execute"]
    rights = [Right(each, target) for each in ("CREATE", "READ", "WRITE", "ALTER_CONFIGS")]
    if with_groups:
        command += ["--groups", group]
        rights += [
            Right("READ", group, "GROUP"),
            Right("DESCRIBE", "__consumer_offsets"),
            Right("WRITE", "kafka-backup-", "TRANSACTIONAL_ID", prefixed=True),
        ]

    def refused(lacking: Right) -> None:
        result = user.run(*command, topics=[source])
        assert result.exit_code == 2, result.output
        told = " ".join(problem["detail"] for problem in json.loads(result.stdout)["problems"])
        assert lacking.operation in told
        assert lacking.name in told
        assert target not in secure.admin().list_topics(timeout=30).topics

    user.needs_each(rights, refused)
    result = user.run(*command, topics=[source])
    assert result.exit_code == 0, result.output
    assert positions(secure, group) == {(source, 0): 5} | ({(target, 0): 5} if with_groups else {})
    again = read_topic(secure.bootstrap_servers, target)
    for partition, records in read_topic(secure.bootstrap_servers, source).items():
        assert again[partition] == renumbered(records)


def test_a_verification_needs_to_read_the_target_only(secure: SecureCluster, user: User) -> None:
    """What: READ on a restored topic and nothing else; then without it.

    Why: drills are run by people who may change nothing.
    Risk: a drill that needs an administrator; or "damaged" where a right is missing.
    """
    source = filled_topic(secure, f"{user.name}-source")
    everything = [Right("ALL", user.name, prefixed=True), Right("ALL", "again-", prefixed=True)]
    allow(secure, user.name, *everything)
    assert user.run("backup", topics=[source]).exit_code == 0
    done = user.run("restore", "--id", "r1", "--prefix", "again-", "--execute", topics=[source])
    assert done.exit_code == 0, done.output
    take(secure, user.name, *everything)
    target = f"again-{source}"

    def refused(lacking: Right) -> None:
        told = error_of(user.run("verify", "--restore", "r1", topics=[source]))
        assert f"READ on topic '{target}'" in told

    user.needs_each([Right("READ", target)], refused)
    assert user.run("verify", "--restore", "r1", topics=[source]).exit_code == 0

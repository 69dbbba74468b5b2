"""The day on which the cluster is gone: another cluster, topics and groups back, consumers go on."""

from pathlib import Path

import dagster as dg
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from kafka_backup import parse_config
from kafka_backup_dagster import build_definitions
from tests.support.groups import positions, read_and_commit, read_on
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord, renumbered
from tests.support.topics import new_topic, produce, read_topic, topic_config


class Site:
    """Everything of one configuration in Dagster, with an instance of its own: the old one is lost, too."""

    def __init__(self, kafka: KafkaCluster, repository: Path, topic: str, group: str) -> None:
        content = {
            "cluster": {"bootstrap_servers": kafka.bootstrap_servers, "retry_seconds": 60},
            "repository": {"url": f"file://{repository}"},
            "backup": {"topics": [topic], "consumer_groups": [group]},
        }
        self.defs = build_definitions(parse_config(content, source="test"), partitions_def=None)
        self.instance = dg.DagsterInstance.ephemeral()

    def back_up(self) -> None:
        job = self.defs.resolve_implicit_global_asset_job_def()
        assert job.execute_in_process(instance=self.instance).success

    def run(self, job: str, **form: object) -> dict[str, dg.MetadataValue]:
        done = self.defs.resolve_job_def(job).execute_in_process(run_config=form, instance=self.instance)
        (event,) = [event for event in done.all_events if event.is_successful_output]
        return dict(event.step_output_data.metadata)


def write_with_aborts(bootstrap_servers: str, topic: str) -> None:
    """An aborted and a committed transaction: offsets that no reader sees."""
    producer = Producer(
        {"bootstrap.servers": bootstrap_servers, "transactional.id": f"tx-{topic}", "log_level": 0}
    )
    producer.init_transactions(60)
    for value, commit in ((b"never", False), (b"transaction", True)):
        producer.begin_transaction()
        for number in range(10):
            producer.produce(topic, value + b" %d" % number, partition=0)
        producer.flush(60)
        (producer.commit_transaction if commit else producer.abort_transaction)(60)


def test_disaster_recovery_simulation(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests backups, the loss of every broker and of Dagster, a restore into a new cluster, and its consumers.

    It is the day for which all of this exists; each part works alone, and must work together.
    Could go wrong: consumers read records twice or miss some, settings are gone, aborted records are data.
    """
    repository = tmp_path / "repository"
    with KafkaCluster(1) as lost:
        topic = new_topic(lost, 2, config={"retention.ms": 700_000_000, "max.message.bytes": 2_000_000})
        group = f"billing-{topic}"
        for partition in range(2):
            produce(
                lost.bootstrap_servers,
                topic,
                [NewRecord(b"%d-%d" % (partition, i), b"%d" % i, [(b"h", None)]) for i in range(60)],
                partition=partition,
                codec="zstd",
            )
        write_with_aborts(lost.bootstrap_servers, topic)
        done = read_and_commit(lost.bootstrap_servers, group, topic, 50)
        site = Site(lost, repository, topic, group)
        site.back_up()
        written = read_topic(lost.bootstrap_servers, topic)
        committed = positions(lost, group)
        produce(lost.bootstrap_servers, topic, [NewRecord(b"after the last backup")])

    site = Site(kafka, repository, topic, group)
    form = {"restore_id": "the-day", "topics": [topic]}
    assert site.run("restore", **form)["kafka_backup/records"].value == 130
    assert site.run("restore", **form, mode="execute")["kafka_backup/status"].value == "verified"
    assert read_topic(kafka.bootstrap_servers, topic) == {
        partition: renumbered(records) for partition, records in written.items()
    }
    settings = topic_config(AdminClient({"bootstrap.servers": kafka.bootstrap_servers}), topic)
    assert (settings["retention.ms"], settings["max.message.bytes"]) == ("700000000", "2000000")

    (snapshot,) = sorted((repository / "groups").iterdir())
    reset = {
        "groups": [group],
        "snapshot": snapshot.name.removesuffix(".json.zst"),
        "restore_id": "the-day",
    }
    site.run("reset_offsets", **reset)
    site.run("reset_offsets", **reset, mode="execute")

    read_now = read_on(kafka.bootstrap_servers, group, topic)
    expected = {
        partition: [
            record.value for record in records if record.offset >= committed.get((topic, partition), 0)
        ]
        for partition, records in written.items()
    }
    assert read_now == expected
    everything = [record.value for records in written.values() for record in records]
    assert sorted([*done, *(value for values in read_now.values() for value in values)]) == sorted(everything)

    # And from then on the new cluster is backed up, into a repository of its own.
    fresh = Site(kafka, tmp_path / "new", topic, group)
    fresh.back_up()
    assert fresh.run("verify", level="data")["kafka_backup/status"].value == "ok"

"""Restore drills on a real broker: what they restore, prove, clean up and remember."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from kafka_backup import CancelledError, ConfigurationError, Engine, StopToken
from kafka_backup.cli import main
from kafka_backup.progress import RestoreProgress
from kafka_backup.repository.drills import DrillStore
from kafka_backup.restore import Abandonment
from tests.support.damage import damage
from tests.support.engine import capture, open_engine
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import delete_topic, new_topic, produce
from tests.support.waiting import wait_for


def write(kafka: KafkaCluster, topic: str, count: int = 100) -> None:
    produce(kafka.bootstrap_servers, topic, [NewRecord(b"x" * 100, None, [], 1_700_000_000_000)] * count)


def scratch(kafka: KafkaCluster) -> list[str]:
    return [name for name in kafka.admin().list_topics(timeout=60).topics if name.startswith("drill-")]


def captured(engine: Engine, *topics: str) -> str:
    return capture(engine, *topics)[-1].capture


def test_drill_restores_the_newest_capture_and_an_older_one(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests drills over three captures of two topics: which captures and records, and what is left.

    Only a restore that was done is a restore that can be done.
    Could go wrong: always the same capture, records of another state, scratch topics that stay for ever.
    """
    first, second = new_topic(kafka), new_topic(kafka, 2)
    with open_engine(kafka, tmp_path, topics=[first, second]) as engine:
        with pytest.raises(ConfigurationError, match="there is no repository"):
            engine.drill()
        captures = []
        for number in range(3):
            write(kafka, first, 10)
            if number != 1:
                write(kafka, second, 5)
            captures.append(captured(engine, first, second))
        reports = [engine.drill() for _ in range(3)]

        assert [report.status for report in reports] == ["passed"] * 3
        assert [[each.capture for each in report.captures] for report in reports] == [
            [captures[2], captures[0]],
            [captures[2], captures[1]],
            [captures[2], captures[0]],
        ]
        assert [[each.records for each in report.captures] for report in reports] == [
            [40, 15],
            [40, 25],
            [40, 15],
        ]
        assert set(reports[0].captures[0].topics) == {first, second}
        assert engine.last_good_drill() == reports[-1]
        assert not engine.repository().pins()
    wait_for(lambda: not scratch(kafka), what="no scratch topic")


def test_topics_take_turns_within_the_size_of_a_drill(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests drills of one byte: one topic each time, and another one the next time.

    A large cluster is proved piece by piece.
    Could go wrong: the first topic is proved every week and the others never.
    """
    topics = sorted(new_topic(kafka) for _ in range(3))
    with open_engine(kafka, tmp_path, topics=topics) as engine:
        for topic in topics:
            write(kafka, topic, 5)
        captured(engine, *topics)
        proved = [engine.drill(max_raw_bytes=1).captures[0].topics for _ in range(3)]
        assert proved == [(topic,) for topic in topics]
        assert engine.drill([topics[1]], max_raw_bytes=1).captures[0].topics == (topics[1],)


def test_drill_of_a_damaged_capture_fails_and_cleans_up(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a drill whose newest capture lacks an object, and then the command line's answer.

    That is what a drill is for: to find it out on a good day.
    Could go wrong: it passes, it stops without evidence, or half a topic stays in the cluster.
    """
    topic = new_topic(kafka)
    with open_engine(kafka, tmp_path / "r", topics=[topic]) as engine:
        write(kafka, topic)
        captured(engine, topic)
        good = engine.drill()
        (segment,) = (tmp_path / "r" / "topics" / topic).rglob("*.log*")
        damage(segment)
        report = engine.drill()

        assert report.status == "failed"
        assert segment.name in (report.captures[0].problem or "")
        assert engine.last_good_drill() == good
        assert not engine.repository().pins()
    wait_for(lambda: not scratch(kafka), what="no scratch topic")
    config = tmp_path / "kafka-backup.yaml"
    config.write_text(
        json.dumps(
            {
                "cluster": {"bootstrap_servers": kafka.bootstrap_servers},
                "repository": {"url": f"file://{tmp_path}/r"},
                "backup": {"topics": [topic]},
            }
        )
    )
    result = CliRunner().invoke(main, ["--config", str(config), "drill", "--max-size", "1MiB", "--json"])
    assert result.exit_code == 4
    answer = json.loads(result.stdout)
    assert answer["status"] == "failed"
    assert segment.name in answer["captures"][0]["problem"]


def test_interrupted_drill_leaves_nothing_behind(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a drill that is stopped while it produces, and one that is killed, and the next one.

    A drill must not fill the cluster that it wants to save.
    Could go wrong: scratch topics and pins of killed drills stay, or another topic is deleted with them.
    """
    topic = new_topic(kafka)
    with open_engine(kafka, tmp_path, topics=[topic]) as engine:
        write(kafka, topic, 1000)
        captured(engine, topic)
        stop = StopToken()

        def stop_when_producing(progress: RestoreProgress) -> None:
            if progress.phase == "produce":
                stop.stop()

        with pytest.raises(CancelledError):
            engine.drill(stop=stop, on_progress=stop_when_producing)
        wait_for(lambda: not scratch(kafka), what="no scratch topic")
        assert not engine.repository().pins()

        class Killed(BaseException):
            """Nothing is cleaned up any more."""

        deleted = engine.abandon_restore
        known = DrillStore(engine.repository().store).restore_ids()

        def killed(restore_id: str) -> Abandonment:
            if restore_id in known:
                return deleted(restore_id)
            raise Killed

        engine.abandon_restore = killed  # type: ignore[method-assign]
        with pytest.raises(Killed):
            engine.drill()
        engine.abandon_restore = deleted  # type: ignore[method-assign]
        wait_for(lambda: len(scratch(kafka)) == 1, what="the scratch topic of the killed drill")
        mine = new_topic(kafka, name=f"{scratch(kafka)[0]}-mine")

        assert engine.drill().status == "passed"
        wait_for(lambda: scratch(kafka) == [mine], what="no scratch topic")
        delete_topic(kafka, mine)

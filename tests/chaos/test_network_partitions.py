"""Nobody answers in the middle: offsets are read whole or not at all."""

from __future__ import annotations

import secrets
import threading
from pathlib import Path

import pytest

from kafka_backup import Engine, UnreachableError
from kafka_backup.group_snapshot import TakenSnapshot
from kafka_backup.kafka.coordinators import Coordinators
from kafka_backup.kafka.groups import GroupClient
from tests.support.engine import engine_config, open_engine
from tests.support.groups import filled_topic, positions_of, read_and_commit, set_positions
from tests.support.kafka_cluster import KafkaCluster


@pytest.mark.parametrize("how", ["silent", "reset"])
@pytest.mark.parametrize("heals", [True, False], ids=["heals", "stays"])
def test_chaos_network_partition_during_offset_fetch(
    kafka3: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, *, heals: bool
) -> None:
    """What: all brokers fall silent, or drop everybody, between two requests for the positions of 60 groups.

    Why: a partial answer that is taken for all of it makes consumers skip records after a restore.
    Risk: a snapshot with holes, or a crash instead of an error that says "try again".
    """
    topic = filled_topic(kafka3, 2)
    prefix = f"events-{secrets.token_hex(4)}"
    read_and_commit(kafka3.bootstrap_servers, f"{prefix}-real", topic, 20)
    groups = {f"{prefix}-{i}": {(topic, 0): i % 30, (topic, 1): 30 - i % 30} for i in range(60)}
    set_positions(kafka3, groups)
    expected = groups | positions_of(kafka3, [f"{prefix}-real"])
    config = engine_config(kafka3, tmp_path)
    patience = 60.0 if heals else 3.0
    impatient = config.cluster.model_copy(
        update={"retry_seconds": patience, "properties": {"socket.timeout.ms": "1000"}}
    )
    fetch_really, topic_really = GroupClient._offset_fetch, Coordinators.offsets_topic
    began, tries_again = threading.Event(), threading.Event()
    lock = threading.Lock()
    left = [2]

    def cut_off(client: GroupClient, address: object, asked: object, *, require_stable: bool) -> object:
        with lock:
            if require_stable:
                left[0] -= 1
                if left[0] == 0:
                    for proxy in kafka3.proxies.values():
                        proxy.silent() if how == "silent" else proxy.reset()
                    began.set()
        return fetch_really(client, address, asked, require_stable=require_stable)  # type: ignore[arg-type]

    def notice(coordinators: Coordinators) -> object:
        if began.is_set():
            tries_again.set()
        return topic_really(coordinators)

    monkeypatch.setattr(GroupClient, "_offset_fetch", cut_off)
    monkeypatch.setattr(Coordinators, "offsets_topic", notice)
    results: list[TakenSnapshot | UnreachableError] = []

    def take() -> None:
        with Engine.open(config.model_copy(update={"cluster": impatient})) as engine:
            try:
                results.append(engine.groups.snapshot([f"{prefix}-*"]))
            except UnreachableError as error:
                results.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        assert began.wait(60)
        if heals:
            assert tries_again.wait(60)
        else:
            thread.join(120)
    finally:
        for proxy in kafka3.proxies.values():
            proxy.open()
        thread.join(120)
    (result,) = results
    if heals:
        assert isinstance(result, TakenSnapshot)
        assert result.errors == {}
        found = {
            group.group: {(p.topic, p.partition): p.offset for p in group.positions}
            for group in result.snapshot.groups
        }
        assert found == expected
    else:
        assert isinstance(result, UnreachableError)
        assert (result.exit_code, result.retriable) == (3, True)
        assert not (tmp_path / "groups").exists()
    monkeypatch.setattr(GroupClient, "_offset_fetch", fetch_really)
    with open_engine(kafka3, tmp_path) as engine:
        assert len(engine.groups.snapshot([f"{prefix}-*"]).snapshot.groups) == 61

"""A request to stop is seen also while nobody answers."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from kafka_backup import Engine, StopToken, parse_config
from kafka_backup.errors import CancelledError


def test_stop_is_seen_while_brokers_do_not_answer(tmp_path: Path) -> None:
    """Tests that a capture whose broker accepts and stays silent ends soon after a stop, not after its retries.

    It matters because Dagster's Terminate and Ctrl-C must work on the day when brokers hang.
    A wait that does not look up would hold the run for the whole retry time.
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = parse_config(
            {
                "cluster": {
                    "bootstrap_servers": f"127.0.0.1:{silent.getsockname()[1]}",
                    "properties": {"socket.timeout.ms": 2000},
                    "retry_seconds": 600,
                },
                "repository": {"url": f"file://{tmp_path}"},
            },
            source="test",
        )
        stop = StopToken()
        accepted = threading.Thread(target=lambda: (silent.accept(), stop.stop()), daemon=True)
        accepted.start()
        with Engine.open(config) as engine, pytest.raises(CancelledError):
            list(engine.backup(["orders"], stop=stop))

"""Fixtures for all tests, and the rule that a test explains itself."""

import inspect
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage
import hypothesis
import pytest

from tests.support.kafka_cluster import KafkaCluster
from tests.support.secure_cluster import SecureCluster, secure_cluster

# No test is a timed test: a busy machine must not fail one.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.register_profile("deep", deadline=None, max_examples=5000)
hypothesis.settings.register_profile(
    "mutants", deadline=None, phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate]
)
hypothesis.settings.load_profile("untimed")

KINDS = ("unit", "integration", "chaos", "e2e")
EXPLANATION = "explanation"


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaCluster]:
    """One real broker for the whole session; a test makes its own topics. Each xdist worker has its own."""
    with KafkaCluster(1) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kafka3() -> Iterator[KafkaCluster]:
    """Three real brokers behind proxies. Who hurts one heals it, and waits for `in_sync == 3`."""
    with KafkaCluster(3, proxied=True) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def secure() -> Iterator[SecureCluster]:
    """One real broker that wants TLS, SASL and rights at its various listeners."""
    with secure_cluster() as cluster:
        yield cluster


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --explain."""
    parser.addoption(
        "--explain",
        action="store_true",
        help="beside each result: what the test tests, why it matters, what could go wrong",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Makes SIGTERM end the session as Ctrl-C does, so that containers are removed."""
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if config.getoption("explain"):
        config.option.verbose = max(1, config.option.verbose)
        config.pluginmanager.register(_Explainer(config))


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem() -> Iterator[Any]:
    """Refuses a test without an explanation: its file is a collection error."""
    made = yield
    for item in made if isinstance(made, list) else [made]:
        if isinstance(item, pytest.Function):
            lines = [line for line in _explanation(item).splitlines() if line.strip()]
            if len(lines) < 3:
                raise pytest.Collector.CollectError(
                    f"{item.name} needs a docstring of three lines: what it tests, why it matters, "
                    "what could go wrong"
                )
    return made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test with its folder's name, and lets its explanation travel with its reports."""
    root = Path(__file__).parent
    for item in items:
        if (kind := item.path.relative_to(root).parts[0]) in KINDS:
            item.add_marker(kind)
        item.user_properties.append((EXPLANATION, _explanation(item)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """Lets coverage count what a test reaches under its kind, in this process and in those that it starts."""
    kind = next((kind for kind in KINDS if item.get_closest_marker(kind)), "")
    os.environ["KAFKA_BACKUP_TEST_KIND"] = kind
    if (measured := coverage.Coverage.current()) is not None:
        measured.switch_context(kind)
    return (yield)


def _explanation(item: pytest.Item) -> str:
    return inspect.cleandoc(getattr(getattr(item, "obj", None), "__doc__", None) or "")


class _Explainer:
    """Prints a test's docstring below its result."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._explanations: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._explanations[report.nodeid] = str(dict(report.user_properties).get(EXPLANATION, ""))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        explanation = self._explanations.pop(nodeid, "")
        if reporter is None or not explanation:
            return
        reporter.ensure_newline()
        for line in filter(str.strip, explanation.splitlines()):
            reporter.write_line(f"    {line}")

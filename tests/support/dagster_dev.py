"""Dagster's user interface and daemon on a project, as a developer starts them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_for


class DagsterNotReadyError(RuntimeError):
    """It did not start."""


@dataclass(frozen=True)
class DagsterServer:
    """A running `dg dev` or `dagster dev`."""

    url: str
    process: "subprocess.Popen[bytes]"

    def query(self, text: str, **variables: object) -> Mapping[str, Any]:
        """Asks the GraphQL interface; fails on errors."""
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert "errors" not in found, found
        data: Mapping[str, Any] = found["data"]
        return data


@contextlib.contextmanager
def dagster_dev(
    command: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    port: int = 0,
    output: Path | None = None,
) -> Iterator[DagsterServer]:
    """Starts it, waits until it answers, and ends it with everything that it started.

    Args:
        command: such as `["dg", "dev"]`; a program of our own environment.
        folder: where it is started; Dagster looks for its dagster.yaml there.
        environment: more variables.
        port: wanted; another one is taken if it is not free.
        output: what it says goes here; None: to the terminal.

    Raises:
        DagsterNotReadyError: It ended before it answered.
    """
    known = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    programs = Path(sys.executable).parent
    known |= {"PATH": f"{programs}{os.pathsep}{known.get('PATH', '')}", "DAGSTER_DISABLE_TELEMETRY": "1"}
    chosen = free_port(port)
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(output.open("ab")) if output is not None else None
        # A process group of its own: Ctrl-C reaches us alone, and whatever it starts can be ended with it.
        process = subprocess.Popen(
            [str(programs / command[0]), *command[1:], "-h", "127.0.0.1", "-p", str(chosen)],
            cwd=folder,
            env=known | dict(environment),
            start_new_session=True,
            stdout=stream,
            stderr=stream,
        )
        url = f"http://127.0.0.1:{chosen}"

        def ready() -> bool:
            if process.poll() is not None:
                raise DagsterNotReadyError(f"Dagster did not start (exit code {process.returncode})")
            with (
                contextlib.suppress(urllib.error.URLError, OSError),
                urllib.request.urlopen(f"{url}/server_info", timeout=2) as answer,
            ):
                return bool(answer.status == 200)
            return False

        try:
            wait_for(ready, 180, "Dagster's user interface", interval=0.3)
            yield DagsterServer(url, process)
        finally:
            end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Asks it to stop, and ends what is left of its group."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port(wanted: int) -> int:
    """The wanted port if it is free, else another one."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise DagsterNotReadyError("no free port")

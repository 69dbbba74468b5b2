"""One invocation of the command line: where it writes, how it stops, which exit code it ends with."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeVar

import click

from kafka_backup.cli import logs
from kafka_backup.cli.logs import Format
from kafka_backup.config import load_config
from kafka_backup.engine import Engine
from kafka_backup.errors import (
    AuthorizationError,
    BrokerError,
    CancelledError,
    ConfigurationError,
    DamagedError,
    KafkaBackupError,
    RefusedError,
    TopicMissingError,
    UnreachableError,
    WriterConflictError,
)
from kafka_backup.progress import Deadline, StopToken

if TYPE_CHECKING:
    from rich.console import RenderableType

EXIT_OK, EXIT_BUG, EXIT_REQUEST, EXIT_UNREACHABLE, EXIT_DAMAGED, EXIT_REFUSED = range(6)
EXIT_INTERRUPTED = 130

_KINDS: Sequence[tuple[type[KafkaBackupError], str]] = (
    (CancelledError, "cancelled"),
    (WriterConflictError, "writer_conflict"),
    (RefusedError, "refused"),
    (TopicMissingError, "missing"),
    (DamagedError, "damaged"),
    (AuthorizationError, "authorization"),
    (ConfigurationError, "configuration"),
    (BrokerError, "broker"),
    (UnreachableError, "unreachable"),
)
_SLICE_SECONDS = 0.2
_STOP_SECONDS = 10.0
"""How long a stopped run may take to come to its next safe point before it is left alone."""
_PIPE_WIDTH = 220

T = TypeVar("T")


def kind_of(error: KafkaBackupError) -> str:
    """Return the word for an error's class that the JSON documents use."""
    return next((kind for known, kind in _KINDS if isinstance(error, known)), "bug")


class _Abandoned(CancelledError):
    """The work did not stop in time and was left running; the process must end at once."""


class Session:
    """One invocation.

    Attributes:
        config_path: the configuration file.
        debug: show stack traces of expected errors too.
        log_format: of everything on stderr.
        as_json: answer with one JSON document on stdout.
        document: the answer as far as it is known, so that an error's answer has its fields too.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.config_path = "kafka-backup.yaml"
        self.debug = False
        self.log_format: Format = "text"
        self.as_json = as_json
        self.document: dict[str, Any] = {}
        self._stop = StopToken()
        self._signals = 0

    @property
    def shows_progress(self) -> bool:
        """Whether somebody watches stderr."""
        return self.log_format == "text" and sys.stderr is not None and sys.stderr.isatty()

    def run(self, work: Callable[[Engine, StopToken], T]) -> T:
        """Do `work` with an engine, and stop it at a signal.

        The work has its own thread, because a call into a client library may keep the interpreter
        from handling signals. A signal asks it to stop; a second one, or a stop that takes too
        long, leaves it: nothing is half-committed even then, as after a crash.

        Raises:
            CancelledError: a signal came.
            KafkaBackupError: whatever the work raised.
        """
        if not Path(self.config_path).exists():
            raise ConfigurationError(
                f"there is no configuration file {self.config_path}; name one with --config or in "
                "$KAFKA_BACKUP_CONFIG"
            )
        config = load_config(self.config_path)
        future: Future[T] = Future()

        def target() -> None:
            try:
                with Engine.open(config) as engine:
                    result = work(engine, self._stop)
            except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=target, name="work", daemon=True).start()
        self._wait_for(future)
        try:
            return future.result()
        except UnreachableError as error:
            if self._stop.stopped:
                raise CancelledError(f"stopped on request ({error})") from error
            raise

    def _wait_for(self, future: Future[Any]) -> None:
        patience: Deadline | None = None
        while not wait([future], timeout=_SLICE_SECONDS).done:
            if not self._stop.stopped:
                continue
            if patience is None:
                patience = Deadline(_STOP_SECONDS)
                self.say("stopping at the next safe point; interrupt again to leave at once")
            if patience.passed or self._signals > 1:
                raise _Abandoned("stopped on request, without waiting; what was committed before stays")

    def say(self, line: str) -> None:
        """Write one line for people to stderr."""
        _write(sys.stderr, logs.line("info", line, style=self.log_format) + "\n")

    def complain(self, message: str) -> None:
        """Write one line that says what is wrong to stderr."""
        message = " ".join(message.split())
        _write(sys.stderr, logs.line("error", message, style=self.log_format) + "\n")

    def answer(
        self, document: dict[str, Any], *tables: RenderableType | Callable[[], RenderableType]
    ) -> None:
        """Write the answer to stdout: the document for programs, else the tables, made only then."""
        self.document = document
        if self.as_json:
            _write(sys.stdout, json.dumps(document, indent=2) + "\n")
        else:
            for table in tables:
                _write(sys.stdout, _rendered(table() if callable(table) else table))

    def close(self, run: Callable[[], int]) -> int:
        """Call `run` and return the exit code, with every error said in one line."""
        try:
            with self._signals_stop():
                return run()
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "kafka-backup"
            return self._fail("usage", f"{error.format_message()} (see '{path} --help')", EXIT_REQUEST)
        except click.ClickException as error:
            return self._fail("usage", error.format_message(), EXIT_REQUEST)
        except KafkaBackupError as error:
            if type(error) is KafkaBackupError:
                return self._bug(error)
            if self.debug:
                _write(sys.stderr, "".join(traceback.format_exception(error)))
            code = self._fail(kind_of(error), str(error), error.exit_code)
            if isinstance(error, _Abandoned):
                # The interpreter would wait for the engine's threads.
                os._exit(code)
            return code
        except Exception as error:  # noqa: BLE001 - the last resort: say that it is a bug
            return self._bug(error)
        finally:
            logs.tear_down()

    def _bug(self, error: Exception) -> int:
        _write(sys.stderr, "".join(traceback.format_exception(error)))
        message = f"this is a bug in kafka-backup, please report it: {type(error).__name__}: {error}"
        return self._fail("bug", message, EXIT_BUG)

    def _fail(self, kind: str, message: str, code: int) -> int:
        self.complain(message)
        if self.as_json:
            status: Literal["interrupted", "error"] = "interrupted" if kind == "cancelled" else "error"
            self.answer({**self.document, "status": status, "error": {"kind": kind, "message": message}})
        return code

    @contextmanager
    def _signals_stop(self) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into a request to stop."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            self._signals += 1
            self._stop.stop()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _rendered(table: RenderableType) -> str:
    from rich.console import Console

    terminal = sys.stdout is not None and sys.stdout.isatty()
    text = StringIO()
    Console(
        file=text,
        force_terminal=terminal,
        width=None if terminal else _PIPE_WIDTH,
        markup=False,
        highlight=False,
        emoji=False,
    ).print(table)
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def _write(stream: TextIO | None, text: str) -> None:
    """Write all or, where nobody reads any more, nothing: the work was done all the same."""
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        # What is buffered would fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

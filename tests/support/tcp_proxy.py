"""A TCP proxy on 127.0.0.1 that a test can turn silent, or make drop everybody."""

import asyncio
import contextlib
import threading
from typing import Literal

Mode = Literal["open", "silent", "reset"]


class TcpProxy:
    """Stands between clients and one port.

    open: forwards. silent: accepts and delivers nothing; what was sent arrives on `open()`, as after a
        network partition that healed. reset: RST to everybody, new ones too.

    Attributes:
        connections: How many were accepted so far.
        answered: Bytes that went back to clients so far.
        bytes_per_second: Of each connection's answers; None: as fast as it goes.
        cut_after: Bytes of answers after which each connection is cut, in the middle of one; None: never.
    """

    def __init__(self, target_port: int, port: int = 0) -> None:
        self.target_port = target_port
        self.connections = 0
        self.answered = 0
        self.bytes_per_second: int | None = None
        self.cut_after: int | None = None
        self._mode: Mode = "open"
        self._peers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._flow = asyncio.Event()
        self._flow.set()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", port))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()

    def open(self) -> None:
        """Forwards, from now on."""
        self._set("open")

    def silent(self) -> None:
        """Accepts, and delivers nothing."""
        self._set("silent")

    def reset(self) -> None:
        """Cuts every connection, and every new one."""
        self._set("reset")

    def close(self) -> None:
        """Cuts every connection and stops listening."""
        if self._loop.is_closed():
            return
        self._set("reset")
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _set(self, mode: Mode) -> None:
        done = threading.Event()

        def apply() -> None:
            self._mode = mode
            if mode == "silent":
                self._flow.clear()
            else:
                self._flow.set()
            if mode == "reset":
                for writer in list(self._peers):
                    writer.transport.abort()
            done.set()

        self._loop.call_soon_threadsafe(apply)
        done.wait(5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._mode == "reset":
            writer.transport.abort()
            return
        back_writer: asyncio.StreamWriter | None = None
        self._peers.add(writer)
        try:
            await self._flow.wait()  # silent: connected to nobody yet
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
            self._peers.add(back_writer)
            await asyncio.gather(self._pump(reader, back_writer), self._answer(back_reader, writer))
        except OSError:
            pass  # the broker is down: the client sees its connection cut, as it would without a proxy
        finally:
            self._peers.discard(writer)
            writer.transport.abort()
            if back_writer:
                self._peers.discard(back_writer)
                back_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 17):
                await self._flow.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 17 if self.bytes_per_second is None else 1 << 12):
                await self._flow.wait()
                if self.cut_after is not None:
                    data = data[: max(0, self.cut_after - passed)]
                if self.bytes_per_second is not None:
                    await asyncio.sleep(len(data) / self.bytes_per_second)
                passed += len(data)
                self.answered += len(data)
                writer.write(data)
                await writer.drain()
                if passed == self.cut_after:
                    writer.transport.abort()
                    return
        writer.close()

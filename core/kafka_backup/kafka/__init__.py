"""The brokers: connections, metadata, fetching, producing, topics.

* ``settings``: how to reach a cluster, in librdkafka's property names.
* ``connection``, ``auth``: one blocking connection to one broker.
* ``cluster``: who leads what, and the questions that go to leaders.
* ``fetch``, ``produce``: record batches in and out, never copied.
* ``topics``: topics and their settings.

Message formats: https://kafka.apache.org/protocol and ``clients/src/main/resources/common/message``.
"""

import sys


def _load_kio() -> None:
    """Import kio without hypothesis, for which it has strategies: loading that takes longer than all the rest."""
    if "hypothesis" in sys.modules:
        return
    sys.modules["hypothesis"] = None  # type: ignore[assignment] # documented: makes its import fail
    try:
        import kio.static.primitive  # noqa: F401
    finally:
        del sys.modules["hypothesis"]


_load_kio()

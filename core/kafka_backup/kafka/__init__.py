"""The brokers: connections, metadata, fetching, producing, topics.

* ``settings``: how to reach a cluster, in librdkafka's property names.
* ``connection``, ``auth``: one blocking connection to one broker.
* ``cluster``: who leads what, and the questions that go to leaders.
* ``fetch``, ``produce``: record batches in and out, never copied.
* ``topics``: topics and their settings.

Message formats: https://kafka.apache.org/protocol and ``clients/src/main/resources/common/message``.
"""

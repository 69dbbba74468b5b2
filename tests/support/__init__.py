"""What the tests and the demo share: real Kafka in containers, and an independent view of what is in it.

Nothing here uses `kafka_backup`: a test that compares with these helpers compares with somebody else's
opinion.

`kafka_cluster`  1 to 3 real brokers, with faults; `tcp_proxy` cuts clients off; `kafka_image` finds or builds
the image
`topics`         create topics, write to them, read them
`records`        a slow, plain decoder and encoder of record batches
`kafka_wire`     a few requests to exactly one broker, by hand
`dump_log`       Kafka's own `kafka-dump-log.sh`
`waiting`        `wait_for(condition)`
"""

"""`make demo` and `make dev`: the main job, on a real broker in a container, with three real-looking topics.

`topics`    what is in them
`compare`   are two topics the same? By confluent-kafka, a client that shares nothing with the engine
`__main__`  back up and restore through Dagster, compare, print one table
`dev`       keep the broker, and open Dagster's user interface on it
"""

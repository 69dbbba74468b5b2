"""The command line: asks the engine, and says what it answered to people or to programs.

`commands` has the commands and their options (those about consumer groups are in `groups`), `answers` the JSON documents, `tables` what people
see instead, `session` one invocation from its arguments to its exit code.
"""

import kafka_backup.cli.groups  # noqa: F401 - registers its commands
from kafka_backup.cli.commands import main

__all__ = ["main"]

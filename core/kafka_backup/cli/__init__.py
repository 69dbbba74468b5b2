"""The command line: asks the engine, and says what it answered to people or to programs.

`commands` has the commands and their options, `answers` the JSON documents, `tables` what people
see instead, `session` one invocation from its arguments to its exit code.
"""

from kafka_backup.cli.commands import main

__all__ = ["main"]

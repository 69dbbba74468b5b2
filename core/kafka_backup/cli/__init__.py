"""The command line: asks the engine, and says what it answered to people or to programs.

`commands` has the commands and their options (those about restores are in `restores`, about consumer groups
in `groups`, about losses in `losses`, about the repository itself in `care`, the restore drill in `drill`), `answers`
the JSON documents, `tables` what people see
instead, `session` one invocation from its arguments to its exit code.
"""

import kafka_backup.cli.care
import kafka_backup.cli.drill
import kafka_backup.cli.groups
import kafka_backup.cli.losses
import kafka_backup.cli.restores  # noqa: F401 - these register their commands
from kafka_backup.cli.commands import main

__all__ = ["main"]

"""The command line: asks the engine, and says what it answered to people or to programs.

`commands` has the commands and their options (those about restores are in `restores`, about consumer groups
in `groups`, about losses in `losses`, about the repository itself in `care`, the restore drill in `drill`: each
is loaded when it is asked for), `answers` the JSON documents, `tables` what people see instead, `session` one
invocation from its arguments to its exit code. A program begins in `__main__`, before anything is loaded.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kafka_backup.cli.commands import main

__all__ = ["main"]


def __getattr__(name: str) -> object:
    """Load the commands when they are asked for."""
    if name != "main":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kafka_backup.cli import commands

    return commands.main

"""New names of topics and groups, by rules."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kafka_backup.errors import ConfigurationError
from kafka_backup.repository.restore_documents import RenameRule


def check_rules(rules: Sequence[RenameRule]) -> None:
    """Make sure that rename rules can be used.

    Raises:
        ConfigurationError: naming the one that cannot.
    """
    for rule in rules:
        try:
            re.sub(f"(?:{rule.pattern})?", rule.replacement, "")
        except (re.error, IndexError) as error:
            raise ConfigurationError(
                f"rename {rule.pattern}={rule.replacement}: not a valid pattern or replacement ({error})"
            ) from error


def renamed(rules: Sequence[RenameRule], name: str) -> str:
    """The new name by the first rule that matches the whole name; without one, the name as it is."""
    for rule in rules:
        if match := re.fullmatch(rule.pattern, name):
            return match.expand(rule.replacement)
    return name

"""The engine's public names, which are loaded when they are asked for."""

from __future__ import annotations

import kafka_backup


def test_every_public_name_has_a_home_and_is_there() -> None:
    """Every name of `__all__` can be imported, and no other has a home.

    It matters because names are loaded when they are asked for, so that a mistake shows late.
    A new name could be listed for type checkers and be missing at run time.
    """
    assert set(kafka_backup.__all__) == set(kafka_backup._HOMES)
    for name in kafka_backup.__all__:
        assert getattr(kafka_backup, name) is not None
    assert set(kafka_backup.__all__) <= set(dir(kafka_backup))

"""Checks of plain values that every config shares, so that they refuse in the same words."""

from collections.abc import Collection, Mapping
from typing import Any


def check_integer(name: str, value: Any, minimum: int = 1) -> None:
    """Raises ValueError unless `value` is an int (not a bool, not a float) of at least `minimum`."""
    if type(value) is not int or value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}")


def check_share(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a number in [0, 1]."""
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")


def check_learned_window(learns: bool, window: int, share: float, section: str = "") -> None:
    """Raises ValueError where a router is to learn a window that has one token, or none to begin with."""
    if learns and (window == 1 or share == 0):
        raise ValueError(f"{section}router_learns_window needs router_window > 1 and router_share > 0, "
                         f"got {window} and {share}")


def check_mapping(section: str, values: Any) -> None:
    """Raises ValueError unless a section of a config is a mapping or a `ConfigDict`, which is no `Mapping`."""
    if not hasattr(values, "keys"):
        raise ValueError(f"{section} must be a mapping of fields to values, got {values!r}")


def check_fields(section: str, values: Mapping[str, Any], known: Collection[str], required: Collection[str]) -> None:
    """Checks the names of the fields in a section of a config.

    Raises:
      ValueError: when `values` is not a mapping, has a field that is not `known`, or lacks a `required` one.
    """
    check_mapping(section, values)
    if unknown := sorted(set(values.keys()) - set(known), key=str):
        raise ValueError(f"{section} has no field {unknown}; known fields: {sorted(known)}")
    if missing := sorted(set(required) - set(values.keys())):
        raise ValueError(f"{section} lacks {missing}")

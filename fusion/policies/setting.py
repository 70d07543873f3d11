"""A setting that users turn: its range and its words stand with the field that holds it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Setting:
    """One field as users see it.

    Attributes:
        field: its name in the code.
        name: what users and saved workflows call it.
        default: its type is the setting's: bool, int, float or str.
        tooltip: what it does, in a user's words.
        least, most, step: of a number, as the inputs offer it; both ends are included.
        allowed: least and most that code may give it, where that is more than inputs offer.
        options: what a text may be.
        folded: whether it may be left out, and is folded away under "advanced".
    """

    field: str
    name: str
    default: Any
    tooltip: str
    least: float | None = None
    most: float | None = None
    step: float | None = None
    allowed: tuple[float, float] | None = None
    options: tuple[str, ...] = ()
    folded: bool = True

    def check(self, value: Any) -> None:
        """Raise ValueError unless the setting may have that value."""
        if self.options and not (isinstance(value, str) and value in self.options):
            raise ValueError(f"{self.name} must be one of {', '.join(self.options)}, got {value!r}")
        if self.least is None or self.most is None:
            return
        if not isinstance(value, int | float):
            raise ValueError(f"{self.name} must be a number, got {value!r:.100}")
        low, high = self.allowed or (self.least, self.most)
        if not low <= value <= high:  # neither is NaN
            raise ValueError(f"{self.name} must lie between {low} and {high}, got {value}")


def setting(default: Any, tooltip: str, *, name: str = "", **more: Any) -> Any:
    """A dataclass field that users may set.

    Args:
        default: see :class:`Setting`, as for all others.
        name: where it is not the field's.
    """
    return field(
        default=default, metadata={"setting": {"tooltip": tooltip, **({"name": name} if name else {}), **more}}
    )


def settings_of(holder: Any) -> tuple[Setting, ...]:
    """Those of a dataclass, in the order of its fields."""
    return tuple(
        Setting(**{"field": f.name, "name": f.name, "default": f.default, **f.metadata["setting"]})
        for f in fields(holder)
        if "setting" in f.metadata
    )

"""Objects that other installed packages add through entry points.

A package is imported only when one of its names is asked for.
"""

from __future__ import annotations

import functools
import importlib.metadata
from typing import Any

from datacomp_flyt.errors import InputError, first_line


@functools.cache
def _entries(group: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    entries = importlib.metadata.entry_points(group=group)
    return tuple(sorted(entries, key=lambda entry: entry.name))


def names_in(group: str) -> dict[str, str]:
    """Return the names that packages add to a group, each with the name of its package."""
    return {
        entry.name: entry.dist.name if entry.dist else "an unknown package"
        for entry in _entries(group)
    }


def check_free(group: str, name: str) -> None:
    """Raise InputError if a package adds a name that this package has."""
    if name in (packages := names_in(group)):
        raise InputError(
            f"package {packages[name]} adds {name!r} to {group}, and that name is taken here: "
            "uninstall the package, or use another version of it"
        )


def load(group: str, name: str, kind: type) -> Any:
    """Import what a package adds under a name.

    Args:
        group: the group of entry points, such as `datacomp_flyt.samplers`.
        name: a name of that group.
        kind: the type that the object must have; for a class, its base class.

    Raises:
        InputError: the package cannot be imported, the object has another type, or two packages add
            this name.
    """
    entries = [entry for entry in _entries(group) if entry.name == name]
    packages = " and ".join(sorted(entry.dist.name if entry.dist else "?" for entry in entries))
    if len(entries) != 1:
        raise InputError(f"packages {packages} add {name!r} to {group} each: uninstall one of them")
    place = f"package {packages}, which adds {name!r} to {group} ({entries[0].value})"
    try:
        added = entries[0].load()
    except Exception as error:
        raise InputError(
            f"{place}, cannot be imported ({type(error).__name__}: {first_line(error)}): mend or "
            "uninstall that package"
        ) from None
    if not (issubclass(added, kind) if isinstance(added, type) else isinstance(added, kind)):
        raise InputError(f"{place}, adds no {kind.__name__}: mend or uninstall that package")
    return added

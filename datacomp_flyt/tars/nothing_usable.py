"""The error for tars without a usable sample. It lists the members seen and those needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from datacomp_flyt.errors import NothingUsable

IMAGE = "an image (.jpg, .png, .webp or .jpeg)"
PAIR = (
    f"{IMAGE}, a .txt and a .json with a uid (img2dataset's --save_additional_columns '[\"uid\"]')"
)

_MOST_EXTENSIONS = 8  # that a message lists


class MemberCounts:
    """Counts the members of tars, for the error that no sample can be used."""

    def __init__(self) -> None:
        self.members = 0
        self._extensions: Counter[str] = Counter()
        self._joined = False

    def add(self, sample: Mapping[str, Any]) -> None:
        """Count the members of a sample."""
        names = [name for name in sample if not name.startswith("__")]
        self._joined |= len(names) > 1
        for name in names:
            self.add_member(f".{name}")

    def add_member(self, extension: str) -> None:
        """Count a member under its extension."""
        self.members += 1
        if extension not in self._extensions and len(self._extensions) >= _MOST_EXTENSIONS:
            extension = "others"
        self._extensions[extension] += 1

    def __str__(self) -> str:
        if not self.members:
            return "no members, they are empty"
        counts = ", ".join(f"{count:,} {name}" for name, count in self._extensions.most_common())
        apart = "" if self._joined else "; no two neighbours share a key"
        return f"{self.members:,} members: {counts}{apart}"


def nothing_usable(
    clause: str,
    seen: MemberCounts,
    reasons: Mapping[str, int],
    wanted: str = PAIR,
    way_out: str = "mend the tars or download them again",
) -> NothingUsable:
    """Make the error for tars without a usable sample.

    Args:
        clause: the clause that names the tars.
        seen: their members.
        reasons: counts of the samples that were left out, by reason.
        wanted: the members that a sample needs.
        way_out: the advice at the end of the message.
    """
    why = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items() if count)
    return NothingUsable(
        f"{clause}{f' ({why})' if why else ''}: seen were {seen}; wanted are {wanted}, the members "
        f"of a sample next to each other and of one key, so {way_out}"
    )

"""The flags that select the list of available images."""

from __future__ import annotations

from typing import Any


def add_available_arguments(add: Any) -> None:
    """Add `--available` and `--shards_dir`.

    Args:
        add: the method `add_argument` of a parser.
    """
    add(
        "--available",
        metavar="FILE",
        help="list of the images that you have, made by `datacomp-flyt available`",
    )
    add(
        "--shards_dir",
        metavar="TARS",
        help="the tars themselves, from which the list is made in memory: a folder, a pattern "
        "with braces, or what webdataset opens",
    )

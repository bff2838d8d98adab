"""The errors of uids, and of scores that are joined to them by uid."""

from __future__ import annotations

from datacomp_flyt.errors import InputError


def repeated_in_pool(uid: str, rows: str, count: int) -> InputError:
    """Make the error for a uid that is in the pool twice.

    Args:
        uid: the first such uid.
        rows: the files and rows that have it.
        count: the number of such pairs of rows.
    """
    return InputError(
        f"uid {uid} is in the pool twice ({rows}; {count:,} such pairs): remove "
        "the second copy, or keep tables of different kinds in folders of their own"
    )


def repeated(table: str, column: str, rows: str) -> InputError:
    """Make the error for a table with two scores of an example; `rows` names uid and rows."""
    return InputError(
        f"{table} has more than one {column!r} for some examples ({rows}): keep one row for "
        "each uid"
    )


def missing(
    table: str, column: str, count: int, pool_size: int, uid: str, images_known: bool
) -> InputError:
    """Make the error for a table that lacks some of the pool's examples.

    Args:
        table: the flag and the folder.
        column: the score that they lack.
        count: the number of such examples.
        pool_size: the number of examples in the pool.
        uid: the uid of one of them.
        images_known: whether examples without an image have been left out of the pool.
    """
    ways = ["score them", "leave them out with --allow_partial_scores"]
    if not images_known:
        ways.append("where you do not have their images, select with --available or --shards_dir")
    return InputError(
        f"{table} has no {column!r} for {count:,} of the pool's {pool_size:,} examples (the first "
        f"is {uid}): {', '.join(ways[:-1])}, or {ways[-1]}"
    )


def not_finite(column: str, count: int, example: str) -> InputError:
    """Make the error for scores that are not finite; `example` names one."""
    return InputError(
        f"column {column!r} has {count:,} scores that are NaN, infinite or missing, {example}: "
        "mend them, or leave those examples out with --drop_nonfinite"
    )

"""What can be wrong with uids and with scores that are joined to them, as sentences."""

from __future__ import annotations

from datacomp_flyt.errors import InputError


def repeated_in_pool(uid: str, places: str, number: int) -> InputError:
    """A uid is in the pool twice.

    Args:
        uid: the first such.
        places: where it is.
        number: of such pairs.
    """
    return InputError(
        f"uid {uid} is in the pool twice ({places}; {number:,} such pairs): remove "
        "the second copy, or keep tables of different kinds in folders of their own"
    )


def repeated(table: str, column: str, places: str) -> InputError:
    """A table has two scores of an example; `places` names uid and rows."""
    return InputError(
        f"{table} has more than one {column!r} for some examples ({places}): keep one row for "
        "each uid"
    )


def missing(
    table: str, column: str, number: int, pool_size: int, uid: str, images_known: bool
) -> InputError:
    """A table lacks some of the pool's examples.

    Args:
        table: the flag and the folder.
        column: the score that they lack.
        number: the number of such examples.
        pool_size: examples of the pool.
        uid: the uid of one of them.
        images_known: whether examples without an image have been left out of the pool.
    """
    ways = ["score them", "leave them out with --allow_partial_scores"]
    if not images_known:
        ways.append("where you do not have their images, select with --available or --shards_dir")
    return InputError(
        f"{table} has no {column!r} for {number:,} of the pool's {pool_size:,} examples (the first "
        f"is {uid}): {', '.join(ways[:-1])}, or {ways[-1]}"
    )


def not_finite(column: str, number: int, place: str) -> InputError:
    """Some scores are no numbers; `place` names one."""
    return InputError(
        f"column {column!r} has {number:,} scores that are NaN, infinite or missing, {place}: mend "
        "them, or leave those examples out with --drop_nonfinite"
    )

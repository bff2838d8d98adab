"""Make the subset of round 0: every pair in the pool's tars.

python -m datacomp_flyt.self_filtering.initial_subset --shards_dir shards --draws 9000 --out round_0
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.self_filtering.initial_subset")

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import check_save_path
from datacomp_flyt.pool.subset import describe_counts, write_subset
from datacomp_flyt.pool.uids import format_uid
from datacomp_flyt.self_filtering.next_subset import SUBSET, spread, write_halves
from datacomp_flyt.streams import say
from datacomp_flyt.tars.shards import list_shards
from datacomp_flyt.tars.uids import uids_of_tar
from datacomp_flyt.threads import default_num_workers, map_threads


def read_uids(shards_dir: str) -> NDArray[np.void]:
    """Return the uids in the tars of a pool, sorted: `u8,u8` array [M].

    Tars that cannot be read to their end are named on stdout.

    Raises:
        InputError: no tar has a uid, a value is no uid, or a uid occurs twice.
    """
    tars = list_shards(shards_dir, "--shards_dir")
    uids = np.concatenate(map_threads(_uids_of, tars, default_num_workers(), "uids", "tar"))
    if not len(uids):
        raise InputError(f"--shards_dir {shards_dir} has no sample with a uid in its json")
    uids = uids[np.lexsort((uids["f1"], uids["f0"]))]
    repeated = np.flatnonzero(uids[1:] == uids[:-1])
    if len(repeated):
        raise InputError(
            f"--shards_dir {shards_dir} has uid {format_uid(uids[repeated[0]])} twice "
            f"({len(repeated):,} such pairs): remove the second copy"
        )
    return uids


def _uids_of(tar: str) -> NDArray[np.void]:
    reading = uids_of_tar(tar)
    if reading.problem:
        say(f"{tar} was not read to its end: {reading.problem}")
    if reading.invalid is not None:
        raise InputError(
            f"{tar} has a sample with uid {reading.invalid!r}: a uid is 32 hexadecimal characters"
        )
    return reading.uids


def write_initial_subset(
    *, shards_dir: str, draws: int, out: Path, seed: int = 0, halves: bool = False
) -> None:
    """Write `OUT/subset.npy`: each pair once, or evenly more often where there are more draws.

    Args:
        shards_dir: the pool's tars.
        draws: the least number of draws; the number of pairs if that is larger.
        out: the folder of round 0.
        seed: the seed that decides which pairs get the remainder of the draws, and the halves.
        halves: also write the halves that two models train on.

    Raises:
        InputError: see `read_uids` and `write_halves`; or `out` cannot be written.
    """
    check_save_path(out / SUBSET, "--out")
    uids = read_uids(shards_dir)
    counts = spread(max(draws, len(uids)), uids, 0, seed)
    if halves:
        write_halves(out, uids, counts, seed)
    write_subset(out / SUBSET, uids, counts)
    for fact in describe_counts(counts):
        say(f"  {fact}")


def main() -> None:
    """Parse the flags and call `write_initial_subset`."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--shards_dir", required=True, help="the pool's tars")
    add("--draws", type=int, required=True, help="the least number of draws (each pair: one)")
    add("--seed", type=int, default=0, help="seed of the remainder and of the halves")
    add("--halves", action="store_true", help="also write the halves that two models train on")
    add("--out", type=Path, required=True, help="folder of round 0")
    write_initial_subset(**vars(parser.parse_args()))

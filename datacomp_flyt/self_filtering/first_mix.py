"""The mix of round 0: the whole pool, as its tars have it.

python -m datacomp_flyt.self_filtering.first_mix --shards_dir shards --draws 25600 --out round_0
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.self_filtering.first_mix")

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import check_save_path
from datacomp_flyt.pool.subset import describe_counts, write_subset
from datacomp_flyt.pool.uids import format_uid
from datacomp_flyt.self_filtering.mix import MIX, spread, write_halves
from datacomp_flyt.streams import say
from datacomp_flyt.tars.shards import list_shards
from datacomp_flyt.tars.uids import uids_of_tar
from datacomp_flyt.threads import default_num_workers, map_threads


def read_uids(shards_dir: str) -> NDArray[np.void]:
    """The uids in the tars of a pool, `u8,u8` array [M], sorted. Unreadable tars are named.

    Raises:
        InputError: no uid in any of them, a value that is none, or one uid twice.
    """
    tars = list_shards(shards_dir, "--shards_dir")
    uids = np.concatenate(map_threads(_uids_of, tars, default_num_workers(), "uids", "tar"))
    if not len(uids):
        raise InputError(f"--shards_dir {shards_dir} has no sample with a uid in its json")
    uids = uids[np.lexsort((uids["f1"], uids["f0"]))]
    twice = np.flatnonzero(uids[1:] == uids[:-1])
    if len(twice):
        raise InputError(
            f"--shards_dir {shards_dir} has uid {format_uid(uids[twice[0]])} twice "
            f"({len(twice):,} such pairs): remove the second copy"
        )
    return uids


def _uids_of(tar: str) -> NDArray[np.void]:
    found = uids_of_tar(tar)
    if found.problem:
        say(f"{tar} was not read to its end: {found.problem}")
    if found.invalid is not None:
        raise InputError(
            f"{tar} has a sample with uid {found.invalid!r}: a uid is 32 hexadecimal characters"
        )
    return found.uids


def main() -> None:
    """The command above: each pair once, or evenly more often where there are more draws."""
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shards_dir", required=True)
    parser.add_argument("--draws", type=int, required=True, help="at least; each pair once if more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--halves", action="store_true", help="also of two models")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    check_save_path(args.out / MIX, "--out")
    uids = read_uids(args.shards_dir)
    counts = spread(max(args.draws, len(uids)), uids, 0, args.seed)
    if args.halves:
        write_halves(args.out, uids, counts, args.seed)
    write_subset(args.out / MIX, uids, counts)
    for fact in describe_counts(counts):
        say(f"  {fact}")

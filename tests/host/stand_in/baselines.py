"""A stand-in for DataComp's baselines.py with the same flags and files, and the simplest filters.

It follows DataComp's documented behaviour, so that our patch can be tested without a checkout.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

BASELINES = {"no_filter", "clip_score"}


def check_args(args: argparse.Namespace) -> None:
    """Refuse flags that the chosen baseline does not use."""
    by_score = args.name == "clip_score"
    for flag in ("arch", "fraction"):
        given = getattr(args, flag) is not None
        if given != by_score:
            raise ValueError(f"{args.name}: --{flag} {'is needed' if by_score else 'has no use'}")


def read_shard(parquet: Path, column: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the uids (u8,u8) of a metadata shard, and a column (zeros if it is None)."""
    names = ["uid"] if column is None else ["uid", column]
    table = pq.read_table(parquet, columns=names)
    halves = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in table["uid"].to_pylist()]
    values = np.zeros(len(halves)) if column is None else table[column].to_numpy()
    return np.array(halves, np.dtype("u8,u8")), values


def apply_filter(args: argparse.Namespace) -> None:
    """Select uids and save them sorted; all ties with the last kept score are kept."""
    column = None if args.name == "no_filter" else f"clip_{args.arch}_similarity_score"
    parquets = sorted(Path(args.metadata_dir).glob("*.parquet"))
    with ThreadPoolExecutor(args.num_workers) as threads:
        shards = list(threads.map(lambda parquet: read_shard(parquet, column), parquets))
    uids = np.concatenate([uids for uids, _ in shards])
    if column is not None:
        scores = np.concatenate([values for _, values in shards])
        last_kept = np.sort(scores)[::-1][int(len(scores) * args.fraction)]
        uids = uids[scores >= last_kept]
    np.save(args.save_path, np.sort(uids))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, choices=sorted(BASELINES))
    parser.add_argument("--metadata_dir", required=True)
    parser.add_argument("--save_path", required=True)
    parser.add_argument("--arch", choices=["b32", "l14"])
    parser.add_argument("--fraction", type=float)
    parser.add_argument("--num_workers", type=int, default=2)
    args = parser.parse_args()
    check_args(args)
    apply_filter(args)

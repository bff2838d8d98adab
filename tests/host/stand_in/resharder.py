"""A stand-in for DataComp's resharder.py: copies the samples of a uid subset, with repeats.

Like the original, it finds uids by binary search, so an unsorted subset loses samples.
"""

import argparse
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def read_samples(shard: Path) -> Iterator[dict[str, bytes]]:
    """Yield the samples of a tar as {extension: content}; files of a sample are adjacent."""
    last_key, sample = "", dict[str, bytes]()
    with tarfile.open(shard) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            if sample and key != last_key:
                yield sample
                sample = {}
            content = tar.extractfile(member)
            if content is not None:
                last_key, sample[extension] = key, content.read()
    if sample:
        yield sample


def copies(subset: np.ndarray, uid: str) -> int:
    """Return the count of a uid in the sorted subset (u8,u8)."""
    wanted = np.array([(int(uid[:16], 16), int(uid[16:], 16))], subset.dtype)
    first, end = (np.searchsorted(subset, wanted, side)[0] for side in ("left", "right"))
    return int(end - first)


def reshard(shards: list[Path], output_dir: Path, subset: np.ndarray) -> list[int]:
    """Write each sample as often as its uid is in the subset; return the sizes of the tars."""
    counts = []
    for index, shard in enumerate(shards):
        written = 0
        with tarfile.open(output_dir / f"{index:08d}.tar", "w") as output:
            for sample in read_samples(shard):
                uid = json.loads(sample["json"])["uid"]
                for copy in range(copies(subset, uid)):
                    for extension, content in sample.items():
                        member = tarfile.TarInfo(f"{uid}-{copy}.{extension}")
                        member.size = len(content)
                        output.addfile(member, io.BytesIO(content))
                    written += 1
        (output_dir / f"{index:08d}_stats.json").write_text(json.dumps({"successes": written}))
        counts.append(written)
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-i", "--input-dir", type=Path, required=True)
    parser.add_argument("-o", "--output-dir", type=Path, required=True)
    parser.add_argument("-s", "--subset-file", type=Path, required=True)
    parser.add_argument("--first-shard", type=int, default=0)
    parser.add_argument("--num-shards", type=int)
    parser.add_argument("--shuffle-bufsize", type=int, help="accepted and ignored")
    args = parser.parse_args()
    shards = sorted(args.input_dir.glob("*.tar"))[args.first_shard :][: args.num_shards]
    subset = np.load(args.subset_file, mmap_mode="r")
    counts = reshard(shards, args.output_dir, subset)
    shutil.copy(args.subset_file, args.output_dir / "sample_ids.npy")
    meta = {
        "input_dir": str(args.input_dir),
        "first_shard": str(args.first_shard),
        "num_shards": str(args.num_shards),
        "output_shard_format": "{:08d}.tar",
        "output_shard_count": len(counts),
        "output_count": sum(counts),
        "worker_success": 1,
    }
    (args.output_dir / "meta.json").write_text(json.dumps(meta))
    print(f"output {sum(counts)} images", file=sys.stderr)
    if sum(counts) != len(subset):
        print(f"{len(subset) - sum(counts)} entries not found in the input", file=sys.stderr)

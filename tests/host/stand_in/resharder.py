"""A stand-in for DataComp's resharder.py: copies the samples of a uid subset, repeats and all.

Like the original it finds a uid by binary search, so an unsorted subset loses samples.
"""

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def read_samples(shard: Path) -> Iterator[dict[str, bytes]]:
    """The samples of one tar as {extension: content}; files of a sample are neighbours."""
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
    """How often the sorted subset (u8,u8) holds this uid."""
    wanted = np.array([(int(uid[:16], 16), int(uid[16:], 16))], subset.dtype)
    first, end = (np.searchsorted(subset, wanted, side)[0] for side in ("left", "right"))
    return int(end - first)


def reshard(input_dir: Path, output_dir: Path, subset: np.ndarray) -> int:
    """Write every wanted sample as often as the subset has it; return the number written."""
    written = 0
    for shard in sorted(input_dir.glob("*.tar")):
        with tarfile.open(output_dir / shard.name, "w") as output:
            for sample in read_samples(shard):
                uid = json.loads(sample["json"])["uid"]
                for copy in range(copies(subset, uid)):
                    for extension, content in sample.items():
                        member = tarfile.TarInfo(f"{uid}-{copy}.{extension}")
                        member.size = len(content)
                        output.addfile(member, io.BytesIO(content))
                    written += 1
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-i", "--input-dir", type=Path, required=True)
    parser.add_argument("-o", "--output-dir", type=Path, required=True)
    parser.add_argument("-s", "--subset-file", type=Path, required=True)
    args = parser.parse_args()
    subset = np.load(args.subset_file, mmap_mode="r")
    written = reshard(args.input_dir, args.output_dir, subset)
    print(f"output {written} images", file=sys.stderr)
    if written != len(subset):
        print(f"{len(subset) - written} entries not found in the input", file=sys.stderr)

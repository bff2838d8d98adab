"""Checks that DataComp's resharder and leaderboard accept a subset."""

from __future__ import annotations

from pathlib import Path

from datacomp_flyt.files.digest import file_digest
from datacomp_flyt.pool.pool import read_pool
from datacomp_flyt.pool.subset import SubsetReport, check_subset_file
from datacomp_flyt.tars.image_list import available_images
from datacomp_flyt.threads import check_num_workers


def check_subset(
    path: str | Path,
    *,
    metadata_dir: str | None = None,
    num_samples: int | None = None,
    available: str | None = None,
    shards_dir: str | None = None,
    num_workers: int | None = None,
) -> SubsetReport:
    """Check that the resharder and the leaderboard accept a subset.

    Args:
        path: the .npy file.
        metadata_dir: the pool, a local or cloud folder of parquet files, to check that it has every
            uid.
        num_samples: the samples that training sees at the scale (`SCALES[...].num_samples`), to
            report how often it sees each pair, and a pool of another scale.
        available: a list of the images at hand, as `datacomp-flyt available` writes it, to check
            that draws have an image.
        shards_dir: the tars, from which such a list is made in memory; give one of the two.
        num_workers: threads and processes; by default as many as there are cores.

    Returns:
        facts, warnings, problems, and the checks that were left out for lack of an argument. The
        subset is `valid` if there is no problem.

    Raises:
        InputError: a file cannot be read or is not what its argument asks for.
    """
    num_workers = check_num_workers(num_workers)
    pool_uids = read_pool(metadata_dir, num_workers).uids if metadata_dir else None
    images = available_images(available, shards_dir, num_workers)
    report = check_subset_file(path, pool_uids=pool_uids, num_samples=num_samples, available=images)
    size = f"{Path(path).stat().st_size:,} bytes, sha256 {file_digest(path)}"
    report.facts.insert(0, size)
    if report.valid and pool_uids is None:
        report.not_checked.append("whether its uids are in the pool (give --metadata_dir)")
    if report.valid and images is None:
        report.not_checked.append(
            "whether its images are on disk (give --available or --shards_dir)"
        )
    return report

"""On-disk state of an external sort: its inputs, its files and its progress.

DIR/job.json              the inputs; a job with other inputs is refused
DIR/partitioned/KEY-*     runs of rows, removed at the end
DIR/done/KEY.json         markers: the rows per bucket of a partitioned part, or the faults of a
                          sorted bucket
DIR/uids.npy, column_*    the result
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.open_file import readable
from datacomp_flyt.files.output_files import atomic_write, check_save_path, remove_unfinished
from datacomp_flyt.pool import join_errors
from datacomp_flyt.pool.external_sort.file_group import FileGroup

_FORMAT = "datacomp_flyt --work_dir 2"

Faults = dict[str, tuple[int, str]]
"""Faults of rows, by kind: the number of rows, and the smallest uid among them."""


@dataclass(frozen=True)
class Layout:
    """The inputs of a job and the paths of its files.

    Attributes:
        folder: the folder of the job.
        groups: the files to sort; the first group is the pool's metadata.
        num_buckets: the number of ranges of uids.
    """

    folder: Path
    groups: Sequence[FileGroup]
    num_buckets: int

    @property
    def uids(self) -> Path:
        """The path of the sorted uids."""
        return self.folder / "uids.npy"

    def columns(self) -> dict[tuple[int, str], Path]:
        """The paths of the columns, by index of the group and name of the column.

        They do not depend on the order of a group's columns.
        """
        keys = [(n, name) for n, group in enumerate(self.groups) for name in sorted(group.columns)]
        return {key: self.folder / f"column_{n}.npy" for n, key in enumerate(keys)}

    def run(self, key: str, index: int) -> Path:
        """Return the path of a run of a part."""
        return self.folder / "partitioned" / f"{key}-{index}.run"

    def marker(self, key: str) -> Path:
        """Return the path of the marker of a part or bucket that is done."""
        return self.folder / "done" / f"{key}.json"

    def check_job(self, rows: int) -> None:
        """Create the folders and write the inputs to `job.json`, or compare them with it.

        Args:
            rows: the least number of rows of a part.

        Raises:
            InputError: the folders cannot be made, or belong to a job with other inputs.
        """
        job = {
            "format": _FORMAT,
            "rows": rows,
            "buckets": self.num_buckets,
            "groups": [
                {
                    "columns": {name: dtype.name for name, dtype in group.columns.items()},
                    "files": [[s.path, s.num_rows, *s.version().content] for s in group.shards],
                }
                for group in self.groups
            ],
        }
        if (available := self.groups[0].available) is not None:
            job["available"] = available.identity()
        path = check_save_path(self.folder / "job.json", "--work_dir")
        if path.exists():
            with self._readable(path):
                existing = json.loads(path.read_bytes())
            if existing != job:
                raise InputError(
                    f"--work_dir {self.folder} holds a job on other files, images or columns, or "
                    "on these before they changed: remove it, or name another"
                )
        elif other := next(self.folder.glob("[!.]*"), None):
            raise InputError(
                f"--work_dir {self.folder} holds {other.name}, which is none of this command's: "
                "name a new folder, or an empty one"
            )
        remove_unfinished(self.folder)
        if not path.exists():
            with atomic_write(path) as file:
                file.write(json.dumps(job).encode())
        for file_path in (self.run("", 0), self.marker("")):
            remove_unfinished(check_save_path(file_path, "--work_dir").parent)

    def write_marker(self, key: str, content: Any) -> None:
        """Mark a part or bucket as done, with its result as JSON."""
        with atomic_write(self.marker(key)) as file:
            file.write(json.dumps({"content": content, "crc32": _crc32(content)}).encode())

    def read_marker(self, key: str) -> Any:
        """Read the result of a part or bucket that is done.

        Raises:
            InputError: the marker is damaged.
        """
        path = self.marker(key)
        with self._readable(path):
            marker = json.loads(path.read_bytes())
            if marker["crc32"] != _crc32(marker["content"]):
                raise ValueError("it has another checksum")
            return marker["content"]

    def _readable(self, path: Path) -> contextlib.AbstractContextManager[None]:
        return readable(str(path), "JSON", f"remove the whole --work_dir {self.folder}")

    def raise_faults(
        self, faults: Faults, pool_size: int, allow_partial: bool, drop_nonfinite: bool
    ) -> None:
        """Raise InputError for the first fault that is not allowed.

        Args:
            faults: the faults of all buckets.
            pool_size: the number of examples in the pool.
            allow_partial, drop_nonfinite: see `sort_into_files`.
        """
        if "twice" in faults:
            count, uid = faults["twice"]
            rows = " and ".join(islice(self.groups[0].rows_of(uid), 2))
            raise join_errors.repeated_in_pool(uid, rows, count)
        for index, group in enumerate(self.groups):
            column = next(iter(group.columns), "")
            if fault := faults.get(f"repeated {index}"):
                rows = " and ".join(islice(group.rows_of(fault[1]), 2))
                raise join_errors.repeated(group.name, column, f"{fault[1]} in {rows}")
            count, uid = faults.get(f"missing {index}", (0, ""))
            if count and not (allow_partial and count < pool_size):
                images_known = self.groups[0].available is not None
                raise join_errors.missing(group.name, column, count, pool_size, uid, images_known)
            for column in group.columns:
                if (fault := faults.get(f"not finite {index} {column}")) and not drop_nonfinite:
                    example = f"one of them in {next(group.rows_of(fault[1]))}"
                    raise join_errors.not_finite(column, fault[0], example)


def _crc32(content: Any) -> int:
    return zlib.crc32(json.dumps(content).encode())

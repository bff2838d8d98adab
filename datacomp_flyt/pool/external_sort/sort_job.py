"""A folder in which a pool is sorted: what it is of, where its files are, what is done.

DIR/job.json              what it is of: refused where that is not what is asked for
DIR/partitioned/KEY-*           runs of rows; removed in the end
DIR/done/KEY.json         rows of each slice in the runs of KEY; what is wrong with a slice
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
"""What is wrong with rows, by kind: how often, and the smallest uid of it."""


@dataclass(frozen=True)
class Layout:
    """A job, and where its files are."""

    folder: Path
    groups: Sequence[FileGroup]
    num_slices: int

    @property
    def uids(self) -> Path:
        return self.folder / "uids.npy"

    def columns(self) -> dict[tuple[int, str], Path]:
        """By number of the group and name of the column, the same whatever the columns' order."""
        keys = [(n, name) for n, group in enumerate(self.groups) for name in sorted(group.columns)]
        return {key: self.folder / f"column_{n}.npy" for n, key in enumerate(keys)}

    def run(self, key: str, number: int) -> Path:
        """A run of a part of a group."""
        return self.folder / "partitioned" / f"{key}-{number}.run"

    def marker(self, key: str) -> Path:
        """What is known of a part or a slice that is done."""
        return self.folder / "done" / f"{key}.json"

    def check_job(self, rows: int) -> None:
        """Make the folders, and note what the job is.

        Raises:
            InputError: they cannot be made, or are of another job or of files that have changed.
        """
        job = {
            "format": _FORMAT,
            "rows": rows,
            "slices": self.num_slices,
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
                found = json.loads(path.read_bytes())
            if found != job:
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
        for of_one in (self.run("", 0), self.marker("")):
            remove_unfinished(check_save_path(of_one, "--work_dir").parent)

    def write_marker(self, key: str, content: Any) -> None:
        with atomic_write(self.marker(key)) as file:
            file.write(json.dumps({"content": content, "crc32": _crc32(content)}).encode())

    def read_marker(self, key: str) -> Any:
        """
        Raises:
            InputError: it is damaged.
        """
        path = self.marker(key)
        with self._readable(path):
            note = json.loads(path.read_bytes())
            if note["crc32"] != _crc32(note["content"]):
                raise ValueError("it has another checksum")
            return note["content"]

    def _readable(self, path: Path) -> contextlib.AbstractContextManager[None]:
        return readable(str(path), "JSON", f"remove the whole --work_dir {self.folder}")

    def raise_faults(
        self, faults: Faults, pool_size: int, allow_partial: bool, drop_nonfinite: bool
    ) -> None:
        """Raise InputError for what is wrong and not allowed."""
        if "twice" in faults:
            number, uid = faults["twice"]
            places = " and ".join(islice(self.groups[0].rows_of(uid), 2))
            raise join_errors.repeated_in_pool(uid, places, number)
        for place, group in enumerate(self.groups):
            column = next(iter(group.columns), "")
            if fault := faults.get(f"repeated {place}"):
                rows = " and ".join(islice(group.rows_of(fault[1]), 2))
                raise join_errors.repeated(group.name, column, f"{fault[1]} in {rows}")
            number, uid = faults.get(f"missing {place}", (0, ""))
            if number and not (allow_partial and number < pool_size):
                images_known = self.groups[0].available is not None
                raise join_errors.missing(group.name, column, number, pool_size, uid, images_known)
            for column in group.columns:
                if (fault := faults.get(f"not finite {place} {column}")) and not drop_nonfinite:
                    where = f"one of them in {next(group.rows_of(fault[1]))}"
                    raise join_errors.not_finite(column, fault[0], where)


def _crc32(content: Any) -> int:
    return zlib.crc32(json.dumps(content).encode())

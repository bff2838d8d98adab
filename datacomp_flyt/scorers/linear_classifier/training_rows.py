"""Draws embeddings at random from files of any size, to train classifiers on.

If all rows fit into the buffer, they are read once and drawn uniformly, with replacement. Otherwise
the buffer is a shuffle buffer: each draw takes distinct random rows out of it and replaces them by
the next rows of the files. Eight files are open at a time, in random order, and are read block by
block in turn; after all files were read, they are read again in a new order. A training that stops
before that has read only a random part of the files.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.folders import list_folder, version_of
from datacomp_flyt.files.listing import has_ending, is_folder, resolve_path
from datacomp_flyt.files.npy_header import read_npy_header
from datacomp_flyt.files.open_file import map_npy, open_file, readable
from datacomp_flyt.pool.embeddings import (
    BLOCK_ROWS,
    NOT_UNIT_NORM,
    UNUSABLE,
    embedding_widths,
    iter_embeddings,
)
from datacomp_flyt.pool.parquet import ParquetShard, open_shard
from datacomp_flyt.progress import Progress
from datacomp_flyt.scorers.base.scorer import read_uids
from datacomp_flyt.threads import default_num_workers, map_threads

_OPEN_FILES = 8

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class EmbeddingFile:
    """A file of embeddings.

    Attributes:
        path: its path.
        num_rows: the number of rows.
        width: the columns of all its arrays together.
        blocks: reads it in blocks, float32 [n, width], with each array's part scaled to length 1 if
            the first argument is true; rows that cannot be used are NaN, and counted in the second
            argument.
        uids: reads its uids from the parquet file beside it.
    """

    path: str
    num_rows: int
    width: int
    blocks: Callable[[bool, Counter[str]], Iterator[Floats]]
    uids: Callable[[], NDArray[np.void]]


def find_embeddings(paths: Sequence[str], arrays: Sequence[str], flag: str) -> list[EmbeddingFile]:
    """List the files of embeddings at some paths, in the order of the paths and sorted within each.

    Args:
        paths: folders, of which all .npz files are taken, such as a pool's metadata; .npz files;
            or, if `arrays` has one name, .npy files. Folders and .npz files may be in cloud
            storage.
        arrays: arrays of the .npz files, whose columns are joined in this order.
        flag: the flag that names the paths, for messages.

    Raises:
        InputError: a path does not exist or holds no such file, a file lacks such arrays of floats,
            widths differ, or there is no row in all of them.
    """
    stored: list[tuple[Any, str]] = []
    for path in paths:
        try:
            fs, root = resolve_path(path)
            folder = is_folder(fs, root)
            if not folder and not fs.isfile(root):
                raise InputError(f"{flag} {path} is not there: give a folder, .npz or .npy files")
        except (OSError, ImportError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{flag} {path} cannot be listed ({error})") from None
        if not folder:
            stored.append((fs, root))
            continue
        stored += [(fs, p) for p in list_folder(path, flag, (".npz",), needed=(".npz",)).versions]
    files = map_threads(
        lambda file: _describe(*file, arrays, flag), stored, default_num_workers(), "opening files"
    )
    for file in files:
        if file.width != files[0].width:
            raise InputError(
                f"{file.path} has embeddings of width {file.width} and {files[0].path} of "
                f"{files[0].width}: take those of one model"
            )
    if not sum(file.num_rows for file in files):
        raise InputError(f"{flag} {' '.join(paths)} holds no example: all files are empty")
    return files


def _describe(fs: Any, path: str, arrays: Sequence[str], flag: str) -> EmbeddingFile:
    if has_ending(path, ".npy"):
        return _describe_npy(path, arrays, flag)
    if not has_ending(path, ".npz"):
        raise InputError(f"{flag} {path} is neither .npz nor .npy: give embeddings as one of these")
    with readable(path, "npz", "write it again"):
        rows, version = 0, version_of(fs, path)
        with open_file(fs, path, version) as file, zipfile.ZipFile(file) as archive:
            if f"{arrays[0]}.npy" in archive.namelist():
                with archive.open(f"{arrays[0]}.npy") as member:
                    rows = (*read_npy_header(member)[0], 0)[0]  # 0 for a scalar
    table = path[: -len(".npz")] + ".parquet"
    shard = ParquetShard(fs, table, rows, {}, {path: version})
    width = sum(embedding_widths(shard, arrays))

    def blocks(normalize: bool, counts: Counter[str]) -> Iterator[Floats]:
        return iter_embeddings(shard, arrays, normalize=normalize, counts=counts)

    def uids() -> NDArray[np.void]:
        return read_uids(open_shard(fs, shard.path))

    return EmbeddingFile(shard.npz, rows, width, blocks, uids)


def _describe_npy(path: str, arrays: Sequence[str], flag: str) -> EmbeddingFile:
    if len(arrays) != 1:
        raise InputError(
            f"{flag} {path} is one array and --arrays names {len(arrays)}: give .npz files with "
            "all of them"
        )
    try:
        stored = map_npy(path)
    except Exception as error:  # numpy's header parser raises half a dozen kinds
        raise InputError(f"{path} cannot be read as .npy ({error}): write it again") from None
    if stored.dtype.kind != "f" or stored.ndim != 2 or stored.shape[1] < 1:
        raise InputError(
            f"{path} holds {stored.dtype} {list(stored.shape)}: embeddings are floats [rows, width]"
        )

    def blocks(normalize: bool, counts: Counter[str]) -> Iterator[Floats]:
        for start in range(0, len(stored), BLOCK_ROWS):
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                block = stored[start : start + BLOCK_ROWS].astype(np.float32)
                lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
                usable = np.isfinite(lengths) & (lengths > 0)
                counts[UNUSABLE] += int(np.count_nonzero(~usable))
                counts[NOT_UNIT_NORM] += int(np.count_nonzero(usable & (abs(lengths - 1) >= 0.01)))
                if normalize:
                    block /= lengths[:, None]
            block[~usable] = np.nan
            yield block

    def uids() -> NDArray[np.void]:
        raise InputError(
            f"{path} has no parquet file with uids beside it: leave out --positive_uids"
        )

    return EmbeddingFile(path, len(stored), int(stored.shape[1]), blocks, uids)


class RandomRows:
    """Usable rows of some files, drawn at random; see the module.

    Attributes:
        width: the width of a row.
        held: the number of rows in the buffer.
        whole: whether the buffer holds all usable rows.
        counts: the number of rows for each remark.
    """

    def __init__(
        self,
        files: Sequence[EmbeddingFile],
        rng: np.random.Generator,
        buffer_rows: int,
        flag: str,
        renormalize: bool = False,
        subset: NDArray[np.void] | None = None,
    ) -> None:
        """Fill the buffer.

        Args:
            files: see `find_embeddings`.
            rng: the source of randomness.
            buffer_rows: the largest number of rows in the buffer, which is float16 like DataComp's
                embeddings.
            flag: the flag that names the files, for messages.
            renormalize: scale each array's part of a row to unit norm.
            subset: only take rows with these uids, `u8,u8` array [n].

        Raises:
            InputError: a file is damaged, no row is usable, or, without `renormalize`, a row is not
                of unit norm.
        """
        self._files, self._rng, self._flag = files, rng, flag
        self._renormalize, self._subset = renormalize, subset
        self.counts: Counter[str] = Counter()
        self.width = files[0].width
        capacity = min(sum(file.num_rows for file in files), buffer_rows)
        buffer = np.empty((capacity, self.width), np.float16)
        self.held, self.whole = 0, True
        self._next = np.empty((0, self.width), np.float16)
        self._rows = self._endless()
        with Progress(f"reading {flag}", capacity, "row", leave=False) as bar:
            for rows in self._rows:
                if not len(rows):  # the end of the first pass
                    break
                taken = min(len(rows), capacity - self.held)
                buffer[self.held : self.held + taken] = rows[:taken]
                self.held += taken
                bar.update(taken)
                if taken < len(rows):
                    self.whole, self._next = False, rows[taken:]
                    break
        if not self.held:
            raise InputError(
                f"{flag} holds no usable example in {files[0].path}"
                + (f" and {len(files) - 1:,} other files" if len(files) > 1 else "")
                + ": every row is not finite or zero"
                + ("" if subset is None else ", or not in --positive_uids")
            )
        self._buffer = buffer[: self.held]

    def draw(self, count: int) -> NDArray[np.float16]:
        """Draw random rows [count, width]; `count` is at most `buffer_rows`."""
        if self.whole:
            return self._buffer[self._rng.integers(self.held, size=count)]
        while len(self._next) < count:
            self._next = np.concatenate([self._next, next(self._rows)])
        drawn_rows = self._rng.choice(self.held, count, replace=False, shuffle=False)
        drawn = self._buffer[drawn_rows]
        self._buffer[drawn_rows], self._next = self._next[:count], self._next[count:]
        return drawn

    def _endless(self) -> Iterator[NDArray[np.float16]]:
        """Yield usable rows block by block, and an empty block at the end of each pass."""
        while True:
            waiting = [self._files[index] for index in self._rng.permutation(len(self._files))]
            opened: list[Iterator[NDArray[np.float16]]] = []
            while waiting or opened:
                while waiting and len(opened) < _OPEN_FILES:
                    opened.append(self._usable(waiting.pop()))
                for blocks in list(opened):
                    rows = next(blocks, None)
                    if rows is None:
                        opened.remove(blocks)
                    elif len(rows):
                        yield rows
            yield np.empty((0, self.width), np.float16)

    def _usable(self, file: EmbeddingFile) -> Iterator[NDArray[np.float16]]:
        """Yield the usable rows of one file block by block."""
        wanted = None
        if self._subset is not None:
            wanted = np.isin(file.uids(), self._subset)
            if len(wanted) != file.num_rows:
                raise InputError(
                    f"{file.path} has {file.num_rows} rows and the parquet file beside it "
                    f"{len(wanted)}: the two belong together row by row, so download both again"
                )
        row = 0
        for block in file.blocks(self._renormalize, self.counts):
            kept = np.isfinite(block[:, 0])
            if wanted is not None:
                kept &= wanted[row : row + len(block)]
            row += len(block)
            if self.counts[NOT_UNIT_NORM] and not self._renormalize:
                raise InputError(
                    f"{self._flag} has embeddings that are not of unit norm in {file.path}, before "
                    f"row {row:,}: give --renormalize, here and to the scorer"
                )
            yield block[kept].astype(np.float16)

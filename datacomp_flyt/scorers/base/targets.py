"""Target sets: embeddings of the data that a pool is compared with, such as ImageNet's train."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.checkpoint_file import read_content
from datacomp_flyt.files.folders import list_folder
from datacomp_flyt.files.open_file import check_regular
from datacomp_flyt.pool.embeddings import embedding_widths
from datacomp_flyt.pool.parquet import ParquetShard

_PUBLISHED_KEY = "image_features"  # of negCLIPLoss_NormSim's cached ImageNet features
_TOLERANCE = 0.01
_BLOCK = 1 << 16


def load_targets(
    paths: Sequence[str], array: str, renormalize: bool = False
) -> NDArray[np.float32]:
    """Load all target embeddings [M, d], file after file.

    Args:
        paths: .npy [M, d]; .npz with an array named as the pool's; .pt with a tensor, alone or as
            `image_features`; .safetensors with either name or a single tensor; or folders with
            .npz files, such as those of `datacomp-flyt embed`.
        array: the pool's array that they are compared with, such as `b32_img`.
        renormalize: scale rows to unit norm instead of refusing other lengths.

    Raises:
        InputError: a file cannot be read or holds no such array; rows are not finite, all zero, or
            not of unit norm; or files have different widths.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        files += map(
            Path, list_folder(str(path), "--targets", (".npz",), needed=(".npz",)).versions
        )
    parts: list[NDArray[np.float32]] = []
    for file in files:
        part = _read(file, array)
        if part.ndim != 2 or part.dtype.kind != "f" or not part.size:
            raise InputError(
                f"--targets {file} holds {part.dtype} {list(part.shape)}: embeddings are floats "
                "[number of targets, width]"
            )
        part = np.ascontiguousarray(part, np.float32)
        if parts and part.shape[1] != parts[0].shape[1]:
            raise InputError(
                f"--targets {file} has width {part.shape[1]} and {files[0]} {parts[0].shape[1]}: "
                "take targets of one model"
            )
        parts.append(_unit_rows(part, file, renormalize))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def check_width(shard: ParquetShard, array: str, width: int) -> None:
    """Raise InputError unless a pool's embeddings are as wide as the targets."""
    (pool_width,) = embedding_widths(shard, [array])
    if pool_width != width:
        raise InputError(
            f"{shard.npz} has {array} of width {pool_width} and --targets are of "
            f"width {width}: take targets and pool of the same model"
        )


def digest(targets: NDArray[np.float32]) -> str:
    """Return the SHA-256 of the numbers, in hexadecimal."""
    return hashlib.sha256(targets.data).hexdigest()


def _read(path: Path, array: str) -> NDArray[Any]:
    try:
        check_regular(str(path))
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
        if path.suffix.lower() == ".npz":
            with path.open("rb") as stored, np.load(stored, allow_pickle=False) as archive:
                return np.asarray(archive[_pick(list(archive.files), array, path)])
        content = read_content(path, f"--targets {path}")
        if isinstance(content, dict):
            content = content[_pick(list(content), array, path)]
        if not isinstance(content, np.ndarray):
            kind = getattr(content, "name", type(content).__name__)
            raise TypeError(f"it holds a {kind}, wanted a tensor")
        return content
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"--targets {path} is not there: give files of embeddings") from None
    except (zipfile.BadZipFile, Exception) as error:  # damaged files raise a dozen kinds
        text = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(
            f"--targets {path} cannot be read as .npy, .npz, .pt or .safetensors ({text})"
        ) from None


def _pick(names: list[str], array: str, path: Path) -> str:
    for name in (array, _PUBLISHED_KEY):
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    raise InputError(
        f"--targets {path} has no array {array!r} (it has {', '.join(map(str, names)) or 'none'})"
        ": take targets of the pool's model"
    )


def _unit_rows(rows: NDArray[np.float32], path: Path, renormalize: bool) -> NDArray[np.float32]:
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
        useless = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
        if len(useless):
            raise InputError(
                f"--targets {path} row {start + int(useless[0])} is not finite or all zero: leave "
                "it out"
            )
        if renormalize:
            block /= lengths[:, None]
            continue
        off = np.flatnonzero(np.abs(lengths - 1) >= _TOLERANCE)
        if len(off):
            raise InputError(
                f"--targets {path} row {start + int(off[0])} has length "
                f"{lengths[off[0]]:.4g}: embeddings have length 1, so add --renormalize"
            )
    return rows

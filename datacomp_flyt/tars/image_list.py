"""Lists the images in tar shards: their uids, sorted and without repeats."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.files.output_files import atomic_write, check_save_path, remove_unfinished
from datacomp_flyt.pool.available import Available, read_available
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.pool.uids import UID_DTYPE
from datacomp_flyt.streams import say
from datacomp_flyt.tars.image_journal import Journal
from datacomp_flyt.tars.images import Images, read_images
from datacomp_flyt.tars.shards import list_shards
from datacomp_flyt.threads import check_num_workers


@dataclass(frozen=True)
class ImageList:
    """The result of `list_images`.

    Attributes:
        path: the file with the list, which `--available` of other commands takes.
        num_images: the number of uids in the list.
        num_tars: the number of tars that were read.
        unreadable: the problem of each damaged or missing tar, by path.
    """

    path: Path
    num_images: int
    num_tars: int
    unreadable: dict[str, str]


def list_images(
    shards: str,
    *,
    save_path: str | Path,
    allow_unreadable: bool = False,
    num_workers: int | None = None,
) -> ImageList:
    """List the examples whose image is in some tar shards, and save their sorted uids.

    The uids come from img2dataset's table beside each tar, or from the tar itself if the table
    cannot be used. A killed run resumes. Facts on the shards are printed.

    Args:
        shards: a folder, a pattern with braces, or addresses that webdataset opens.
        save_path: the .npy file to write, a sorted `u8,u8` array.
        allow_unreadable: also list the images of damaged tars, up to the damage.
        num_workers: the number of threads for tables and of processes for tars; one per core by
            default.

    Raises:
        InputError: there is no tar or no image; a tar cannot be read and that is not allowed; or
            the list cannot be written.
    """
    num_workers = check_num_workers(num_workers)
    paths = list_shards(shards, "SHARDS")
    path = check_save_path(save_path, "--save_path")
    journal_path = check_save_path(path.with_name(f"{path.name}.tars"), "the notes")
    outputs = [Output("--save_path", path), Output("the notes", journal_path)]
    check_outputs(outputs, {"shards": shards})
    with lock_outputs(path, journal_path):
        remove_unfinished(path)
        images = read_images(paths, num_workers, Journal(journal_path))
        if not allow_unreadable:
            images.check_readable("list what can be read of them with --allow_unreadable")
        num_images = write_list(path, images)
        for fact in images.describe():
            say(f"  {fact}")
        journal_path.unlink()
    say(f"saved {path}: {num_images:,} examples with an image")
    return ImageList(path, num_images, len(images.tars), images.unreadable)


def write_list(path: Path, images: Images) -> int:
    """Write a list of images as `numpy.save` would, in blocks; return their number.

    Raises:
        InputError: the disk is full, or there is no image.
    """
    num_images = 0
    with atomic_write(path) as file:
        file.write(_header(0))
        for uids in images.merged():
            file.write(uids.data)
            num_images += len(uids)
        if not num_images:
            raise InputError(
                f"none of the {len(images.tars):,} tars holds an image with a uid: give the tars "
                "that img2dataset or DataComp's download_upstream.py wrote"
            )
        file.seek(0)
        file.write(_header(num_images))  # as long as the first header
    return num_images


def _header(length: int) -> bytes:
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(UID_DTYPE)
    fields = {"descr": descr, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def available_in(shards_dir: str, flag: str, num_workers: int) -> Available:
    """List the images of tar shards in memory, and print facts on them.

    Raises:
        InputError: see `list_shards`; a shard cannot be read; or there is no image.
    """
    name = f"{flag} {shards_dir}"
    images = read_images(list_shards(shards_dir, flag), num_workers)
    images.check_readable(
        "list the readable images (`datacomp-flyt available --allow_unreadable`) and give that "
        "list as --available"
    )
    uids = np.concatenate([np.empty(0, UID_DTYPE), *images.merged()])
    for fact in images.describe():
        say(f"{name}: {fact}")
    if not len(uids):
        raise InputError(f"{name} holds no image with a uid: give the tars of the pool")
    say(f"{name}: {len(uids):,} examples with an image")
    return Available(name, uids)


def available_images(
    available: str | None, shards_dir: str | None, num_workers: int
) -> Available | None:
    """Open the list of images that `--available` or `--shards_dir` names; None if neither is given.

    Args:
        available: the path of a list made by `list_images`.
        shards_dir: the tars, from which the list is made in memory.
        num_workers: the number of threads for tables and of processes for tars.

    Raises:
        InputError: both are given; or see `read_available` and `available_in`.
    """
    if available is not None and shards_dir is not None:
        raise InputError("--available and --shards_dir both list the images: leave one out")
    if available is not None:
        return read_available(available)
    if shards_dir is not None:
        return available_in(shards_dir, "--shards_dir", num_workers)
    return None

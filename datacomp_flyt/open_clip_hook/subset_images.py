"""Counts how many draws of a subset have an image in the training tars."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from datacomp_flyt.errors import InputError
from datacomp_flyt.open_clip_hook.subset_reader import SubsetCounts
from datacomp_flyt.pool.available import Available
from datacomp_flyt.tars.tables_beside import count_in_tables
from datacomp_flyt.threads import default_num_workers


def count_images(
    subset: SubsetCounts, urls: Sequence[str], available: Available | None, log: bool
) -> int | None:
    """Return the number of samples of a subset in the training tars, None if it is not known.

    Args:
        subset: the subset.
        urls: the training tars.
        available: the list of images; None to use the tables beside the tars.
        log: write the numbers of draws to the log.

    Raises:
        InputError: no draw has an image.
    """
    draws = int(subset.counts.sum(dtype="int64"))
    text = f"subset: {draws:,} draws of {len(subset):,} examples"
    if available is not None:
        has_image = available.contains(subset.uids)
        with_image = samples = int(subset.counts[has_image].sum(dtype="int64"))
        images = available.name
    else:
        occurrences = count_in_tables(urls, [subset], default_num_workers())
        if occurrences is None:
            if log:
                logging.info(
                    f"{text}; how many have an image is not known: make a list of the images with "
                    "`datacomp-flyt available TARS --save_path FILE` and give it as --available"
                )
            return None
        with_image = int(subset.counts[occurrences[0] > 0].sum(dtype="int64"))
        samples = int((subset.counts * occurrences[0]).sum(dtype="int64"))
        images = "the training tars, by the tables beside them"
    if not samples:
        raise InputError(
            f"--subset {subset.path} has no example with an image in {images}: give the images of "
            "the pool that it was selected from"
        )
    if log:
        logging.info(f"{text}, of which {with_image:,} draws have an image")
        if samples > with_image:
            logging.warning(f"The tars hold some examples twice: {samples:,} samples are read.")
    return samples

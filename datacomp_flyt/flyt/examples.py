"""Extract the features and the label of a sample of a tar."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from torch import Tensor

from datacomp_flyt.errors import InputError
from datacomp_flyt.flyt.downstream_tasks import DownstreamTask
from datacomp_flyt.flyt.uid_features import UidFeatures
from datacomp_flyt.tars.samples import Sample, Skip, stored_uid

Transform = Callable[[Image.Image], Tensor]
"""Maps an RGB image to float32 [3, H, W], like open_clip's training transform."""

NO_LABEL = "no label"
UNKNOWN_UID = "uid not in the feature table"

_LABELS = ("cls", "label")


def feature_row(sample: Sample, features: UidFeatures) -> int:
    """Return the row of a sample in the feature table, by the uid in its json.

    Raises:
        Skip: the sample has no uid, or the table lacks it.
    """
    row = features.find(stored_uid(sample))
    if row < 0:
        raise Skip(UNKNOWN_UID)
    return row


def label(sample: Sample, task: DownstreamTask) -> int:
    """Return the class index of a sample in its task.

    Raises:
        Skip: the sample has no label.
        InputError: the label is not an integer, or out of range.
    """
    stored = next((sample[name] for name in _LABELS if name in sample), None)
    if stored is None:
        raise Skip(NO_LABEL)
    location = f"{sample['__url__']} key {sample['__key__']}"
    try:
        class_index = int(stored)
    except ValueError:
        raise InputError(
            f"{location} has label {stored[:40]!r}: a label is the number of a class as text"
        ) from None
    if not 0 <= class_index < len(task.class_names):
        raise InputError(
            f"{location} has label {class_index}, and task {task.name!r} has "
            f"{len(task.class_names):,} class names: labels count them from 0, so "
            "give the class names of these labels"
        )
    return class_index

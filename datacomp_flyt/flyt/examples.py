"""What training takes from one sample of a tar, and its reason for leaving one out."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from torch import Tensor

from datacomp_flyt.errors import InputError
from datacomp_flyt.flyt.downstream_tasks import DownstreamTask
from datacomp_flyt.flyt.uid_features import UidFeatures
from datacomp_flyt.tars.samples import Sample, Skip, stored_uid

Transform = Callable[[Image.Image], Tensor]
"""From an RGB image to float32 [3, H, W]; open_clip's train transform, for one."""

NO_LABEL = "no label"
UNKNOWN_UID = "uid not in the feature table"

_LABELS = ("cls", "label")


def feature_row(sample: Sample, features: UidFeatures) -> int:
    """Row of the sample's features, found by the uid in its json, never by its key.

    Raises:
        Skip: it has no uid, or the table has none like it.
    """
    row = features.find(stored_uid(sample))
    if row < 0:
        raise Skip(UNKNOWN_UID)
    return row


def label(sample: Sample, task: DownstreamTask) -> int:
    """Number of the sample's class in its task.

    Raises:
        Skip: there is no label.
        InputError: it is no number, or no class has that number.
    """
    stored = next((sample[name] for name in _LABELS if name in sample), None)
    if stored is None:
        raise Skip(NO_LABEL)
    where = f"{sample['__url__']} key {sample['__key__']}"
    try:
        number = int(stored)
    except ValueError:
        raise InputError(
            f"{where} has label {stored[:40]!r}: a label is the number of a class as text"
        ) from None
    if not 0 <= number < len(task.class_names):
        raise InputError(
            f"{where} has label {number}, and task {task.name!r} has {len(task.class_names):,} "
            "class names: labels count them from 0, so give the class names of these labels"
        )
    return number

"""Carries uids from the tars to the loss, in the texts.

Only images and texts pass through the trainer's pipeline. So the uid is prepended to the caption as
32 characters, `UidTokenizer` turns it into two int64 columns after the tokens, and `split` removes
these before the trainer gets the batch.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.uids import UID_DTYPE

_LENGTH = 32  # characters of a uid


def with_uid(uid: str, caption: bytes) -> bytes:
    """Return the caption with the uid prepended."""
    return uid.encode() + caption


class UidTokenizer:
    """Tokenizes captions that have a uid prepended, one at a time."""

    def __init__(self, tokenizer: Callable[[str], Tensor]) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str) -> Tensor:
        """Return the tokens [1, L + 2] of one caption; the last two columns are its uid.

        Raises:
            InputError: the caption has no uid prepended, or the tokens are not int64 [1, L].
        """
        try:
            uid = torch.tensor([struct.unpack(">qq", bytes.fromhex(text[:_LENGTH]))])
        except (ValueError, TypeError, struct.error):
            raise InputError(
                f"the tokenizer got a caption without its uid ({str(text)[:_LENGTH]!r}): the hook "
                "does not support the way in which this trainer reads its tars, so train without it"
            ) from None
        tokens = self.tokenizer(text[_LENGTH:])
        if tokens.dtype != torch.int64 or tokens.ndim != 2 or len(tokens) != 1:
            raise InputError(
                f"the tokenizer makes {tokens.dtype} of shape {list(tokens.shape)} from one "
                "caption, and the hook needs int64 [1, L]: train without it, or with another model"
            )
        return torch.cat([tokens, uid], 1)

    def __getattr__(self, name: str) -> Any:
        if name == "tokenizer":  # looked up during unpickling
            raise AttributeError(name)
        return getattr(self.tokenizer, name)


def split(texts: Tensor, context_length: int) -> tuple[Tensor, NDArray[np.void]]:
    """Split texts [b, L + 2] into tokens [b, L] and uids, a `u8,u8` array [b].

    Raises:
        InputError: the texts do not have L + 2 columns.
    """
    if texts.ndim != 2 or texts.shape[1] != context_length + 2:
        raise InputError(
            f"a batch's texts have shape {list(texts.shape)} instead of {context_length} tokens "
            "and two columns for the uid: the hook does not support the way in which this trainer "
            "changes texts, so train without it"
        )
    columns = np.ascontiguousarray(texts[:, context_length:].numpy())
    return texts[:, :context_length].contiguous(), columns.view(UID_DTYPE)[:, 0]

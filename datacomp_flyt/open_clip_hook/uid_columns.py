"""The way of a uid from its tar to the loss: through the text.

Nothing but image and text comes out of the trainer's pipeline. So the uid goes in as the first 32
characters of the caption; the tokenizer takes them off and puts them behind the tokens, as two
int64 columns; and `split` takes those off before the trainer sees the batch.
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
    """The caption as it goes into the pipeline."""
    return uid.encode() + caption


class UidTokenizer:
    """A tokenizer of captions `with_uid`, one at a time."""

    def __init__(self, tokenizer: Callable[[str], Tensor]) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str) -> Tensor:
        """Tokens [1, L + 2] of one caption, the last two columns being its uid.

        Raises:
            InputError: the caption has no uid before it, or the tokens are no int64 [1, L].
        """
        try:
            uid = torch.tensor([struct.unpack(">qq", bytes.fromhex(text[:_LENGTH]))])
        except (ValueError, TypeError, struct.error):
            raise InputError(
                f"a caption came to the tokenizer without its uid ({str(text)[:_LENGTH]!r}): this "
                "trainer reads its tars in a way that the hook does not know"
            ) from None
        tokens = self.tokenizer(text[_LENGTH:])
        if tokens.dtype != torch.int64 or tokens.ndim != 2 or len(tokens) != 1:
            raise InputError(
                f"the tokenizer makes {tokens.dtype} of shape {list(tokens.shape)} from one "
                "caption, and the hook wants int64 [1, L]: train without it, or with another model"
            )
        return torch.cat([tokens, uid], 1)

    def __getattr__(self, name: str) -> Any:
        if name == "tokenizer":  # asked while it is unpickled
            raise AttributeError(name)
        return getattr(self.tokenizer, name)


def split(texts: Tensor, context_length: int) -> tuple[Tensor, NDArray[np.void]]:
    """Tokens [b, L], and the uids [b] that were behind them as a `u8,u8` array.

    Raises:
        InputError: the texts are not L + 2 wide.
    """
    if texts.ndim != 2 or texts.shape[1] != context_length + 2:
        raise InputError(
            f"texts came as {list(texts.shape)}, wanted {context_length} tokens and the uid's two "
            "columns: this trainer changes texts in a way that the hook does not know"
        )
    columns = np.ascontiguousarray(texts[:, context_length:].numpy())
    return texts[:, :context_length].contiguous(), columns.view(UID_DTYPE)[:, 0]

"""Uids carried through the texts of the trainer's pipeline."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch import Tensor

from datacomp_flyt.errors import InputError
from datacomp_flyt.open_clip_hook.uid_columns import UidTokenizer, split, with_uid
from datacomp_flyt.pool.uids import format_uid


class Lengths:
    """A tokenizer that repeats the caption's length as three tokens."""

    context_length = 3

    def __call__(self, text: str) -> Tensor:
        return torch.full((1, 3), len(text))


@pytest.mark.parametrize("uid", ["0" * 32, "f" * 32, "0123456789abcdef8000000000000000"])
@pytest.mark.parametrize("caption", ["", "a dog", "d" * 40, "naïve 東京"])
def test_uid_and_caption_are_recovered(uid: str, caption: str) -> None:
    tokenizer = UidTokenizer(Lengths())
    texts = torch.cat([tokenizer(with_uid(uid, caption.encode()).decode())] * 2)
    assert texts.dtype == torch.int64
    tokens, uids = split(texts, 3)
    assert tokens.tolist() == [[len(caption)] * 3] * 2
    assert [format_uid(row) for row in uids] == [uid, uid]
    assert tokens.is_contiguous()


def test_other_attributes_are_the_tokenizers() -> None:
    copied = ForkingPickler.loads(
        ForkingPickler.dumps(UidTokenizer(Lengths()))
    )  # as a spawned worker gets it
    assert copied.context_length == 3
    with pytest.raises(AttributeError):
        _ = copied.no_such_thing


@pytest.mark.parametrize("text", ["", "a dog", "g" * 32 + "a dog", "0" * 31])
def test_a_caption_without_uid_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="the tokenizer got a caption without its uid"):
        UidTokenizer(Lengths())(text)


@pytest.mark.parametrize(
    "tokens", [torch.zeros(1, 3), torch.zeros(3, dtype=torch.int64), torch.zeros(2, 3).long()]
)
def test_other_tokens_are_refused(tokens: Tensor) -> None:
    with pytest.raises(InputError, match="the tokenizer makes"):
        UidTokenizer(lambda text: tokens)("0" * 32)


@pytest.mark.parametrize("width", [3, 4, 6])
def test_another_width_is_refused(width: int) -> None:
    with pytest.raises(InputError, match="instead of 3 tokens and two columns for the uid"):
        split(torch.zeros(4, width, dtype=torch.int64), 3)


def test_split_gives_uids_in_the_order_of_rows() -> None:
    rows = torch.arange(10).reshape(2, 5)
    _, uids = split(rows, 3)
    assert np.array_equal(uids["f0"], [3, 8])
    assert np.array_equal(uids["f1"], [4, 9])

"""The seeded shuffle: equal batches for equal seeds, and different ones otherwise."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import webdataset
from torch.utils.data import DataLoader, IterableDataset

from datacomp_flyt.open_clip_hook.seeded_shuffle import SeededShuffle, seeded_shuffles


class Epoch:
    def __init__(self, value: int) -> None:
        self.value = value

    def get_value(self) -> int:
        return self.value


class Stream(IterableDataset[Any]):
    """Shuffles 200 numbers, each with a random number as for a crop."""

    def __init__(self, shuffle: SeededShuffle) -> None:
        self.shuffle = shuffle

    def __iter__(self) -> Any:
        for number in self.shuffle.run(iter(range(200))):
            yield number, torch.rand(()).item()


def batches(seed: int = 1, epoch: int = 0, rank: int = 0, workers: int = 2) -> list[Any]:
    shuffle = SeededShuffle(50, 20, seed, rank)
    shuffle.epoch = Epoch(epoch)
    torch.manual_seed(random.SystemRandom().randrange(2**31))  # like a seed from the clock
    loader: Any = DataLoader(Stream(shuffle), batch_size=None, num_workers=workers)
    return list(loader)


def test_order_and_crops_are_equal_for_equal_seeds() -> None:
    first = batches()
    assert first == batches()
    one = [number for number, _ in first[::2]]
    other = [number for number, _ in first[1::2]]
    assert sorted(one) == sorted(other) == list(range(200))
    assert one != sorted(one)
    assert one != other  # each worker has its own seed


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 1}, {"rank": 1}])
def test_another_key_gives_another_order(change: dict[str, int]) -> None:
    assert [n for n, _ in batches(workers=1)] != [n for n, _ in batches(workers=1, **change)]


def test_the_random_state_of_the_training_process_is_unchanged() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert list(SeededShuffle(50, 20, 1, 0).run(iter(range(9)))) != []
    assert torch.equal(torch.rand(3), expected)


def test_the_stock_shuffle_is_restored() -> None:
    stock = webdataset.shuffle
    with seeded_shuffles(3, 2) as shuffles:
        shuffle = webdataset.shuffle(bufsize=7, initial=5)
        assert shuffles == [shuffle]
        assert (shuffle.bufsize, shuffle.initial, shuffle.seed, shuffle.rank) == (7, 5, 3, 2)
    assert webdataset.shuffle is stock

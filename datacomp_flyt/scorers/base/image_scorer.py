"""Scorers that look at pictures: they stream tars as img2dataset writes them.

Rows are the samples that have a uid, in the order of the tar; a batch is so many of them, those
without a usable image or caption left out, so that batches depend on the tar and on --batch_size
alone and not on who scores it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import re
import warnings
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datacomp_flyt.errors import InputError, ReadError, unreadable
from datacomp_flyt.pool.uids import decode_uids
from datacomp_flyt.scorers.base.flags import add_precision
from datacomp_flyt.scorers.base.scorer import Arrays, ScoredShard, Scorer
from datacomp_flyt.tars.nothing_usable import IMAGE, PAIR, Seen, nothing_usable
from datacomp_flyt.tars.samples import (
    Sample,
    Skip,
    UnreadableShard,
    caption,
    decode,
    read_tar,
    stored_image,
    stored_uid,
)
from datacomp_flyt.tars.shard_names import shard_name
from datacomp_flyt.tars.shards import is_stream
from datacomp_flyt.threads import default_num_workers

T = TypeVar("T")
R = TypeVar("R")

BATCH_SIZE = 256
DUPLICATE = "uid was in the shard before"
BAD_UID = "uid is not 32 hexadecimal characters"
NOT_FINITE = "score is not finite"

_UID = re.compile("[0-9a-fA-F]{32}")


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of everything that reads images."""
    add_precision(parser)
    parser.add_argument(
        "--batch_size", type=int, default=BATCH_SIZE, help="images at once (default: %(default)s)"
    )
    parser.add_argument(
        "--decode_threads",
        type=int,
        metavar="N",
        help="threads that decode images in each worker (default: 1 on a CPU; on GPUs the cores "
        "divided by the GPUs)",
    )


def check_image_arguments(batch_size: int, decode_threads: int | None) -> None:
    """Raise InputError where a number of `add_image_arguments` is not positive."""
    for flag, value in (("batch_size", batch_size), ("decode_threads", decode_threads)):
        if value is not None and value < 1:
            raise InputError(f"--{flag} {value} is less than 1: give 1 or more")


class ImageScorer(Scorer):
    """A scorer of tars of images.

    `load` of a subclass calls this one's and sets `transform` and `tokenize`.

    Attributes:
        device: where `score_batch` computes; set by `load`.
        transform: PIL image to a tensor [3, H, W].
        tokenize: strings to tokens [b, L].
    """

    reads_images: ClassVar[bool] = True
    uses_gpu: ClassVar[bool] = True
    device: torch.device
    transform: Callable[[Image.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]

    def __init__(
        self,
        batch_size: int = BATCH_SIZE,
        decode_threads: int | None = None,
        precision: str = "fp32",
    ) -> None:
        """
        Args:
            batch_size: images at once.
            decode_threads: in each worker; None for `decode_threads`'s choice.
            precision: `fp32` or `bf16`, see `inference`.

        Raises:
            InputError: a number that is not positive.
        """
        check_image_arguments(batch_size, decode_threads)
        self.batch_size, self.decode_threads = batch_size, decode_threads
        self.precision = precision

    @abstractmethod
    def score_batch(self, images: Tensor, texts: Tensor) -> Tensor:
        """Scores [b, columns] of images [b, 3, H, W] and tokens [b, L], all on the device.

        Runs in inference mode and, with precision bf16, under autocast: what should stay float32
        (sums of features, a head) has to leave autocast itself.
        """

    def load(self, device: str) -> None:
        """Remember the device."""
        self.device = torch.device(device)
        refuse_decompression_bombs()

    def score(self, shard: str, state: Arrays) -> ScoredShard:
        """The scores of one tar; NaN for samples without a usable image or caption.

        Raises:
            InputError: the tar is damaged, or none of its samples has a uid.
        """
        counts: Counter[str] = Counter()
        uids: list[str] = []
        parts = [np.empty((0, len(self.columns)), np.float32)]
        threads = decode_threads(self.decode_threads, self.device)
        pairs = read_pairs(shard, self.transform, self.batch_size, threads, counts)
        with contextlib.closing(pairs):
            for batch in pairs:
                uids += [pair.uid for pair in batch]
                parts.append(self._score(batch, counts))
        return ScoredShard(decode_uids(pa.array(uids, pa.string())), np.concatenate(parts), counts)

    def _score(self, batch: list[Pair[Tensor]], counts: Counter[str]) -> NDArray[np.float32]:
        values = np.full((len(batch), len(self.columns)), np.nan, np.float32)
        usable = [row for row, pair in enumerate(batch) if pair.image is not None]
        if not usable:
            return values
        images = torch.stack([pair.image for pair in batch if pair.image is not None])
        texts = self.tokenize([batch[row].text for row in usable])
        with inference(self.device, self.precision):
            scores = self.score_batch(images.to(self.device), texts.to(self.device))
            found = scores.float().cpu().numpy()
        finite = np.isfinite(found)
        if not finite.all():
            counts[NOT_FINITE] += int((~finite.all(1)).sum())
        values[usable] = np.where(finite, found, np.nan)
        return values


@contextlib.contextmanager
def inference(device: torch.device, precision: str) -> Iterator[None]:
    """No gradients, and products as `precision` says: float32 without TF32, or bfloat16.

    Args:
        precision: `fp32` or `bf16`.
    """
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        yield


def refuse_decompression_bombs() -> None:
    """Make images beyond Pillow's limit of pixels undecodable, and its other warnings silent.

    For the whole process, since filters of warnings are not a thread's.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def decode_threads(asked: int | None, device: torch.device) -> int:
    """Threads that decode in a worker; a GPU waits for more images than one core decodes."""
    if asked is not None:
        return asked
    if device.type == "cpu":
        return 1
    return max(1, default_num_workers() // max(1, torch.cuda.device_count()))


@dataclass(frozen=True)
class Pair(Generic[T]):
    """A sample with a uid.

    Attributes:
        uid: 32 lower-case hexadecimal characters.
        sample: what the tar holds of it.
        image: decoded and transformed; None where image or caption cannot be used.
        text: the caption.
    """

    uid: str
    sample: Sample
    image: T | None
    text: str


def read_pairs(
    shard: str,
    transform: Callable[[Image.Image], T],
    batch_size: int,
    threads: int,
    counts: Counter[str],
    make_uids: bool = False,
) -> Generator[list[Pair[T]], None, None]:
    """The samples of a tar that have a uid, the first of each uid, `batch_size` at a time.

    Args:
        shard: path or address of the tar.
        threads: threads that decode images; their number changes only the time.
        counts: a counter of the samples that are left out or unusable, by reason.
        make_uids: the tar is of another dataset: every sample gets the MD5 of shard and key as its
            uid, and those without a caption an empty one.

    Raises:
        InputError: the tar is damaged; or, after its last batch, none of its samples can be used.
            A tar without members is valid: all downloads of its shard may have failed.
    """

    def examine(item: tuple[str, Sample]) -> tuple[Pair[T], str | None]:
        uid, sample = item
        try:
            text = "" if make_uids and "txt" not in sample else caption(sample)
            return Pair(uid, sample, decode(stored_image(sample), transform), text), None
        except Skip as skip:
            return Pair(uid, sample, None, ""), skip.reason

    seen, usable = Seen(), False
    samples = _samples(shard, counts, make_uids, seen)
    for found in _map_batches(examine, samples, batch_size, threads):
        counts.update(reason for _, reason in found if reason is not None)
        usable |= any(pair.image is not None for pair, _ in found)
        yield [pair for pair, _ in found]
    if seen.members and not usable:
        clause = f"{shard} has no sample that can be used"
        raise nothing_usable(clause, seen, counts, IMAGE if make_uids else PAIR)


def _samples(
    shard: str, counts: Counter[str], make_uids: bool, members: Seen
) -> Iterator[tuple[str, Sample]]:
    """uid and sample."""
    seen: set[str] = set()
    try:
        with contextlib.closing(read_tar(shard, members)) as samples:
            for sample in samples:
                try:
                    uid = _made_uid(shard, sample) if make_uids else stored_uid(sample).lower()
                except Skip as skip:
                    counts[skip.reason] += 1
                    continue
                if uid in seen or not _UID.fullmatch(uid):
                    counts[DUPLICATE if uid in seen else BAD_UID] += 1
                    continue
                seen.add(uid)
                yield uid, sample
    except UnreadableShard as error:
        sentence = f"{shard} cannot be read as a tar ({error}): download it again"
        if is_stream(shard):  # a connection that is lost looks like a tar that is cut
            raise ReadError(sentence) from None
        raise unreadable(sentence, error.__cause__ or error) from None


def _made_uid(shard: str, sample: Sample) -> str:
    name = f"{shard_name(shard)}/{sample['__key__']}"
    return hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()


def _map_batches(
    function: Callable[[T], R], items: Iterable[T], size: int, threads: int
) -> Iterator[list[R]]:
    """Results in order, in lists of `size`; with threads, one list ahead of who takes them."""
    items = iter(items)
    batches = iter(lambda: list(islice(items, size)), [])
    if threads == 1:
        for batch in batches:
            yield list(map(function, batch))
        return
    with ThreadPoolExecutor(threads) as executor:
        waiting: deque[Any] = deque()
        for batch in batches:
            waiting.append(executor.map(function, batch))
            if len(waiting) > 1:
                yield list(waiting.popleft())
        while waiting:
            yield list(waiting.popleft())

"""The result of a scoring method: one score for each example that can be drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.memmap_arrays import is_memory_mapped
from datacomp_flyt.files.output_files import atomic_write, check_save_path
from datacomp_flyt.mixing.linear_mixing_model import LinearMixingModel
from datacomp_flyt.mixing.m_flyt import save_mixing_model
from datacomp_flyt.pool.subset import check_sorted
from datacomp_flyt.pool.uids import encode_uids
from datacomp_flyt.samplers.checks import check_fraction, check_uid_dtype
from datacomp_flyt.streams import say

AVAILABLE, POOL = FRACTION_OF = ("available", "pool")
_ROW_GROUP = 1 << 20


def check_fraction_of(fraction_of: str | None) -> None:
    """Raise InputError unless this is a value of `--fraction_of`, or None."""
    if fraction_of not in (None, *FRACTION_OF):
        raise InputError(f"--fraction_of is {fraction_of!r}, wanted available or pool")


@dataclass(frozen=True)
class PoolSize:
    """The numbers of examples that a fraction may be taken of.

    Attributes:
        listed: the number of rows of the metadata.
        scored: the number of rows that have a score and, if images are known, an image. A method
            with a first stage passes on fewer scores than this.
        images_known: whether rows without an image have been left out.
    """

    listed: int
    scored: int
    images_known: bool = False

    def base(self, flag: str, fraction: float, fraction_of: str | None, num_left: int) -> int:
        """Return the number that a fraction is taken of, and print it.

        Args:
            flag: the flag of the fraction.
            fraction: in (0, 1].
            fraction_of: "pool" for all rows of the metadata, else "available" or None.
            num_left: the number of examples that can still be kept.

        Raises:
            InputError: an argument is out of its range, or the fraction is larger than the share
                that can be kept.
        """
        fraction = check_fraction(fraction, flag)
        check_fraction_of(fraction_of)
        have = "have an image and a score" if self.images_known else "have a score"
        if fraction_of != POOL:
            base = self.scored
            text = f"the {base:,} examples that {have} (the pool lists {self.listed:,})"
        else:
            base = self.listed
            text = f"the {base:,} examples that the pool lists, of which {self.scored:,} {have}"
        if (wanted := int(fraction * base)) > num_left:
            ways = [f"lower {flag}"]
            ways += ["raise --first_fraction"] * (num_left < self.scored)
            ways += ["leave out --fraction_of pool"] * (fraction_of == POOL)
            raise InputError(
                f"{flag} {fraction} of {text} is {wanted:,} and {num_left:,} can be kept: "
                + " or ".join(ways)
            )
        say(f"{flag}: top {100 * fraction:.6g}% of {text}")
        return base


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """A score for each example that can be drawn.

    Attributes:
        uids: `u8,u8` array [M], sorted, no uid twice.
        values: finite floats [M]; for sampling, log probabilities up to a constant.
        name: the name of the column in a file of scores.
        pool_size: the numbers of examples that a fraction can be taken of; None if both are the
            number of `uids`.
        model: the mixing model that made the scores, with its statistics; None if no model did.

    Raises:
        InputError: uids and values have other types or lengths, or uids are not sorted.
    """

    uids: NDArray[np.void]
    values: NDArray[np.floating]
    name: str = "score"
    pool_size: PoolSize | None = None
    model: LinearMixingModel | None = None

    def __post_init__(self) -> None:
        uids, values = np.asanyarray(self.uids), np.asanyarray(self.values)
        check_uid_dtype(uids)
        if values.dtype.kind not in "fiu" or values.shape != uids.shape or values.ndim != 1:
            raise InputError(
                f"values of dtype {values.dtype} and shape {values.shape} do not fit uids of shape "
                f"{uids.shape}: give one number for each uid"
            )
        if not is_memory_mapped(uids):  # else `Subset.save` checks the order, in the same read
            check_sorted(uids)
        object.__setattr__(self, "uids", uids)
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        """The number of examples, M."""
        return len(self.values)

    def __repr__(self) -> str:
        return f"<scores {self.name!r} of {len(self):,} examples>"

    def save(self, path: str | Path) -> None:
        """Write parquet with a column `uid` (32 hex characters) and a column of the scores.

        Raises:
            InputError: the path is a cloud path, or cannot be written.
        """
        kind = pa.from_numpy_dtype(self.values.dtype)
        schema = pa.schema({"uid": pa.large_string(), self.name: kind})
        path = check_save_path(path, "--save_scores")
        with atomic_write(path) as file, pq.ParquetWriter(file, schema) as writer:
            for start in range(0, len(self), _ROW_GROUP):
                rows = slice(start, start + _ROW_GROUP)
                arrays = [encode_uids(self.uids[rows]), pa.array(self.values[rows])]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

    def save_model(self, path: str | Path) -> None:
        """Write the mixing model with the means and standard deviations of this pool.

        Raises:
            InputError: no mixing model made the scores, or the path cannot be written.
        """
        if self.model is None:
            raise InputError(f"the scores {self.name!r} were made without a mixing model")
        save_mixing_model(self.model, check_save_path(path, "--save_scoring_model"))

"""Every method with every sampling, as flags."""

from __future__ import annotations

from collections.abc import Iterator

from datacomp_flyt.selection.registry import METHODS, SAMPLINGS
from tests.baselines_plugin.large_pool import GAPS, M_FLYT
from tests.conftest import make_pool
from tests.oracles.selection import parse_uid, uid_array

POOL = make_pool()
UIDS = uid_array(map(parse_uid, POOL.uids))
PAPER = ("--name", "m_flyt", "--scoring_model", "paper")
SCS = ("--sampling", "scs", "--num_samples", 900, "--repetition_penalty", 0.4)
HCS = ("--sampling", "hcs", "--num_samples", 300, "--frequency_limit", 5)
NO_CAP = ("--sampling", "no_cap", "--num_samples", 500)
TOP = ("--sampling", "top_fraction", "--fraction", 0.3)

DRAWS = ("--num_samples", 3000)
SAMPLED: dict[str, list[tuple[object, ...]]] = {
    "scs": [
        (*DRAWS, "--repetition_penalty", 0.4),
        (*DRAWS, "--repetition_penalty", 0.4, "--sampling_batch_size", 40),
        (*DRAWS, "--repetition_penalty", 0.05),
    ],
    "hcs": [
        (*DRAWS, "--frequency_limit", 1, "--num_samples", 300),
        ("--num_samples", 1500, "--frequency_limit", 5),
    ],
    "no_cap": [DRAWS],
    "top_fraction": [("--fraction", 0.2), ("--fraction", 0.2, "--keep_ties")],
}
IN_MEMORY_ONLY = {"e_flyt", "self_filtering"}
COLUMNS = ("--column", "FLYT")
OF_METHOD: dict[str, tuple[object, ...]] = {
    "m_flyt": M_FLYT[2:4],
    **dict.fromkeys(("scs", "hcs", "no_cap", "top_fraction"), COLUMNS),
}
QUICK = {"m_flyt", "scs"}


def sampled(method: str) -> Iterator[tuple[object, ...]]:
    """Yield the flags of a method with each of its samplings."""
    own_sampling = METHODS[method].sampling
    for sampling in [own_sampling] if own_sampling else SAMPLINGS:
        for flags in SAMPLED[sampling]:
            sampling_flags = () if own_sampling else ("--sampling", sampling)
            yield ("--name", method, *OF_METHOD.get(method, ()), *sampling_flags, *flags, *GAPS)

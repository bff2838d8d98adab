"""An epoch over a subset: its examples as often as they are drawn, and no other is decoded."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("open_clip", reason="the train extra is not installed")
from tests.open_clip_hook.made import write_counts
from tests.open_clip_hook.trainer_runs import (
    EXAMPLES,
    Noise,
    Outcome,
    Run,
    difference,
    tiny_model,
    train,
)
from tests.oracles import weighted_training as oracle

BROKEN = range(1, EXAMPLES, 2)  # examples with a damaged image, outside the subset
COUNTS = {0: 7, 2: 1, 32: 2, 34: 4, 60: 2, 98: 1, 100: 11, 126: 4}
CROWD = {0: 6} | dict.fromkeys(range(2, 22, 2), 4) | dict.fromkeys(range(30, 66, 2), 1)
DAMAGE = "UnidentifiedImageError"
ACCUM = ("--accum-freq", "2")
EXACT = ("--float64", "--wd", "0", "--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-6")


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Noise:
    return Noise(tmp_path_factory.mktemp("noise"), BROKEN)


def check_epochs(outcome: Outcome, counts: dict[int, int]) -> None:
    """Assert that two epochs contain the subset and nothing else, in different orders."""
    (epochs,) = outcome.batches
    assert len(epochs) == 2
    flat = [[row for batch in epoch for row in batch] for epoch in epochs]
    assert Counter(flat[0]) == Counter(flat[1]) == counts
    assert flat[0] != flat[1]
    assert DAMAGE not in outcome.log


def numbers_logged(log: str) -> list[tuple[int, int]]:
    """Return the logged numbers of moves and of repeats with weight 0, for each epoch."""
    pattern = r"distinct_in_batch: ([\d,]+) moves .*; ([\d,]+) repeats that"
    return [(int(a.replace(",", "")), int(b.replace(",", ""))) for a, b in re.findall(pattern, log)]


def replay(before: list[list[int]], after: list[list[int]]) -> int:
    """Return the number of exchanges with the next batch that lead from one order to the other."""
    current = [list(batch) for batch in before]
    num_moves = 0
    for index, batch in enumerate(after):
        for row, (old, new) in enumerate(zip(current[index], batch, strict=True)):
            if old != new:
                other = current[index + 1].index(new)
                current[index][row], current[index + 1][other] = new, old
                num_moves += 1
    assert current == after
    return num_moves


def num_repeats(steps: list[list[int]]) -> int:
    """Return the number of examples that occur earlier in the same step."""
    return sum(len(rows) - len(set(rows)) for rows in steps)


def check_distinct(crowd: Outcome, distinct: Outcome, noise: Noise) -> None:
    """Check a training of two epochs with `distinct_in_batch` against one without.

    Both use --accum-freq 2.
    """
    before, after = crowd.rows(2), distinct.rows(2)
    half = len(after) // 2
    repeats = [num_repeats(after[:half]), num_repeats(after[half:])]
    moves = [0, 0]
    for ours, theirs in zip(crowd.batches, distinct.batches, strict=True):
        for epoch in range(2):
            moves[epoch] += replay(ours[epoch], theirs[epoch])
    assert numbers_logged(distinct.log) == list(zip(moves, repeats, strict=True))
    assert min(moves) > 0
    assert 0 < sum(repeats) < 0.75 * num_repeats(before)
    # repeats that could not be moved had weight 0: training equals that without them
    settings = oracle.Settings(len(after), weight_decay=0, logit_scale_factor=2)
    models = {}
    for name, rows_of in (("distinct", lambda rows: list(dict.fromkeys(rows))), ("all", list)):
        batches = []
        for rows in map(rows_of, after):
            weights = noise.images.new_ones(len(rows))
            batches.append(oracle.WeightedBatch(noise.images[rows], noise.texts[rows], weights))
        models[name] = oracle.train(tiny_model(), distinct.first, batches, settings)
    differences = {name: difference(distinct.final, model) for name, model in models.items()}
    assert differences["distinct"] < 1e-12
    assert differences["all"] > 1e-4


def check(folder: Path, noise: Noise, version: str) -> None:
    subset = {"subset": str(write_counts(folder / "subset.npy", COUNTS))}
    crowd = {"subset": str(write_counts(folder / "crowd.npy", CROWD))}
    of_subset = ("--train-num-samples", str(sum(COUNTS.values())))
    of_crowd = ("--train-num-samples", str(sum(CROWD.values())), *ACCUM)
    runs = {
        "stock": Run(None, of_subset),
        "subset": Run(subset, of_subset),
        "crowd": Run(crowd, of_crowd),
        "distinct": Run({**crowd, "distinct_in_batch": True}, (*of_crowd, *EXACT)),
    }
    made = train(folder, noise, runs, version, flags=("--epochs", "2"))
    assert DAMAGE in made["stock"].log  # damaged images are logged
    check_epochs(made["subset"], COUNTS)
    check_epochs(made["crowd"], CROWD)
    check_epochs(made["distinct"], CROWD)
    check_distinct(made["crowd"], made["distinct"], noise)


def test_two_epochs_over_a_subset(tmp_path: Path, noise: Noise) -> None:
    check(tmp_path, noise, "installed")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["2.16.1", "head"])
def test_two_epochs_with_other_releases(tmp_path: Path, noise: Noise, version: str) -> None:
    check(tmp_path, noise, version)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["installed", "2.16.1", "head"])
def test_no_repeats_between_ranks(tmp_path: Path, noise: Noise, version: str) -> None:
    """With --dataset-resampled two ranks draw the same examples, and repeats are removed."""
    crowd = {"subset": str(write_counts(tmp_path / "s.npy", dict.fromkeys(range(0, 128, 2), 2)))}
    runs = {
        "crowd": Run(crowd),
        "distinct": Run({**crowd, "distinct_in_batch": True}, EXACT),
    }
    flags = ("--epochs", "2", *ACCUM, "--dataset-resampled", "--gather-with-grad", "--local-loss")
    made = train(tmp_path, noise, runs, version, 2, flags)
    seen = [{row for batch in rank[0] for row in batch} for rank in made["distinct"].batches]
    assert seen[0] & seen[1]
    check_distinct(made["crowd"], made["distinct"], noise)

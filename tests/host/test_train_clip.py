"""Training by DataComp's own train.py with the hook, and on resharded shards.

DATACOMP_DIR       a checkout of mlfoundations/datacomp at 4a8df19 (read, never changed)
RESHARDER_PYTHON   a Python that can run its resharder.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("open_clip")

from tests.host.half_of_the_pool import Half, train
from tests.open_clip_hook.running import (
    HEAD,
    HERE,
    INSTALLED,
    OLDEST,
    SHARDS,
    STAND_IN,
    datacomp_dir,
    environment,
    pixel_digests,
    pool_concepts,
    python,
    zero_shot,
)

HOOKS = {
    "weights": ("weights", "distinct"),
    "subset": ("subset",),
    "both": ("weights", "subset", "distinct"),
}
STOCK: tuple[str, ...] = ()
SEEDS = range(1, 9)
T_7 = 5.41  # Student's t with 7 degrees of freedom exceeds it with probability 0.001
EPOCHS, SAMPLES = 24, 1_024


def assert_learned_half(checkpoint: Path, half: Half, env: dict[str, str]) -> None:
    """Assert by open_clip's own evaluation that only pairs of nonzero weight were learned."""
    result = zero_shot(checkpoint, env, half.uids)
    print(result)
    assert result["their_loss"] < 3.5, result  # an untrained model has ln 60 = 4.1
    assert result["others_loss"] > result["their_loss"] + 0.5, result
    assert result["top5"] > 0.05, result  # 0.024 by chance


def test_the_stand_in_trains_on_a_weighted_subset(tmp_path: Path) -> None:
    env, half = environment("installed", DATACOMP_DIR=STAND_IN), Half(tmp_path)
    # with 768 samples some runs learn nothing, since the trainer's shuffle is not seeded
    checkpoint = train(half.flags(HOOKS["both"]), env, tmp_path / "out", samples=2304)
    assert_learned_half(checkpoint, half, env)


@pytest.mark.slow
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("open_clip", [INSTALLED, OLDEST, HEAD])
def test_datacomp_trains_through_the_hook(open_clip: str, hook: str, tmp_path: Path) -> None:
    checkout = datacomp_dir()
    before = (checkout / "train.py").read_bytes()
    env, half = environment(open_clip, DATACOMP_DIR=checkout), Half(tmp_path)
    checkpoint = train(half.flags(HOOKS[hook]), env, tmp_path / "out")
    assert_learned_half(checkpoint, half, env)
    assert (checkpoint.parents[1] / "info.pkl").exists()  # DataComp's evaluate.py reads this file
    assert (checkout / "train.py").read_bytes() == before

    if hook == "both":  # --resume latest finds a finished training
        trained = checkpoint.stat().st_mtime_ns
        train(half.flags(HOOKS[hook]), env, tmp_path / "out")
        assert checkpoint.stat().st_mtime_ns == trained


class Resharded:
    """A subset with repeats from our sampler, and its shards from DataComp's resharder."""

    def __init__(self, folder: Path, env: dict[str, str], resharder_python: str) -> None:
        uids = list(pool_concepts())
        scores = 1.5 * np.random.default_rng(0).standard_normal(len(uids))
        (folder / "scores").mkdir()
        pq.write_table(pa.table({"uid": uids, "loud": scores}), folder / "scores" / "s.parquet")
        self.subset = folder / "subset.npy"
        words = ["--name", "scs", "--column", "loud", "--scores_dir", folder / "scores"]
        words += ["--repetition_penalty", "0.3", "--num_samples", "1000"]
        words += ["--metadata_dir", SHARDS.parent / "metadata", "--save_path", self.subset]
        python("-m", "baselines_plugin", *words, env=env)

        self.shards = folder / "resharded"
        self.shards.mkdir()
        script = Path(env["DATACOMP_DIR"]) / "resharder.py"
        words = ["-i", SHARDS, "-o", self.shards, "-s", self.subset, "--shard-size", "250"]
        ended = python(script, *words, env={**env, "PYTHONPATH": ""}, program=resharder_python)
        assert "not found in the input" not in ended.stdout + ended.stderr
        self.pattern = (
            f"{self.shards}/{{00000000..{len(list(self.shards.glob('*.tar'))) - 1:08d}}}.tar"
        )

        draws = np.load(self.subset)
        names, counts = np.unique(draws, return_counts=True)
        hexes = [f"{int(high):016x}{int(low):016x}" for high, low in names]
        self.counts = dict(zip(hexes, counts.tolist(), strict=True))
        assert max(self.counts.values()) > 5
        assert min(self.counts.values()) == 1


@pytest.fixture(scope="module")
def resharded(tmp_path_factory: pytest.TempPathFactory) -> Resharded:
    resharder_python = os.environ.get("RESHARDER_PYTHON")
    if not resharder_python:
        pytest.skip("RESHARDER_PYTHON does not name a Python that runs DataComp's resharder.py")
    env = environment("installed", DATACOMP_DIR=datacomp_dir())
    return Resharded(tmp_path_factory.mktemp("resharded"), env, resharder_python)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_training_from_the_pool_learns_as_after_the_resharder(
    resharded: Resharded, tmp_path: Path
) -> None:
    """With the hook, DataComp's train.py learns as much as on resharded shards, over eight seeds.

    open_clip's shuffle depends on process and time. Runs are compared in pairs, since models of
    the same seed have equal initial parameters.
    """
    env = environment("installed", DATACOMP_DIR=datacomp_dir())
    uids = tmp_path / "uids.txt"
    uids.write_text("\n".join(resharded.counts))
    results: dict[str, list[dict[str, float]]] = {"hook": [], "resharder": []}
    for seed in SEEDS:
        for source, flags, data in (
            ("hook", ["--subset", str(resharded.subset)], SHARDS),
            ("resharder", [], resharded.shards),
        ):
            output = tmp_path / f"{source}-{seed}"
            checkpoint = train(flags, env, output, data, samples=3_200, seed=seed)
            results[source].append(zero_shot(checkpoint, env, uids))
    untrained = zero_shot(None, env, uids)
    print(json.dumps({**results, "untrained": untrained}, indent=1))
    for metric in ("their_loss", "top5"):
        hook, other = (np.array([r[metric] for r in results[source]]) for source in results)
        difference = float((hook - other).mean())
        error = float((hook - other).std(ddof=1)) / np.sqrt(len(SEEDS))
        improvement = float(abs(other.mean() - untrained[metric]))
        print(f"{metric}: {difference=:.4f} {error=:.4f} {improvement=:.4f}")
        assert improvement > 5 * error, "too little was learned to compare"
        assert abs(difference) < min(T_7 * error, improvement / 4)


def samples_seen(
    settings: dict[str, str] | None, pattern: str, env: dict[str, str], names: list[str]
) -> np.ndarray:
    """Return how often the loader gave each picture in each epoch, [epochs, pictures]."""
    words = [json.dumps(settings), EPOCHS, SAMPLES, "--train-data", pattern, "--batch-size", "32"]
    ended = python(HERE / "count_samples.py", *map(str, words), env=env)
    epochs = json.loads(ended.stdout.splitlines()[-1])
    assert {name for epoch in epochs for name in epoch} <= set(names)
    return np.array([[epoch.get(name, 0) for name in names] for epoch in epochs], float)


def p_of_difference(a: np.ndarray, b: np.ndarray, expected: np.ndarray) -> float:
    """Return the p-value of a permutation test of two sets of epochs, [epochs, pictures] each.

    The statistic is the chi-square distance of the two means. Copies of a pair are read together,
    so the counts of an epoch vary more than those of a multinomial. The epochs are independent, and
    exchangeable under the null hypothesis.
    """
    rng, both = np.random.default_rng(0), np.concatenate([a, b])

    def statistic(rows: np.ndarray) -> float:
        means = both[rows[: len(a)]].mean(0) - both[rows[len(a) :]].mean(0)
        return float((means**2 / expected).sum())

    observed = statistic(np.arange(len(both)))
    others = [statistic(rng.permutation(len(both))) for _ in range(1_999)]
    return (1 + sum(other >= observed for other in others)) / 2_000


def p_of_expectation(counts: np.ndarray, expected: np.ndarray) -> float:
    """Return the p-value of epochs against their expectation, from random signs of residuals."""
    rng, residuals = np.random.default_rng(0), (counts - expected) / np.sqrt(expected)
    observed = (residuals.mean(0) ** 2).sum()
    signs = rng.choice([-1.0, 1.0], (1_999, len(counts)))
    others = ((signs @ residuals / len(counts)) ** 2).sum(1)
    return float((1 + (others >= observed).sum()) / 2_000)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_each_pair_is_seen_as_often_as_after_the_resharder(resharded: Resharded) -> None:
    env = environment("installed")
    digests = pixel_digests()
    assert len(set(digests.values())) == len(digests)
    names = [digests[uid] for uid in resharded.counts]
    multiplicities = np.array(list(resharded.counts.values()), float)
    expected = SAMPLES * multiplicities / multiplicities.sum()
    once = np.full(len(names), SAMPLES / len(names))

    pool = f"{SHARDS}/{{00000000..00000003}}.tar"
    hook = samples_seen({"subset": str(resharded.subset)}, pool, env, names)
    other = samples_seen(None, resharded.pattern, env, names)
    assert hook.sum(1).tolist() == other.sum(1).tolist() == [SAMPLES] * EPOCHS
    assert (hook.sum(0) > 0).all()
    p_values = {
        "hook against resharder": p_of_difference(hook, other, expected),
        "hook against multiplicities": p_of_expectation(hook, expected),
        "resharder against multiplicities": p_of_expectation(other, expected),
    }
    slope = {
        n: float(np.polyfit(expected, c.mean(0), 1)[0])
        for n, c in (("hook", hook), ("resharder", other))
    }
    print(p_values, slope, p_of_expectation(hook, once))
    assert min(p_values.values()) > 0.002, p_values
    # the tests have power: they reject a subset that has each pair once
    assert p_of_expectation(hook, once) < 0.001
    assert (
        p_of_difference(hook, np.random.default_rng(0).poisson(once, hook.shape), expected) < 0.001
    )

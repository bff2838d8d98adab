"""DataComp's own train.py through the hook, what it trained, and training after the resharder.

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

from tests.open_clip_hook.running import (
    HEAD,
    HERE,
    INSTALLED,
    OLDEST,
    SHARDS,
    SHRUNK_DATACOMP,
    STAND_IN,
    TRAIN_CLIP,
    datacomp_dir,
    environment,
    pixel_digests,
    pool_concepts,
    python,
    write_repeats,
    zero_shot,
)

HOOKS = {
    "weights": ("weights", "distinct"),
    "subset": ("subset",),
    "both": ("weights", "subset", "distinct"),
}
STOCK: tuple[str, ...] = ()
SEEDS = range(1, 9)
T_7 = 5.41  # Student's t with 7 degrees of freedom is beyond it once in 1,000 times
EPOCHS, SAMPLES = 24, 1_024


class Half:
    """Half of the demo pool's emoji, as weights 1 and 0, as a subset, and as a list."""

    def __init__(self, folder: Path) -> None:
        concepts = pool_concepts()
        kept = set(sorted(set(concepts.values()))[::2])
        uids = [uid for uid, concept in concepts.items() if concept in kept]
        self.uids = folder / "uids.txt"
        self.uids.write_text("\n".join(uids))
        weights = [float(concept in kept) for concept in concepts.values()]
        table = pa.table({"uid": list(concepts), "weight": weights})
        pq.write_table(table, folder / "weights.parquet")
        repeats = {uid: 1 + row % 3 for row, uid in enumerate(uids)}
        write_repeats(folder / "subset.npy", repeats)
        # with weights the subset may have more: what weighs nothing must not be learned
        some_others = [uid for uid in concepts if concepts[uid] not in kept][::2]
        write_repeats(folder / "more.npy", repeats | dict.fromkeys(some_others, 1))
        self.folder = folder

    def flags(self, hook: tuple[str, ...]) -> list[str]:
        words = []
        if "weights" in hook:
            words += ["--weights", str(self.folder / "weights.parquet")]
        if "subset" in hook:
            name = "more.npy" if "weights" in hook else "subset.npy"
            words += ["--subset", str(self.folder / name)]
        return words + (["--distinct_in_batch"] if "distinct" in hook else [])


def train(
    flags: list[str],
    env: dict[str, str],
    output: Path,
    data: Path = SHARDS,
    samples: int = 4_096,
    seed: int = 0,
) -> Path:
    """Run DATACOMP_DIR's train.py, with the hook where there are flags: its checkpoint."""
    words = ["--scale", "small", "--data_dir", data, "--output_dir", output, "--seed", seed]
    words += ["--precision", "fp32", "--workers", 1, "--num_checkpoints", 2]
    env = {**env, "SHRUNK_SCALE": json.dumps({"train_num_samples": samples, "warmup": 10})}
    hook = [*TRAIN_CLIP, *flags, "--"] if flags else []
    output_was_there = output.exists()
    ended = python(*map(str, [*hook, SHRUNK_DATACOMP, *words]), env=env)
    if "--distinct_in_batch" in flags and not output_was_there:
        assert "distinct_in_batch: " in ended.stderr
    folder = output / "small_scale" / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"epoch_2.pt", "epoch_latest.pt"}
    return folder / "epoch_latest.pt"


def assert_learned_half(checkpoint: Path, half: Half, env: dict[str, str]) -> None:
    """The pairs with weight are known, by open_clip's own evaluation, and the others are not."""
    result = zero_shot(checkpoint, env, half.uids)
    print(result)
    assert result["their_loss"] < 3.5, result  # ln 60 = 4.1 where nothing is known
    assert result["others_loss"] > result["their_loss"] + 0.5, result
    assert result["top5"] > 0.05, result  # chance: 0.024


def test_the_stand_in_trains_on_a_weighted_subset(tmp_path: Path) -> None:
    env, half = environment("installed", DATACOMP_DIR=STAND_IN), Half(tmp_path)
    # with 768 samples one run in many had learned nothing yet: the trainer's shuffle is its own
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
    assert (checkpoint.parents[1] / "info.pkl").exists()  # what its evaluate.py reads
    assert (checkout / "train.py").read_bytes() == before

    if hook == "both":  # --resume latest: all is done
        trained = checkpoint.stat().st_mtime_ns
        train(half.flags(HOOKS[hook]), env, tmp_path / "out")
        assert checkpoint.stat().st_mtime_ns == trained


class Resharded:
    """A subset with repeats, by our own sampler, and DataComp's resharder's output of it."""

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
def test_training_from_the_pool_is_training_after_the_resharder(
    resharded: Resharded, tmp_path: Path
) -> None:
    """DataComp's train.py, eight seeds each, shuffled as open_clip does (by process and time).

    Compared seed by seed, since models of one seed start alike.
    """
    env = environment("installed", DATACOMP_DIR=datacomp_dir())
    uids = tmp_path / "uids.txt"
    uids.write_text("\n".join(resharded.counts))
    results: dict[str, list[dict[str, float]]] = {"hook": [], "resharder": []}
    for seed in SEEDS:
        for way, flags, data in (
            ("hook", ["--subset", str(resharded.subset)], SHARDS),
            ("resharder", [], resharded.shards),
        ):
            output = tmp_path / f"{way}-{seed}"
            checkpoint = train(flags, env, output, data, samples=3_200, seed=seed)
            results[way].append(zero_shot(checkpoint, env, uids))
    untrained = zero_shot(None, env, uids)
    print(json.dumps({**results, "untrained": untrained}, indent=1))
    for metric in ("their_loss", "top5"):
        hook, other = (np.array([r[metric] for r in results[way]]) for way in results)
        difference = float((hook - other).mean())
        error = float((hook - other).std(ddof=1)) / np.sqrt(len(SEEDS))
        improvement = float(abs(other.mean() - untrained[metric]))
        print(f"{metric}: {difference=:.4f} {error=:.4f} {improvement=:.4f}")
        assert improvement > 5 * error, "nothing was learned, or too little to compare"
        assert abs(difference) < min(T_7 * error, improvement / 4)


def samples_seen(
    settings: dict[str, str] | None, pattern: str, env: dict[str, str], names: list[str]
) -> np.ndarray:
    """How often the loader gave each picture: [epochs, pictures]."""
    words = [json.dumps(settings), EPOCHS, SAMPLES, "--train-data", pattern, "--batch-size", "32"]
    ended = python(HERE / "count_samples.py", *map(str, words), env=env)
    epochs = json.loads(ended.stdout.splitlines()[-1])
    assert {name for epoch in epochs for name in epoch} <= set(names)
    return np.array([[epoch.get(name, 0) for name in names] for epoch in epochs], float)


def p_of_difference(a: np.ndarray, b: np.ndarray, expected: np.ndarray) -> float:
    """Permutation test of two sets of epochs [epochs, pictures]: chi-square of their means.

    Copies of a shard come together, so the counts of an epoch vary more than a multinomial's; the
    epochs themselves are independent, and under equality they may be exchanged.
    """
    rng, both = np.random.default_rng(0), np.concatenate([a, b])

    def statistic(rows: np.ndarray) -> float:
        means = both[rows[: len(a)]].mean(0) - both[rows[len(a) :]].mean(0)
        return float((means**2 / expected).sum())

    seen = statistic(np.arange(len(both)))
    others = [statistic(rng.permutation(len(both))) for _ in range(1_999)]
    return (1 + sum(other >= seen for other in others)) / 2_000


def p_of_expectation(counts: np.ndarray, expected: np.ndarray) -> float:
    """The same of one set of epochs and their expectation: signs of the residuals are flipped."""
    rng, residuals = np.random.default_rng(0), (counts - expected) / np.sqrt(expected)
    seen = (residuals.mean(0) ** 2).sum()
    signs = rng.choice([-1.0, 1.0], (1_999, len(counts)))
    others = ((signs @ residuals / len(counts)) ** 2).sum(1)
    return float((1 + (others >= seen).sum()) / 2_000)


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
    found = {
        "hook against resharder": p_of_difference(hook, other, expected),
        "hook against multiplicities": p_of_expectation(hook, expected),
        "resharder against multiplicities": p_of_expectation(other, expected),
    }
    slope = {
        n: float(np.polyfit(expected, c.mean(0), 1)[0])
        for n, c in (("hook", hook), ("resharder", other))
    }
    print(found, slope, p_of_expectation(hook, once))
    assert min(found.values()) > 0.002, found
    # and the tests can tell: each pair once is refused
    assert p_of_expectation(hook, once) < 0.001
    assert (
        p_of_difference(hook, np.random.default_rng(0).poisson(once, hook.shape), expected) < 0.001
    )

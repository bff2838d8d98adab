"""The hooked trainer's model equals that of a plain float64 loop over the same batches.

AdamW divides by gradients, so rounding errors of tiny gradients change a step. Therefore the
trainer runs in float64 with open_clip's eps of 1e-6 and a narrow bound, and in float32, as in
practice, with eps 1e-3 and a bound of 1e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("open_clip", reason="the train extra is not installed")
from tests.open_clip_hook.made import write_table
from tests.open_clip_hook.trainer_runs import (
    EXAMPLES,
    Noise,
    Outcome,
    Run,
    State,
    difference,
    tiny_model,
    train,
)
from tests.oracles import weighted_training as oracle

ACCUM = 4
GATHER = ("--gather-with-grad",)
LOCAL = (*GATHER, "--local-loss")
CASES = {
    "one": (1, 1, ()),
    "accum": (1, ACCUM, ()),
    "two ranks": (2, 1, GATHER),
    "two ranks, local": (2, 1, LOCAL),
    "two ranks, accum": (2, ACCUM, GATHER),
    "two ranks, local, accum": (2, ACCUM, LOCAL),
    "two ranks, not gathered": (2, 1, ()),
    "two ranks, not gathered, accum": (2, ACCUM, ()),
}
EPS = {"float64": 1e-6, "float32": 1e-3}
BOUND = {"float64": 2e-6, "float32": 1e-5}  # the weights are float32 in both
EXACT = 1e-12  # bound in float64 for trainings whose weights are all 0 or 1
KINDS = ("equal", "random", "half", "scores")

Weights = Tensor  # [128], by number of the example


def draw_weights() -> dict[str, Weights]:
    """Return weights by kind of training; scores are their logarithms, up to a constant."""
    rng = np.random.default_rng(1)
    random = torch.from_numpy(rng.lognormal(sigma=1.5, size=EXAMPLES))
    half = torch.from_numpy(rng.permutation(EXAMPLES) % 2)
    return {"equal": torch.ones(EXAMPLES), "random": random, "scores": random, "half": half}


def hooks(folder: Path) -> dict[str, dict[str, str] | None]:
    """Return the arguments of `install_hook` by kind; equal weights are the stock trainer's."""
    rows, weights = list(range(EXAMPLES)), draw_weights()
    made: dict[str, dict[str, str] | None] = {"equal": None}
    for kind, flag in (("random", "weights"), ("half", "weights"), ("scores", "scores")):
        values = weights[kind].log() - 3 if kind == "scores" else weights[kind]
        path = folder / f"{kind}.parquet"
        made[kind] = {flag: str(write_table(path, {"uid": rows, "value": values.tolist()}))}
    return made


def expected(
    noise: Noise, outcome: Outcome, weights: Weights, case: str, eps: float, weight_decay: float
) -> State:
    """Return the oracle's model, trained on the batches that the trainer used."""
    ranks, accum_freq, _ = CASES[case]
    settings = oracle.Settings(
        num_steps=len(outcome.rows(accum_freq)),
        eps=eps,
        weight_decay=weight_decay,
        towers_factor=1 / ranks if "not gathered" in case else 1,
        logit_scale_factor=accum_freq,
    )
    batches = []
    for rows in outcome.rows(accum_freq):
        kept = [row for row in rows if weights[row] > 0]
        batches.append(oracle.WeightedBatch(noise.images[kept], noise.texts[kept], weights[kept]))
    return oracle.train(tiny_model(), outcome.first, batches, settings)


def check(
    folder: Path, noise: Noise, version: str, case: str, kinds: Sequence[str], dtype: str
) -> None:
    """Train with each kind of weights, and compare with the oracle."""
    ranks, accum_freq, case_flags = CASES[case]
    weight_decay = 0.0 if version == "head" else 0.2  # the head decays fewer parameters
    flags = [*case_flags, "--beta1", "0.9", "--beta2", "0.98", "--eps", str(EPS[dtype])]
    flags += ["--wd", str(weight_decay), "--accum-freq", str(accum_freq)]
    flags += ["--epochs", "2"] if ranks * accum_freq > ACCUM else []
    flags += ["--float64"] if dtype == "float64" else []
    hooks_by_kind = hooks(folder)
    runs = {kind: Run(hooks_by_kind[kind]) for kind in kinds}
    made = train(folder, noise, runs, version, ranks, flags)
    models = {
        kind: expected(noise, outcome, draw_weights()[kind], case, EPS[dtype], weight_decay)
        for kind, outcome in made.items()
    }
    errors = {kind: difference(made[kind].final, models[kind]) for kind in kinds}
    effects = {kind: difference(models["equal"], models[kind]) for kind in kinds[1:]}
    assert min(effects.values()) > 30 * BOUND[dtype], effects
    assert max(errors.values()) < BOUND[dtype], errors
    if dtype == "float64":
        assert max(errors.get(kind, 0) for kind in ("equal", "half")) < EXACT, errors


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Noise:
    return Noise(tmp_path_factory.mktemp("noise"))


def test_accumulated_training_is_the_oracles(tmp_path: Path, noise: Noise) -> None:
    check(tmp_path, noise, "installed", "accum", KINDS, "float64")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("case", CASES)
def test_training_is_the_oracles(tmp_path: Path, noise: Noise, case: str, dtype: str) -> None:
    check(tmp_path, noise, "installed", case, KINDS, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["2.16.1", "head"])
@pytest.mark.parametrize("case", CASES)
def test_other_releases_learn_the_same(
    tmp_path: Path, noise: Noise, version: str, case: str
) -> None:
    check(tmp_path, noise, version, case, KINDS[:2], "float64")

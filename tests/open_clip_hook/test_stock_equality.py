"""With equal weights the hooked trainer is bit-identical to the stock trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("open_clip", reason="the train extra is not installed")
from tests.open_clip_hook.made import write_table
from tests.open_clip_hook.trainer_runs import (
    EXAMPLES,
    Noise,
    Run,
    are_equal,
    difference,
    train,
)

ACCUM = ("--accum-freq", "4")
GATHER = ("--gather-with-grad",)
CASES = {
    "one": (1, ()),
    "accum": (1, ACCUM),
    "two ranks": (2, ()),
    "two ranks, gathered": (2, GATHER),
    "two ranks, gathered, local": (2, (*GATHER, "--local-loss")),
    "two ranks, gathered, local, accum": (2, (*GATHER, "--local-loss", *ACCUM)),
}


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Noise:
    return Noise(tmp_path_factory.mktemp("noise"))


def check(
    folder: Path, noise: Noise, version: str, ranks: int, cases: dict[str, tuple[str, ...]]
) -> None:
    rows = list(range(EXAMPLES))
    ones = write_table(folder / "ones.parquet", {"uid": rows, "weight": [1.0] * EXAMPLES})
    weights = np.random.default_rng(0).lognormal(size=EXAMPLES).tolist()
    random = write_table(folder / "random.parquet", {"uid": rows, "weight": weights})
    runs = {}
    for case, flags in cases.items():
        runs[f"{case} stock"] = Run(None, flags)
        runs[f"{case} ones"] = Run({"weights": str(ones)}, flags)
        runs[f"{case} random"] = Run({"weights": str(random)}, flags)
    made = train(folder, noise, runs, version, ranks)
    for case in cases:
        stock, equal, other = (made[f"{case} {kind}"] for kind in ("stock", "ones", "random"))
        assert stock.batches == equal.batches == other.batches
        moved = difference(stock.first, stock.final)
        assert moved > 1e-3
        changed = difference(stock.final, other.final)
        assert changed > 1e-4
        assert are_equal(stock.final, equal.final), difference(stock.final, equal.final)


def test_equal_weights_train_the_stock_trainers_model(tmp_path: Path, noise: Noise) -> None:
    check(tmp_path, noise, "installed", 1, {"one": (), "accum": ACCUM})


@pytest.mark.slow
@pytest.mark.parametrize("version", ["installed", "2.16.1", "head"])
@pytest.mark.parametrize("case", CASES)
def test_equal_weights_in_every_setting(
    tmp_path: Path, noise: Noise, version: str, case: str
) -> None:
    ranks, flags = CASES[case]
    check(tmp_path, noise, version, ranks, {"run": flags})

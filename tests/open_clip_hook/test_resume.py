"""A stopped and resumed training is bit-identical to an uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("open_clip", reason="the train extra is not installed")
from tests.open_clip_hook.made import write_counts, write_table
from tests.open_clip_hook.trainer_runs import EXAMPLES, Noise, Run, are_equal, difference, train

COUNTS = dict.fromkeys(range(0, EXAMPLES, 2), 2)  # as many draws as the pool has examples


@pytest.mark.slow
@pytest.mark.parametrize("version", ["installed", "2.16.1", "head"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_resuming(tmp_path: Path, version: str, ranks: int) -> None:
    noise = Noise(tmp_path / "noise")
    rows, values = list(range(EXAMPLES)), np.random.default_rng(2).lognormal(size=EXAMPLES)
    weights = write_table(tmp_path / "w.parquet", {"uid": rows, "weight": values.tolist()})
    subset = write_counts(tmp_path / "s.npy", COUNTS)
    hooks = {
        "stock": None,
        "hook": {"weights": str(weights), "subset": str(subset), "distinct_in_batch": True},
    }
    common = ("--epochs", "2", "--save-most-recent", "--gather-with-grad", "--accum-freq", "2")
    stop = ("--stop-after", str(EXAMPLES // 8 // ranks + 3))  # in the second epoch
    whole = {name: Run(hook, common) for name, hook in hooks.items()}
    parts = {f"{name} part": Run(hook, (*common, *stop)) for name, hook in hooks.items()}
    rest = {
        f"{name} part": Run(run.hook, (*common, "--resume", "latest"))
        for name, run in whole.items()
    }
    first = train(tmp_path, noise, whole | parts, version, ranks)
    resumed = train(tmp_path, noise, rest, version, ranks)
    for name in hooks:
        made, stopped, ended = first[name], first[f"{name} part"], resumed[f"{name} part"]
        assert len(stopped.batches[0][1]) == 3
        assert [len(epochs) for epochs in ended.batches] == [1] * ranks
        assert [epochs[1] for epochs in made.batches] == [epochs[0] for epochs in ended.batches]
        assert not are_equal(stopped.final, made.final)
        assert are_equal(ended.final, made.final), difference(ended.final, made.final)
    assert not are_equal(first["stock"].final, first["hook"].final)

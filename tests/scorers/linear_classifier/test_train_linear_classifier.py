"""Training of linear classifiers: the update, and what is learned."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from datacomp_flyt.scorers.linear_classifier.train import TrainingSettings, train_linear_classifier
from datacomp_flyt.scorers.linear_classifier.training_rows import RandomRows, find_embeddings
from tests.oracles import linear_classifier as oracle
from tests.scorers.base.made import made_embeddings


def on_sphere(rows: int, centre: np.ndarray, spread: float, seed: int) -> np.ndarray:
    """Unit rows [rows, d] around a direction."""
    values = centre + np.random.default_rng(seed).normal(0, spread, (rows, len(centre)))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def rows_of(path: Path, values: np.ndarray, seed: int = 0, buffer_rows: int = 10**6) -> RandomRows:
    np.save(path, values)
    files = find_embeddings([str(path)], ["b32_img"], "--positives")
    return RandomRows(files, np.random.default_rng(seed), buffer_rows, "--positives")


class Recorded(RandomRows):
    """Remembers what it drew."""

    def draw(self, number: int) -> np.ndarray:
        drawn = super().draw(number)
        self.drawn = [*getattr(self, "drawn", []), drawn.astype(float).tolist()]
        return drawn


# -------------------------------------------------------------------------------- update


def test_every_step_is_the_oracles(tmp_path: Path) -> None:
    classes = []
    for number, name in enumerate(("p", "n")):
        rows = rows_of(tmp_path / f"{name}.npy", made_embeddings(50, {"x": 3}, number)["x"], number)
        rows.__class__ = Recorded
        classes.append(rows)
    settings = TrainingSettings(steps=12, batch_size=10, lr=0.3, warmup=4)
    trained = train_linear_classifier(classes[0], classes[1], ["a"], settings, progress=False)
    batches = [
        (positive + negative, [1] * 5 + [0] * 5)
        for positive, negative in zip(*(rows.drawn for rows in classes), strict=True)
    ]
    assert [len(rows) for rows, _ in batches] == [10] * 12  # and half of each
    wanted = oracle.train(batches, 3, 0.3, 4)
    np.testing.assert_allclose([*trained.model.weight, trained.model.bias], wanted, rtol=1e-5)
    assert np.abs(wanted).max() > 0.5
    assert trained.model.arrays == ("a",)
    before = oracle.train(batches[:1], 3, 0.0, 4)
    first = train_linear_classifier(*classes, ["a"], TrainingSettings(1, 10, 0.3, 0), False)
    assert first.loss == pytest.approx(oracle.cross_entropy(before[:-1], before[-1], *batches[0]))


def test_the_oracles_gradient() -> None:
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(7, 3)).tolist(), [1, 0, 0, 1, 1, 0, 1]
    at, h = rng.normal(size=4), 1e-5
    for place, found in enumerate(oracle.gradient(at.tolist(), rows, labels)):
        step = h * np.eye(4)[place]
        up, down = (
            oracle.cross_entropy(moved[:-1], moved[-1], rows, labels)
            for moved in ((at + step).tolist(), (at - step).tolist())
        )
        assert found == pytest.approx((up - down) / (2 * h), abs=1e-9)


def test_learning_rates() -> None:
    settings = TrainingSettings()
    assert (settings.steps, settings.batch_size, settings.lr, settings.warmup) == (
        40_000,
        256,
        0.01,
        500,
    )
    rates = [settings.learning_rate(step) for step in range(40_000)]
    wanted = [oracle.learning_rate(step, 40_000, 0.01, 500) for step in range(1, 40_001)]
    np.testing.assert_allclose(rates, wanted, atol=1e-12)
    assert rates[0] == pytest.approx(0.01 / 500)
    assert max(rates) == rates[499] == rates[500] == 0.01
    assert rates[500 + 39_500 // 2] == pytest.approx(0.005)
    assert 0 < rates[-1] < 1e-10


def test_learning_rates_are_those_of_flyt() -> None:
    schedule = pytest.importorskip("datacomp_flyt.flyt.schedule")
    settings = TrainingSettings(100, 2, 0.5, 7)
    for step in range(100):
        wanted = schedule.learning_rate(step, 0.5, 7, 100)
        assert settings.learning_rate(step) == pytest.approx(wanted, rel=1e-12)


# ------------------------------------------------------------------------------- learning


def test_two_clusters(tmp_path: Path) -> None:
    """Of two Gaussians of one variance the best logit is linear, along the difference of means."""
    rng = np.random.default_rng(0)
    common, apart = rng.normal(0, 1, 16), rng.normal(0, 0.1, 16)
    apart -= common * (apart @ common) / (common @ common)  # so that both lie on one sphere
    positive, negative = common + apart, common - apart
    rows = {
        name: on_sphere(20_000, centre, 0.3, seed)
        for seed, (name, centre) in enumerate({"p": positive, "n": negative}.items())
    }
    classes = [rows_of(tmp_path / f"{name}.npy", values) for name, values in rows.items()]
    settings = TrainingSettings(steps=6000, lr=0.02, warmup=100)
    trained = train_linear_classifier(classes[0], classes[1], ["a"], settings, progress=False)
    weight = trained.model.weight.astype(float)
    flat = weight - common * (weight @ common) / (common @ common)
    assert flat @ apart / np.linalg.norm(flat) / np.linalg.norm(apart) > 0.97

    held_out = [
        on_sphere(5000, centre, 0.3, seed).astype(np.float32)
        for seed, centre in ((7, positive), (8, negative))
    ]
    margins = np.concatenate(
        [sign * trained.model.logits(part) for sign, part in zip((1, -1), held_out, strict=True)]
    )
    loss = np.logaddexp(0, -margins).mean()
    # of unprojected Gaussians: log odds 2 d . x / s^2 with d half the difference of the means
    distance = np.linalg.norm(apart) / 0.3
    bayes = 0.5 * math.erfc(-distance / math.sqrt(2))
    assert 0.8 < bayes < 0.95
    assert abs((margins > 0).mean() - bayes) < 0.02
    assert loss < 0.6 * math.log(2)
    assert trained.loss == pytest.approx(loss, abs=0.03)
    assert trained.accuracy == pytest.approx((margins > 0).mean(), abs=0.02)
    assert trained.steps == 1000


def test_no_difference_is_chance(tmp_path: Path) -> None:
    values = made_embeddings(20_000, {"x": 8})["x"]
    classes = [rows_of(tmp_path / f"{seed}.npy", values[seed::2], seed) for seed in (0, 1)]
    settings = TrainingSettings(steps=2000, warmup=100)
    trained = train_linear_classifier(*classes, ["a"], settings, progress=False)
    assert trained.loss == pytest.approx(math.log(2), abs=0.005)
    assert trained.accuracy == pytest.approx(0.5, abs=0.01)

"""Runs on a small model: the effect of each flag, and the output files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("webdataset")

from torch import Tensor

from datacomp_flyt.clip.models import load_clip_model
from datacomp_flyt.mixing import load_mixing_model
from datacomp_flyt.mixing.linear_mixing_model import mix
from datacomp_flyt.scorers import load_glu_head
from tests.flyt import runs
from tests.flyt.runs import COLUMNS, Data, bytes_of, make_data, metrics_of, tensors_of

START = math.log(1 / 0.07)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return make_data(tmp_path_factory.mktemp("data"))


class Runs:
    """Runs of two steps, cached by their flags."""

    def __init__(self, data: Data, folder: Path) -> None:
        self.data, self.folder = data, folder
        self._done: dict[str, Path] = {}

    def __call__(self, features: str = "scores", **changes: Any) -> Path:
        key = f"{features} {changes}"
        if key not in self._done:
            output = self.folder / str(len(self._done))
            flags = {**self.data.flags(output, features), "num_steps": 2, **changes}
            assert runs.train(flags) == 0
            self._done[key] = output
        return self._done[key]


@pytest.fixture(scope="module")
def run(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(data, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def initial(data: Data) -> dict[str, Tensor]:
    """Return the random model of seed 0."""
    return load_clip_model(str(data.model), "random", "reference").model.state_dict()


def part(output: Path, which: str) -> dict[str, Tensor]:
    actual = tensors_of(output)
    return {k.removeprefix(f"{which}/"): v for k, v in actual.items() if k.startswith(which)}


def moved(output: Path, initial: dict[str, Tensor]) -> dict[str, float]:
    """Return the distance that each tensor of the reference model has moved."""
    state = part(output, "reference_model")
    assert state.keys() == initial.keys()
    return {name: float((state[name] - initial[name]).norm()) for name in initial}


def differs(one: Path, other: Path) -> float:
    """Return the largest relative difference of the scoring models' tensors."""
    a, b = part(one, "scoring"), part(other, "scoring")
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).norm() / b[k].norm().clamp(min=1e-9)) for k in a)


def test_m_flyt(run: Runs, initial: dict[str, Tensor]) -> None:
    output = run()
    assert sorted(path.name for path in output.iterdir()) == [
        "checkpoint.pt",
        "metrics.jsonl",
        "reference_model.pt",
        "scoring_model.safetensors",
    ]
    assert all(distance > 0 for distance in moved(output, initial).values())
    torch.manual_seed(0)
    start = torch.nn.Linear(2, 1).weight[0].detach().double()
    weights = part(output, "scoring")["weights"]
    # a step of Adam is about the rate at most: 2e-2 in the preset, half of it in the warm-up
    assert 1e-5 < float((weights - start).abs().max()) < 4.1e-2


def test_the_model_has_the_statistics_of_the_pool(run: Runs, data: Data) -> None:
    """The mean score over the pool equals the bias."""
    import pyarrow.parquet as pq

    table = pq.read_table(sorted(data.metadata.glob("*.parquet")), columns=list(COLUMNS))
    columns = [table[name].to_numpy() for name in COLUMNS]
    model = load_mixing_model(str(run() / "scoring_model.safetensors"))
    assert model.columns == COLUMNS
    assert model.means == pytest.approx([values.mean() for values in columns])
    assert model.stds == pytest.approx([values.std() for values in columns])
    scores, _ = mix(model, columns)
    assert scores.mean() == pytest.approx(model.bias, abs=1e-6)
    assert np.ptp(scores) > 0


def test_the_same_flags_give_the_same_bytes(run: Runs) -> None:
    again = run(num_workers=0)
    assert again != run()
    assert bytes_of(again) == bytes_of(run())
    assert bytes_of(run(seed=1)) != bytes_of(run())


def test_without_standardisation(run: Runs) -> None:
    model = load_mixing_model(str(run(no_standardize=True) / "scoring_model.safetensors"))
    assert not model.standardize
    assert model.means is None
    assert load_mixing_model(str(run() / "scoring_model.safetensors")).standardize


@pytest.mark.parametrize("loss", ["cross_entropy_temperature", "clip"])
def test_losses_with_a_temperature(run: Runs, loss: str) -> None:
    first, last = metrics_of(run(downstream_loss=loss))
    # the loss of step 1 uses 1 / 0.07, and the log has the temperature after the step
    assert math.log(first["downstream_temperature"]) == pytest.approx(START, abs=1e-3)
    assert first["downstream_temperature"] != pytest.approx(1 / 0.07, rel=1e-5)
    assert last["downstream_temperature"] != first["downstream_temperature"]
    assert "downstream_temperature" not in metrics_of(run())[0]
    plain = metrics_of(run())[0]
    assert plain["upstream_loss"] == first["upstream_loss"]
    assert plain["downstream_loss"] != first["downstream_loss"]


def test_captions_of_the_clip_loss(run: Runs) -> None:
    templates = metrics_of(run(downstream_loss="clip"))
    texts = metrics_of(run(downstream_loss="clip", captions="txt"))
    assert templates[0]["upstream_loss"] == texts[0]["upstream_loss"]
    assert templates[0]["downstream_loss"] != texts[0]["downstream_loss"]


def test_a_reference_from_a_file_and_frozen(run: Runs, initial: dict[str, Tensor]) -> None:
    """The reference model of a run is a checkpoint for the next run."""
    trained = run() / "reference_model.pt"
    frozen = run(reference_init=trained, freeze_reference=True)
    assert part(frozen, "reference_model").keys() == initial.keys()
    expected = torch.load(trained, weights_only=True)
    for name, value in part(frozen, "reference_model").items():
        assert torch.equal(value, expected[name]), name
    assert differs(frozen, run()) > 1e-4
    still_random = run(freeze_reference=True)
    assert all(distance == 0 for distance in moved(still_random, initial).values())
    assert differs(still_random, frozen) > 1e-6
    metrics = metrics_of(still_random)
    assert metrics[0]["reference_lr"] > 0
    assert metrics[0]["skipped_steps"] == 0


def test_e_flyt_from_embeddings(run: Runs) -> None:
    output = run("embeddings")
    head = load_glu_head(output / "scoring_model.safetensors")
    assert head.arrays == ("b32_img", "b32_txt")
    assert head.layers[0].w1.shape == (2 * runs.WIDTH, 2 * runs.WIDTH)
    deep = load_glu_head(
        run("embeddings", glu_layers=2, glu_hidden_ratio=0.5) / "scoring_model.safetensors"
    )
    assert [layer.w1.shape for layer in deep.layers] == [(runs.WIDTH, 2 * runs.WIDTH)] * 2
    text_first = run("embeddings", embedding_arrays=["b32_txt", "b32_img"])
    actual = load_glu_head(text_first / "scoring_model.safetensors")
    assert actual.arrays == ("b32_txt", "b32_img")
    assert differs(text_first, output) > 1e-6


def test_a_cosine_start_scores_the_cosine(run: Runs) -> None:
    head = part(run("embeddings", cosine_start=True, scoring_lr=1e-9), "scoring")
    half = runs.WIDTH
    gate = head["layers.0.w1.weight"]
    assert (gate.diagonal()[:half] - 1).abs().max() < 0.05
    assert (gate.diagonal()[half:] + 1).abs().max() < 0.05
    assert (head["layers.0.w2.weight"] - 1).abs().max() < 0.05


def test_e_flyt_from_images(run: Runs, initial: dict[str, Tensor]) -> None:
    output = run("images")
    head = load_glu_head(output / "scoring_model.safetensors")
    assert head.arrays is None
    assert head.width == 32
    assert not (output / "extractor.pt").exists()


def test_the_extractor_can_be_trained(run: Runs, initial: dict[str, Tensor]) -> None:
    output = run("images", train_extractor=True)
    trained = part(output, "extractor")
    assert trained.keys() == initial.keys()
    gone = {name for name in initial if not torch.equal(trained[name], initial[name])}
    assert gone == initial.keys() - {"logit_scale"}  # the features do not depend on the logit scale
    assert differs(output, run("images")) > 0
    again = run("images", extractor_init=output / "extractor.pt")
    assert differs(again, run("images")) > 1e-6


def test_several_tasks_mixed_and_balanced(run: Runs) -> None:
    both = ["pets", "cars"]
    outputs = [
        run(downstream_tasks=both),
        run(downstream_tasks=both, task_weights="balanced"),
        run(),
    ]
    losses = [metrics_of(output)[0]["downstream_loss"] for output in outputs]
    assert len(set(losses)) == 3
    # most of the loss is the log of the number of classes of the example's own task
    assert math.log(2) - 0.2 < losses[1] < math.log(3) + 0.2


def test_sgd(run: Runs, initial: dict[str, Tensor]) -> None:
    """A step of SGD is the learning rate times the gradient, which clipping bounds."""
    plain = {"optimizer": "sgd", "beta1": 0.0, "weight_decay": 0.0, "reference_lr": 0.1}
    free, clipped = run(**plain), run(**plain, grad_clip_norm=1e-3)
    rates = [line["reference_lr"] for line in metrics_of(free)]
    assert rates == pytest.approx([0.05, 0.1])
    lengths = [
        math.sqrt(sum(distance**2 for distance in moved(output, initial).values()))
        for output in (free, clipped)
    ]
    assert lengths[0] > 10 * lengths[1]
    assert 0.5e-3 * sum(rates) < lengths[1] <= 1.001e-3 * sum(rates)
    unused = torch.load(free / "reference_model.pt", weights_only=True)["token_embedding.weight"]
    assert (unused == initial["token_embedding.weight"]).all(1).float().mean() > 0.9


@pytest.mark.parametrize("tangent", ["exact", "central"])
def test_tangent_methods(run: Runs, tangent: str) -> None:
    """Tangent methods give nearly the same scoring model, and the same reference step."""
    output, default = run(tangent=tangent), run()
    assert 0 < differs(output, default) < 0.05
    for name, value in part(output, "reference_model").items():
        # the runs differ only by the weights of the second step
        torch.testing.assert_close(value, part(default, "reference_model")[name], atol=2e-3, rtol=0)
    assert metrics_of(output)[0]["downstream_loss"] == metrics_of(default)[0]["downstream_loss"]


def test_the_default_tangent_in_float32_is_one_sided(run: Runs) -> None:
    assert bytes_of(run(tangent="one_sided")) == bytes_of(run())
    assert bytes_of(run(tangent="one_sided", difference_step=1e-2)) != bytes_of(run())


def test_bfloat16(run: Runs) -> None:
    metrics, expected = metrics_of(run(precision="bf16"))[0], metrics_of(run())[0]
    for name in ("upstream_loss", "downstream_loss"):
        assert metrics[name] == pytest.approx(expected[name], rel=0.02)
        assert metrics[name] != expected[name]
    state = part(run(precision="bf16"), "reference_model")
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_float16(run: Runs) -> None:
    """The gradient scale is halved, and steps are skipped, until gradients are finite."""
    lines = metrics_of(run(precision="amp", num_steps=8))
    assert lines[0]["upstream_loss"] == pytest.approx(
        metrics_of(run())[0]["upstream_loss"], rel=0.02
    )
    skipped = int(lines[-1]["skipped_steps"])
    assert 0 < skipped < 8
    scales = [line["gradient_scale"] for line in lines]
    assert scales == [2.0 ** (15 - min(index, skipped - 1)) for index in range(8)]
    for index, line in enumerate(lines):
        # a loss that is not finite is null, since JSON has no NaN
        assert (line["downstream_loss"] is None) == (index < skipped)


def test_micro_batches_change_only_rounding(run: Runs) -> None:
    """With SGD, micro-batches change only rounding; AdamW would amplify the rounding."""
    flags = {"tangent": "exact", "optimizer": "sgd", "reference_lr": 0.01}
    whole, parts = run(**flags), run(**flags, micro_batch_size=3)
    assert 0 < differs(parts, whole) < 1e-4
    for name, value in part(whole, "reference_model").items():
        torch.testing.assert_close(part(parts, "reference_model")[name], value, atol=1e-5, rtol=0)


def test_a_scoring_model_to_start_from(run: Runs) -> None:
    """A tiny learning rate keeps the initial scoring model."""
    file = run(scoring_lr=0.5) / "scoring_model.safetensors"
    still = run(scoring_init=file, scoring_lr=1e-9)
    torch.testing.assert_close(
        part(still, "scoring")["weights"],
        part(file.parent, "scoring")["weights"],
        atol=1e-6,
        rtol=0,
    )
    assert differs(file.parent, run()) > 0.1


def test_schedules(run: Runs) -> None:
    flags = {"num_steps": 4, "warmup": 1, "scoring_lr": 1.0, "scoring_weight_decay": 0.0}
    cosine = [line["scoring_lr"] for line in metrics_of(run(**flags))]
    assert cosine == pytest.approx([1, 1, 0.75, 0.25])
    constant = [line["scoring_lr"] for line in metrics_of(run(**flags, schedule="constant"))]
    assert constant == [1, 1, 1, 1]


def test_each_epoch_has_data_of_its_own(run: Runs) -> None:
    """With both models fixed, the losses show that each epoch has other data."""
    still = {"freeze_reference": True, "scoring_lr": 1e-9, "num_steps": 4}
    short = [line["upstream_loss"] for line in metrics_of(run(**still, checkpoint_every=1))]
    long = [line["upstream_loss"] for line in metrics_of(run(**still, checkpoint_every=4))]
    assert len(set(short)) == len(set(long)) == 4
    assert short[0] == long[0]


def test_a_frozen_reference_model_reports_its_losses(run: Runs) -> None:
    """A frozen reference model still reports both losses (Table 12, "only scoring model")."""
    frozen, free = metrics_of(run(freeze_reference=True)), metrics_of(run())
    assert (
        frozen[0]["downstream_loss"] == free[0]["downstream_loss"]
    )  # both runs compute the loss at θ⁺
    assert frozen[1]["upstream_loss"] != free[1]["upstream_loss"]

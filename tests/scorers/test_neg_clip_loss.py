"""negCLIPLoss: the spec's vectors, a float64 oracle, the public code, and what must not matter."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.uid_randomness import random_bits, stream_keys
from datacomp_flyt.pool.uids import UID_DTYPE
from datacomp_flyt.scorers.base.matrix_products import Compute
from datacomp_flyt.scorers.neg_clip_loss import NegClipLoss, _log_sums, neg_clip_loss_of_batch
from tests.conftest import hex_uids
from tests.oracles import scores as oracle
from tests.oracles.selection import parse_uid
from tests.scorers.base.inline import read_scores, run, scores_of, write_pool
from tests.scorers.made_pairs import F, G, pairs, unit
from tests.scorers.public_ncl import public_neg_clip_loss, requires_checkout
from tests.tolerances import float_bound

CPU = Compute("cpu", "fp32")
VECTORS = {
    0.01: [-0.01589325, -0.00038413, -0.00346715, -0.30486285],
    0.07: [-0.05724589, -0.03078602, -0.03302791, -0.33755379],
}


def score_bound(width: int, number: int, temperature: float, computed: int = 1) -> float:
    """Error of a score in a batch of unit rows, in float32.

    A logit is a product of `width` terms over T; 4 roundings are of its factors and of the shift,
    which is at most twice as large. T takes the error of logits to that of similarities. The log
    of a sum of exponentials has the relative error of `number` additions and 4 roundings of `exp`.
    """
    similarity = 2 * float_bound("float32", 1, width + 4, computed)  # the pair's own, and the mean
    return similarity + float_bound("float32", temperature, number + 4, computed)


@pytest.mark.parametrize("temperature", VECTORS)
def test_vectors_of_the_spec(temperature: float) -> None:
    scores = neg_clip_loss_of_batch(unit(F).astype("f4"), unit(G).astype("f4"), temperature, CPU)
    bound = score_bound(3, 4, temperature) + 5e-9  # printed to 8 digits
    assert np.abs(scores - VECTORS[temperature]).max() < bound


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.07, 1.0, 1000.0])
@pytest.mark.parametrize("number", [1, 2, 37])
def test_a_batch_equals_the_oracle(temperature: float, number: int) -> None:
    arrays = pairs(number)
    scores = neg_clip_loss_of_batch(arrays["b32_img"], arrays["b32_txt"], temperature, CPU)
    expected = oracle.neg_clip_loss_batch(arrays["b32_img"], arrays["b32_txt"], temperature)
    assert np.abs(scores - expected).max() < score_bound(16, number, temperature)


@pytest.mark.parametrize("sign", [1, -1])
def test_coincident_and_opposite_pairs(sign: int) -> None:
    """Similarity 1 overflows the public code; opposite ones vanish beside the shift."""
    images = unit(np.random.default_rng(3).normal(size=(9, 6))).astype("f4")
    images[4:] = images[0]
    texts = sign * images
    scores = neg_clip_loss_of_batch(images, texts, 0.01, CPU)
    expected = oracle.neg_clip_loss_batch(images, texts, 0.01)
    assert np.abs(scores - expected).max() < score_bound(6, 9, 0.01)


def test_sums_whose_terms_vanish_are_taken_again() -> None:
    rows = torch.tensor([[-100.0, 0.0], [90.0, 1.0]])
    columns = torch.tensor([[1.0, 0.0], [1.0, 5.0], [0.9, 0.1]])
    by_row, by_column = _log_sums(rows, columns, 100.0, (1, 2))
    exact = rows.double() @ columns.T.double()
    bound = float_bound("float32", 100, 2 + 4) + float_bound("float32", 1, 3 + 4)
    assert torch.allclose(by_row, exact.logsumexp(1), rtol=0, atol=bound)
    assert torch.allclose(by_column, exact.logsumexp(0), rtol=0, atol=bound)


def test_tiles_do_not_matter() -> None:
    rows, columns = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0))
    whole = _log_sums(rows, columns, 40.0, (50, 50))
    # An error of a product is a relative error of its exponential. A sum of positive terms has
    # the relative errors of its terms, of `exp` (2 units, each of 2 roundings) and of 50 additions;
    # `log` makes them absolute.
    largest = float((rows.abs() @ columns.abs().T).max())
    bound = float_bound("float32", largest, 8, computed=2) + float_bound("float32", 1, 54, 2)
    for tile in itertools.product((1, 7, 50), (3, 49)):
        for one, other in zip(whole, _log_sums(rows, columns, 40.0, tile), strict=True):
            assert torch.allclose(one, other, rtol=0, atol=bound)


def partitions_of(uids: list[str], number: int, batch_size: int, partial: bool, seed: int) -> list:
    keys = stream_keys(np.array([parse_uid(uid) for uid in uids], UID_DTYPE), seed)
    batches = []
    for draw in range(number):
        order = sorted(range(len(uids)), key=lambda row: int(random_bits(keys, draw)[row]))
        if partial:
            cut = range(0, len(uids), batch_size)
            batches.append([order[start : start + batch_size] for start in cut])
        else:
            count = math.ceil(len(uids) / batch_size)
            batches.append([list(part) for part in np.array_split(order, count)])
    return batches


@pytest.mark.parametrize("partial", [False, True])
def test_a_file_equals_the_oracle_on_its_partitions(partial: bool, tmp_path: Path) -> None:
    arrays = pairs(41)
    scorer = NegClipLoss(batch_size=12, num_partitions=3, partial_batches=partial, seed=5)
    scores = scores_of(scorer, arrays, tmp_path)
    batches = partitions_of(hex_uids(41), 3, 12, partial, 5)
    sizes = [len(batch) for batch in batches[0]]
    assert sizes == ([12, 12, 12, 5] if partial else [11, 10, 10, 10])
    expected = oracle.neg_clip_loss(arrays["b32_img"], arrays["b32_txt"], 0.01, batches)
    assert np.abs(scores - expected).max() < score_bound(16, 12, 0.01)


def test_the_order_of_rows_and_the_seed(tmp_path: Path) -> None:
    arrays = pairs(30)
    uids = write_pool(tmp_path / "a", arrays, [30])
    order = np.random.default_rng(0).permutation(30)
    turned = {name: array[order] for name, array in arrays.items()}
    write_pool(tmp_path / "b", turned, [30])
    scorer = NegClipLoss(batch_size=10, num_partitions=2)
    found = {}
    for name in "ab":
        run(scorer, tmp_path / name, tmp_path / f"{name}_scores")
        found[name] = read_scores(tmp_path / f"{name}_scores" / "negCLIPLoss", uids, "negCLIPLoss")
    assert not np.allclose(found["b"], found["a"][order], atol=1e-7)  # other uids, other batches
    run(NegClipLoss(batch_size=10, num_partitions=2, seed=1), tmp_path / "a", tmp_path / "c")
    other = read_scores(tmp_path / "c" / "negCLIPLoss", uids, "negCLIPLoss")
    assert not np.allclose(other, found["a"], atol=1e-7)


def test_unusable_rows_are_nan_and_leave_the_others_alone(tmp_path: Path) -> None:
    arrays = pairs(20)
    arrays["b32_img"][3], arrays["b32_txt"][7, 1] = 0, np.nan
    scores = scores_of(NegClipLoss(num_partitions=2), arrays, tmp_path)
    usable = np.setdiff1d(np.arange(20), [3, 7])
    assert np.flatnonzero(np.isnan(scores)).tolist() == [3, 7]
    expected = oracle.neg_clip_loss_batch(*(array[usable] for array in arrays.values()), 0.01)
    assert np.abs(scores[usable] - expected).max() < score_bound(16, len(usable), 0.01)


def test_renormalize(tmp_path: Path) -> None:
    arrays = pairs(12)
    stretched = {name: array * 1.5 for name, array in arrays.items()}
    expected = scores_of(NegClipLoss(), arrays, tmp_path / "a")
    given = scores_of(NegClipLoss(renormalize=True), stretched, tmp_path / "b")
    # lengths are divided out again, in 16 more terms and a root
    assert np.abs(given - expected).max() < score_bound(16 + 16 + 2, 12, 0.01, computed=2)
    assert np.abs(scores_of(NegClipLoss(), stretched, tmp_path / "c") - expected).max() > 1e-3


def test_towers_of_two_models_are_refused(tmp_path: Path) -> None:
    arrays = pairs(6) | {"b32_txt": pairs(6, width=8)["b32_txt"]}
    write_pool(tmp_path / "metadata", arrays, [6])
    report = run(NegClipLoss(), tmp_path / "metadata", tmp_path / "scores")
    assert "b32_img of width 16 and b32_txt of width 8" in str(report.failed["shard_0"])


@pytest.mark.slow
@requires_checkout
@pytest.mark.parametrize("temperature", [0.01, 0.07])
def test_the_public_code_beside_ours(temperature: float) -> None:
    """Its float32 sums on its own random permutations, the last batch of each smaller."""
    arrays = pairs(700, width=64)
    public, permutations = public_neg_clip_loss(
        arrays["b32_img"], arrays["b32_txt"], temperature, 256, 3, seed=0
    )
    ours = np.zeros(700)
    for permutation in permutations:
        for batch in np.split(np.asarray(permutation), range(256, 700, 256)):
            rows = [array[batch] for array in arrays.values()]
            ours[batch] += neg_clip_loss_of_batch(rows[0], rows[1], temperature, CPU) / 3
    assert np.abs(ours - public).max() < score_bound(64, 256, temperature, computed=2)


@pytest.mark.parametrize(
    ("scale", "temperature"), [(math.log(1 / 0.07), 0.07), (math.log(500.0), 0.01)]
)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_temperature_of_a_checkpoint(
    scale: float, temperature: float, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """The checkpoint's own temperature gives the scores and settings of the same number."""
    path = tmp_path / "model.pt"
    state = {"logit_scale": torch.full(shape, scale), "visual.proj": torch.zeros(2, 2)}
    torch.save({"state_dict": state}, path)
    scorer = NegClipLoss(temperature_of=str(path))
    assert scorer.temperature == pytest.approx(temperature, rel=1e-6)
    same = NegClipLoss(temperature=scorer.temperature)
    assert scorer.settings == same.settings
    arrays = pairs(40)
    made = scores_of(scorer, arrays, tmp_path / "learned")
    np.testing.assert_array_equal(made, scores_of(same, arrays, tmp_path / "given"))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"visual.proj": torch.zeros(2, 2)}, "has no logit_scale"),
        ({"logit_scale": torch.tensor(math.nan)}, "not one usable number"),
        ({"logit_scale": torch.tensor(-1e4)}, "not one usable number"),
        ({"logit_scale": torch.zeros(2)}, "not one usable number"),
    ],
)
def test_a_checkpoint_without_a_temperature(
    state: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(InputError, match=f"--temperature_of .*model.pt .*{message}"):
        NegClipLoss(temperature_of=str(tmp_path / "model.pt"))


def test_two_temperatures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give one of them"):
        NegClipLoss(temperature=0.07, temperature_of=str(tmp_path / "model.pt"))

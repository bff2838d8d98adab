"""Embeddings, pull-backs and tangents of a small CLIP model against autograd."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from torch import Tensor
from torch.func import functional_call

from datacomp_flyt.flyt.precision import TANGENTS
from datacomp_flyt.flyt.towers import Towers
from tests.flyt.problems import DOUBLE, cast, flat, relative_error
from tests.oracles.flyt_inputs import random_batches, small_clip

ROWS, TEXTS = 6, 5
MICRO_BATCHES = [None, 1, 4, 100]
BOUNDS = {"exact": 1e-12, "central": 1e-8, "one_sided": 1e-5}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    upstream, _, downstream = random_batches(ROWS, ROWS, (TEXTS,))
    return upstream.images, downstream.prompts


def direction_of(params: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(param.shape, generator=generator, dtype=DOUBLE).to(param.dtype)
        for name, param in params.items()
    }


def by_autograd(towers: Towers, inputs: tuple[Tensor, Tensor], gradients: tuple[Tensor, Tensor]):
    """Return features and their pull-back, by autograd."""
    leaves = {name: param.clone().requires_grad_() for name, param in towers.params().items()}
    images, texts, _ = functional_call(towers.model, leaves, inputs)
    total = (images * gradients[0]).sum() + (texts * gradients[1]).sum()
    actual = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return (images.detach(), texts.detach()), dict(zip(leaves, actual, strict=True))


def cotangents() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    images, texts = (torch.randn(n, 24, generator=generator, dtype=DOUBLE) for n in (ROWS, TEXTS))
    return images, texts


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("micro_batch_size", MICRO_BATCHES)
def test_embeddings_and_pull_back(
    inputs: tuple[Tensor, Tensor], micro_batch_size: int | None, scale: float
) -> None:
    towers = Towers(small_clip(), micro_batch_size, gradient_scale=scale)
    features, pulled = by_autograd(towers, inputs, cotangents())
    params = towers.params()
    embedding = towers.embed(params, *inputs)
    for actual, expected in zip(embedding.features, features, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
        assert not actual.requires_grad
    for actual, expected in zip(towers.features(params, *inputs), features, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
    actual = embedding.pull_back(cotangents())
    assert actual.keys() == params.keys() == pulled.keys()
    assert relative_error(flat(actual), flat(pulled)) < 1e-12
    assert torch.equal(actual["logit_scale"], torch.zeros((), dtype=DOUBLE))


@pytest.mark.parametrize("micro_batch_size", MICRO_BATCHES)
@pytest.mark.parametrize("method", TANGENTS)
def test_tangents(inputs: tuple[Tensor, Tensor], method: str, micro_batch_size: int | None) -> None:
    """<J v, c> = <v, J^T c> for each row, where J^T c is autograd's."""
    towers = Towers(small_clip(), micro_batch_size)
    params = towers.params()
    direction = direction_of(params)
    step = {"exact": 0.0, "central": 1e-6, "one_sided": 1e-8}[method]
    features = towers.features(params, *inputs)
    actual = towers.tangent(params, direction, *inputs, features, method, step)
    expected = []
    for index, rows in enumerate((ROWS, TEXTS)):
        for row in range(rows):
            gradients = [torch.zeros(n, 24, dtype=DOUBLE) for n in (ROWS, TEXTS)]
            gradients[index][row] = cotangents()[index][row]
            _, pulled = by_autograd(towers, inputs, tuple(gradients))
            expected.append((flat(pulled) @ flat(direction)).item())
    ours = torch.cat([(t * c).sum(1) for t, c in zip(actual, cotangents(), strict=True)])
    assert relative_error(ours, torch.tensor(expected, dtype=DOUBLE)) < BOUNDS[method]
    assert [tuple(part.shape) for part in actual] == [(ROWS, 24), (TEXTS, 24)]
    assert not any(part.requires_grad for part in actual)


@pytest.mark.parametrize("method", TANGENTS)
def test_no_direction_and_no_rows(inputs: tuple[Tensor, Tensor], method: str) -> None:
    """v = 0 (a learning rate of 0) gives tangents of 0; a rank without prompts has no rows."""
    towers = Towers(small_clip(), 4)
    params, texts = towers.params(), inputs[1][:0]
    nowhere = {name: torch.zeros_like(param) for name, param in params.items()}
    features = towers.features(params, inputs[0], texts)
    actual = towers.tangent(params, nowhere, inputs[0], texts, features, method, 1e-6)
    assert torch.equal(actual[0], torch.zeros(ROWS, 24, dtype=DOUBLE))
    assert features[1].shape == actual[1].shape == (0, 24)
    embedding = towers.embed(params, inputs[0], texts)
    pulled = embedding.pull_back((cotangents()[0], torch.zeros(0, 24, dtype=DOUBLE)))
    assert torch.equal(pulled["text_projection"], torch.zeros_like(params["text_projection"]))
    assert pulled["visual.proj"].abs().sum() > 0


def test_tangent_of_the_logit_scale() -> None:
    """τ = exp(s) has the derivative τ v_s."""
    towers = Towers(small_clip())
    params = towers.params()
    direction = direction_of(params)
    actual = towers.logit_scale_tangent(params, direction)
    torch.testing.assert_close(actual, params["logit_scale"].exp() * direction["logit_scale"])
    torch.testing.assert_close(towers.logit_scale(params), params["logit_scale"].exp())


def test_frozen_parameters_stay_out(inputs: tuple[Tensor, Tensor]) -> None:
    model = small_clip()
    model.visual.requires_grad_(False)
    model.logit_scale.requires_grad_(False)
    towers = Towers(model)
    params = towers.params()
    assert params
    assert not any(name.startswith(("visual.", "logit_scale")) for name in params)
    pulled = towers.embed(params, *inputs).pull_back(cotangents())
    _, expected = by_autograd(towers, inputs, cotangents())
    assert pulled.keys() == params.keys()
    assert relative_error(flat(pulled), flat(expected)) < 1e-12
    assert float(towers.logit_scale_tangent(params, direction_of(params))) == 0.0


def test_the_model_computes_as_in_evaluation(inputs: tuple[Tensor, Tensor]) -> None:
    """Patch dropout is off, since it would change the features between passes."""
    from open_clip import CLIP
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    from tests.oracles.flyt_inputs import SMALL_CONFIG

    vision = CLIPVisionCfg(**SMALL_CONFIG["vision_cfg"] | {"patch_dropout": 0.5})
    model = CLIP(24, vision, CLIPTextCfg(**SMALL_CONFIG["text_cfg"])).double().train()
    towers = Towers(model)
    params = towers.params()
    one, other = (towers.features(params, *inputs)[0] for _ in range(2))
    assert not model.training
    assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(inputs: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    """Under autocast, embeddings are rounded; differences use float32 passes."""
    model = small_clip(torch.float32)
    images, texts = inputs[0].float(), inputs[1]
    plain, rounding = Towers(model), Towers(model, autocast=dtype)
    params = plain.params()
    exact, rounded = plain.features(params, images, texts), rounding.features(params, images, texts)
    for one, other in zip(exact, rounded, strict=True):
        assert other.dtype == torch.float32
        assert 1e-4 < relative_error(other, one) < 0.05
    direction = direction_of(params)
    for method, step, bound in (("central", 1e-4, 1e-6), ("one_sided", 3e-5, 1e-6)):
        actual = rounding.tangent(params, direction, images, texts, rounded, method, step)
        same = plain.tangent(params, direction, images, texts, exact, method, step)
        assert relative_error(torch.cat(actual), torch.cat(same)) < bound
    exact = plain.tangent(params, direction, images, texts, exact, "exact", 0.0)
    # v is too long for float16; J v is linear in v, so it is computed with v scaled to |θ|
    long = {name: 1e7 * value for name, value in direction.items()}
    actual = rounding.tangent(params, long, images, texts, rounded, "exact", 0.0)
    assert relative_error(torch.cat(actual) / 1e7, torch.cat(exact)) < 0.1


def test_params_are_the_models_own_without_a_graph() -> None:
    model = small_clip()
    params = Towers(model).params()
    assert params.keys() == cast(dict(model.named_parameters()), DOUBLE).keys()
    for name, param in model.named_parameters():
        assert params[name].data_ptr() == param.data_ptr()
        assert not params[name].requires_grad

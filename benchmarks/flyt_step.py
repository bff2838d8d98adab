"""Measures the cost of a FLYT step relative to a plain CLIP step on the same upstream batch.

The kinds of step run in turns in one process, on one model (ViT-B-32 with random weights), and each
step updates the parameters:

    plain       open_clip's ClipLoss, one backward pass, torch's AdamW
    one_sided, central, exact    `weight_metagradient` with a downstream batch of 0.75 B
    reverse_over_reverse         the same result by differentiating the backward pass, as FLYT's
                                 public code does: it holds two graphs through the towers

With --errors, the benchmark measures the relative error of ∂L_down/∂w for each precision and
tangent against float64.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import open_clip
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import PeakMemory, print_result, say
from datacomp_flyt.exits import Parser
from datacomp_flyt.flyt.downstream_loss import CrossEntropy, DownstreamClipLoss
from datacomp_flyt.flyt.lookahead_adamw import LookaheadAdamW, OptimizerState, Tensors
from datacomp_flyt.flyt.metagradient import Downstream, LossOfRows, weight_metagradient
from datacomp_flyt.flyt.precision import PRECISIONS, TANGENTS, Tangent
from datacomp_flyt.flyt.towers import Towers
from datacomp_flyt.flyt.weighted_loss import weighted_clip_loss

LR = 5e-5
IMAGENET_CLASSES, PAPER_BATCH = 1000, 4096


@dataclass(frozen=True)
class Data:
    """An upstream batch with log weights, and a labelled downstream batch."""

    images: Tensor
    texts: Tensor
    log_weights: Tensor
    down_images: Tensor
    down_texts: Tensor
    labels: Tensor

    @property
    def loss(self) -> LossOfRows:
        """CLIP loss if there is a text for each image, otherwise cross entropy over prompts."""
        if len(self.down_texts) == len(self.down_images):
            return DownstreamClipLoss()
        return CrossEntropy(self.labels)


def make_data(batch: int, loss: str, image_size: int, context: int, device: str) -> Data:
    """Make random batches with B' = 0.75 B, and 1,000 classes for each 4,096 of B."""
    generator = torch.Generator().manual_seed(0)
    down = 3 * batch // 4
    texts = down if loss == "clip" else max(batch * IMAGENET_CLASSES // PAPER_BATCH, 2)

    def images(num_rows: int) -> Tensor:
        return torch.randn(num_rows, 3, image_size, image_size, generator=generator).to(device)

    def tokens(num_rows: int) -> Tensor:
        tokens = torch.randint(1, 49000, (num_rows, context), generator=generator)
        tokens[:, 12] = 49407  # end of text
        return tokens.to(device)

    return Data(
        images(batch),
        tokens(batch),
        torch.randn(batch, generator=generator).log_softmax(0).to(device),
        images(down),
        tokens(texts),
        torch.randint(0, texts, (down,), generator=generator).to(device),
    )


class Steps:
    """The kinds of step on one model; each method does a step and updates the parameters."""

    def __init__(self, model: nn.Module, data: Data, micro: int | None, precision: str) -> None:
        self.model, self.data, self.micro = model.eval(), data, micro
        self.precision = PRECISIONS[precision]
        self.towers = Towers(model, micro, self.precision.autocast)
        self.params = {name: p.clone() for name, p in self.towers.params().items()}
        self.optimizer = LookaheadAdamW()
        self.state = self.optimizer.init(self.params)
        self.torch_optimizer = torch.optim.AdamW(
            model.parameters(), LR, (0.9, 0.98), 1e-6, 0.2, foreach=True
        )
        self.clip_loss = ClipLoss()
        self.device = data.images.device.type

    def plain(self) -> None:
        """Do a step of CLIP training, with micro-batches as by open_clip's --accum-freq."""
        data, size = self.data, self.micro or len(self.data.images)
        chunks = list(zip(data.images.split(size), data.texts.split(size), strict=True))
        self.torch_optimizer.zero_grad()
        with torch.autocast(self.device, self.precision.autocast, self._casts):
            if len(chunks) == 1:
                self.clip_loss(*self.model(*chunks[0])).backward()
            else:
                self._accumulate(chunks)
        self.torch_optimizer.step()

    def _accumulate(self, chunks: list[tuple[Tensor, Tensor]]) -> None:
        with torch.no_grad():
            cached = [self.model(*chunk)[:2] for chunk in chunks]
        for index, chunk in enumerate(chunks):
            image, text, scale = self.model(*chunk)
            images = torch.cat([image if k == index else f[0] for k, f in enumerate(cached)])
            texts = torch.cat([text if k == index else f[1] for k, f in enumerate(cached)])
            self.clip_loss(images, texts, scale).backward()

    @property
    def _casts(self) -> bool:
        return self.precision.autocast is not None

    def ours(self, tangent: Tangent) -> Tensor:
        """Do a FLYT step, and return ∂L_down/∂w."""
        data = self.data
        downstream = Downstream(
            data.down_images,
            data.down_texts,
            len(data.down_images),
            len(data.down_texts),
            data.loss,
            torch.tensor(1 / 0.07, device=data.images.device),
        )
        result = weight_metagradient(
            self.towers,
            self.params,
            optimizer=self.optimizer,
            state=self.state,
            lr=LR,
            images=data.images,
            texts=data.texts,
            log_weights=data.log_weights,
            downstream=downstream,
            tangent=tangent,
        )
        self.params = result.params
        self.state = self.optimizer.next_state(result.grads, self.state)
        return result.weight_gradient

    def reverse_over_reverse(self) -> Tensor:
        """Do the same step by reverse mode over reverse mode, with h'(0) of Appendix A."""
        with sdpa_kernel(SDPBackend.MATH):
            return _reverse_over_reverse(self)


def _reverse_over_reverse(steps: Steps) -> Tensor:
    data, model, params = steps.data, steps.model, steps.params
    cast = steps.precision.autocast
    features_at_theta: list[Tensor] = []

    def embed(theta: Tensors, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(steps.device, cast, steps._casts):
            image, text, scale = functional_call(model, theta, (images, texts))
        return image, text, scale

    def upstream(theta: Tensors) -> Tensor:
        features = embed(theta, data.images, data.texts)
        features_at_theta[:] = [feature.detach() for feature in features]
        return weighted_clip_loss(*features, data.log_weights)

    grads: Tensors = grad(upstream)(params)

    def downstream(grads: Tensors) -> Tensor:
        stepped = steps.optimizer.step(params, grads, steps.state, LR)
        images, texts, _ = embed(stepped, data.down_images, data.down_texts)
        scale = torch.tensor(1 / 0.07, device=images.device)
        return data.loss(images, texts, scale, slice(None))

    direction: Tensors = grad(downstream)(grads)

    def h(eta: Tensor, log_weights: Tensor) -> Tensor:
        moved = {name: p + eta * direction[name] for name, p in params.items()}
        image, text, _ = embed(moved, data.images, data.texts)

        def loss(features: tuple[Tensor, Tensor]) -> Tensor:
            return weighted_clip_loss(*features, features_at_theta[2], log_weights)

        by_image, by_text = grad(loss)((features_at_theta[0], features_at_theta[1]))
        total: Tensor = (by_image * image).sum() + (by_text * text).sum()
        return total

    def slope(log_weights: Tensor) -> Tensor:
        derivative: Tensor = grad(h)(torch.zeros((), device=log_weights.device), log_weights)
        return derivative

    by_log_weights = grad(slope)(data.log_weights)
    steps.params = {
        name: p.detach() for name, p in steps.optimizer.step(params, grads, steps.state, LR).items()
    }
    steps.state = steps.optimizer.next_state(grads, steps.state)
    by_weights: Tensor = by_log_weights / data.log_weights.exp()
    return by_weights


def measure_costs(args: argparse.Namespace, loss: str) -> dict[str, Any]:
    """Measure median seconds and peak memory of each kind of step, and ratios to the plain one."""
    torch.manual_seed(0)
    model = open_clip.create_model(args.model).to(args.device)
    context, size = model.context_length, model.visual.image_size
    data = make_data(args.batch, loss, size[0], context, args.device)
    steps = Steps(model, data, args.micro_batch, args.precision)
    kinds: dict[str, Callable[[], Any]] = {"plain": steps.plain}
    for tangent in TANGENTS:
        kinds[tangent] = partial(steps.ours, tangent)
    if not args.no_reverse:
        kinds["reverse_over_reverse"] = steps.reverse_over_reverse
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    peaks = {kind: _Peak(args.device) for kind in kinds}
    for run in range(args.repeats + 1):  # the first run allocates the moments, and is not measured
        for kind, step in kinds.items():
            gc.collect()
            _finish(args.device)
            with peaks[kind]:
                start = time.perf_counter()
                step()
                _finish(args.device)
                taken = time.perf_counter() - start
            say(f"{loss} run {run} {kind} {taken:.2f} s")
            if run:
                seconds[kind].append(taken)
    median = {kind: statistics.median(times) for kind, times in seconds.items()}
    per_run = {
        kind: [a / b for a, b in zip(times, seconds["plain"], strict=True)]
        for kind, times in seconds.items()
    }
    num_parameters = sum(p.numel() for p in model.parameters())
    return {
        "seconds": median,
        "plain_steps": {kind: statistics.median(ratios) for kind, ratios in per_run.items()},
        "plain_steps_min_max": {kind: [min(r), max(r)] for kind, r in per_run.items()},
        "peak_megabytes": {kind: peak.megabytes for kind, peak in peaks.items()},
        "megabytes_of_the_parameters": num_parameters * 4 / 1e6,
        "pairs_per_second": {kind: args.batch / value for kind, value in median.items()},
        "share_of_matrix_peak": _shares(steps, median, args),
        "number_of_classes": len(data.down_texts) if loss != "clip" else None,
    }


class _Peak(PeakMemory):
    """Measures the largest rise of memory in a step, of the process or of the GPU's tensors."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._cuda = device.startswith("cuda")

    def __enter__(self) -> None:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._allocated = torch.cuda.memory_allocated()
        else:
            super().__enter__()

    def __exit__(self, *error: object) -> None:
        if self._cuda:
            rise = (torch.cuda.max_memory_allocated() - self._allocated) / 1e6
            self.megabytes = max(rise, self.megabytes or 0.0)
        else:
            super().__exit__(*error)


def _shares(steps: Steps, seconds: dict[str, float], args: argparse.Namespace) -> dict[str, float]:
    """Compute FLOP/s of each kind of step as a share of the rate of a large matrix product."""
    peak = _matrix_peak(args.device, steps.precision.autocast or torch.float32)
    data = steps.data
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        steps.model(data.images[:1], None)
    per_image = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        steps.model(None, data.texts[:1])
    per_text = counter.get_total_flops()
    up = len(data.images) * (per_image + per_text)
    down = len(data.down_images) * per_image + len(data.down_texts) * per_text
    forwards = {"plain": 3 * up}
    for tangent, passes in (("one_sided", 1), ("central", 2), ("exact", 3)):
        forwards[tangent] = 3 * up + 3 * down + passes * up
    shares = {kind: flops / seconds[kind] / peak for kind, flops in forwards.items()}
    return {**shares, "matrix_peak_teraflops": peak / 1e12}


def _matrix_peak(device: str, dtype: torch.dtype) -> float:
    """Measure the FLOP/s of the fastest of several square matrix products."""
    size = 8192 if device.startswith("cuda") else 3072
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        _finish(device)
        start = time.perf_counter()
        a @ b
        _finish(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure_errors() -> dict[str, dict[str, float]]:
    """Measure the relative error of ∂L_down/∂w on a small ViT against `exact` in float64."""
    from open_clip import CLIP
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=4, width=128, head_width=32, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=16, width=128, heads=4, layers=3)
    model = CLIP(64, vision, text)
    data = make_data(64, "cross_entropy", 32, 16, "cpu")
    warm = Steps(model, data, None, "fp32")
    for _ in range(10):
        warm.ours("exact")
    truth = _gradient_in(torch.float64, "exact", None, warm, model)
    errors: dict[str, dict[str, float]] = {}
    for name, dtype, autocast in (
        ("float64", torch.float64, None),
        ("fp32", torch.float32, None),
        ("bf16", torch.float32, torch.bfloat16),
        ("amp", torch.float32, torch.float16),
    ):
        for tangent in TANGENTS:
            gradient = _gradient_in(dtype, tangent, autocast, warm, model).double()
            error = float((gradient - truth).norm() / truth.norm())
            errors.setdefault(name, {})[tangent] = error
    return errors


def _gradient_in(
    dtype: torch.dtype,
    tangent: Tangent,
    autocast: torch.dtype | None,
    warm: Steps,
    model: nn.Module,
) -> Tensor:
    """Compute ∂L_down/∂w at the state of `warm` in another precision."""

    def cast(tensors: Tensors) -> Tensors:
        return {name: tensor.to(dtype) for name, tensor in tensors.items()}

    data = warm.data
    steps = Steps(model.to(dtype), data, None, "fp32")
    steps.towers.autocast = autocast
    steps.data = Data(
        data.images.to(dtype),
        data.texts,
        data.log_weights.to(dtype),
        data.down_images.to(dtype),
        data.down_texts,
        data.labels,
    )
    steps.params = cast(warm.params)
    steps.state = OptimizerState(warm.state.step, cast(warm.state.first), cast(warm.state.second))
    return steps.ours(tangent)


def main() -> None:
    """Measure, and print a line of JSON."""
    parser = Parser(description=__doc__)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=32, help="B; B' is three quarters of it")
    parser.add_argument("--micro_batch", type=int)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--losses", nargs="+", default=["cross_entropy", "clip"])
    parser.add_argument("--no_reverse", action="store_true", help="skip reverse_over_reverse")
    parser.add_argument("--errors", action="store_true", help="measure errors instead of costs")
    args = parser.parse_args()
    if args.errors:
        print_result("flyt_step_errors", {"relative_errors": measure_errors()})
        return
    costs = {loss: measure_costs(args, loss) for loss in args.losses}
    print_result("flyt_step", {**vars(args), "torch": torch.__version__, **costs})


if __name__ == "__main__":
    main()

"""Runs a training step of the public FLYT code (formll/FLYT), for comparison.

`public_step` starts another Python that runs this file as a script. The FLYT checkout is first on
its path, since the checkout has its own package `open_clip`. The script calls
`flyt.train.train_one_flyt_epoch` on one batch, in float32 on the CPU. That function consists of
closures, so the script takes intermediate results from its calls of `torch.func.grad` and
`grad_and_value`. No public code is copied here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tests.oracles.flyt import Moments
    from tests.oracles.flyt_inputs import Downstream, Upstream

Inputs = dict[str, Any]
TIME_LIMIT = 300.0  # seconds
TASK = "task"
CHILD_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONDONTWRITEBYTECODE": "1",  # the checkout is not changed
}


# --------------------------------------------------------------------------- calling process


def public_inputs(
    config: Mapping[str, Any],
    params: Mapping[str, Tensor],
    moments: Moments,
    upstream: Upstream,
    scores: Tensor,
    mixing: Mapping[str, Tensor],
    downstream: Downstream,
    *,
    lr: float,
    scoring_lr: float = 1e-3,
    eps: float = 1e-6,
) -> Inputs:
    """Make the inputs of `public_step`, in float32.

    `config` and `params` are the configuration and the parameters of an open_clip.CLIP. `scores`
    [B, k] are the columns of the batch. `mixing` is the linear model on them, with
    "layers.0.weight" [1, k] and "layers.0.bias" [1]. `eps` is the eps of the reference model's
    AdamW. The public code updates the moments once for each task, so there must be one task.
    """
    assert len(downstream.class_counts) == 1, "give the public code one task only"
    temperature = downstream.log_temperature

    def single(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.detach().float().clone() for name, tensor in tensors.items()}

    return {
        "config": {key: dict(v) if isinstance(v, Mapping) else v for key, v in config.items()},
        "params": single(params),
        "first": single(moments.first),
        "second": single(moments.second),
        "step": moments.step,
        "images": upstream.images.float(),
        "texts": upstream.texts,
        "scores": scores.float(),
        "mixing": single(mixing),
        "downstream_images": downstream.images.float(),
        "labels": downstream.labels,
        "prompts": downstream.prompts,
        "captions": downstream.captions,
        "downstream_loss": downstream.loss,
        "log_temperature": None if temperature is None else float(temperature.detach()),
        "lr": lr,
        "scoring_lr": scoring_lr,
        "eps": eps,
    }


def public_step(inputs: Inputs, directory: Path, flyt_dir: Path | str) -> dict[str, Any]:
    """Run the public code for one step; inputs and outputs are files in `directory`.

    Returns tensors and dictionaries of tensors by parameter name:
    `upstream_loss`, `downstream_loss` [], `weights` [B], `weight_gradient` [B] (dL_down/dw),
    `upstream_gradient` (g), `cotangent` (v = dL_down/dg, 0 where Adam's second moment is 0),
    `temperature_gradient` [] or None, `scoring_gradient`, `stepped` (the new reference
    parameters, logit_scale clamped to [2, ln 100]) and `scoring` (the new mixing model).
    """
    root = Path(flyt_dir).resolve()
    if not (root / "flyt" / "train.py").is_file():
        raise FileNotFoundError(f"{root} has no flyt/train.py: give a full checkout of FLYT")
    torch.save(inputs, directory / "inputs.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, __file__, str(root), str(directory.resolve())],
        env=environment | CHILD_ENVIRONMENT,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the public code failed:\n{done.stderr[-4000:]}")
    outputs: dict[str, Any] = torch.load(directory / "outputs.pt", weights_only=True)
    return outputs


# ------------------------------------------------------------------------- called process


class Spy:
    """Wraps a transform of torch.func, and records the last result of each closure."""

    def __init__(self) -> None:
        self.arguments: dict[str, tuple[Any, ...]] = {}
        self.results: dict[str, Any] = {}

    def on(self, transform: Callable[..., Any]) -> Callable[..., Any]:
        def transformed(function: Callable[..., Any]) -> Callable[..., Any]:
            inner = transform(function)

            def call(*args: Any) -> Any:
                result = inner(*args)
                self.arguments[function.__name__] = args
                self.results[function.__name__] = result
                return result

            return call

        return transformed


class OneBatch:
    """A loader of one global batch, like `data["train"]` with its `dataloader`."""

    def __init__(self, inputs: Inputs) -> None:
        self.dataloader = self
        self.num_batches = 1
        self.num_samples = len(inputs["images"])
        downstream = [
            inputs["downstream_images"],
            inputs["captions"],
            inputs["labels"].tolist(),
        ]
        self.batch = (inputs["images"], inputs["texts"], inputs["scores"], [downstream])

    def set_epoch(self, epoch: int) -> None:
        assert epoch == 0

    def __iter__(self) -> Any:
        yield self.batch


def build_reference(inputs: Inputs) -> torch.nn.Module:
    from open_clip.src.open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    config = dict(inputs["config"])
    model = CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=CLIPVisionCfg(**config["vision_cfg"]),
        text_cfg=CLIPTextCfg(**config["text_cfg"]),
        quick_gelu=config.get("quick_gelu", False),
        output_dict=True,
    )
    model.load_state_dict(inputs["params"])
    if inputs["log_temperature"] is not None:  # as in the public open_clip/factory.py
        temperature = torch.tensor(inputs["log_temperature"], dtype=torch.float32)
        model.downstream_logit_scale = torch.nn.Parameter(temperature)
    return model


def arguments(inputs: Inputs) -> SimpleNamespace:
    return SimpleNamespace(
        accum_freq=1,
        batch_size=len(inputs["images"]),
        device="cpu",
        distributed=False,
        downstream_clip_loss=inputs["downstream_loss"] == "clip",
        downstream_logit_scale=inputs["log_temperature"],
        downstream_task_names=TASK,
        log_every_n_steps=1,
        log_pre_update=False,
        parquet_dir="given",  # selects the mixing model on score columns
        precision="fp32",
        rank=0,
        skip_scheduler=True,
        train_full_scoring=False,
        update_reference_model=True,
        wandb=False,
        world_size=1,
    )


def run_one_step(inputs: Inputs) -> dict[str, Any]:
    from flyt import train
    from flyt.factory import MixingModel
    from flyt.grad_scaler import DifferentiableGradScaler
    from flyt.loss import NegativeWeightedClipLoss
    from flyt.optimizer import DifferentiableAdamW
    from open_clip.src.open_clip.loss import ClipLoss

    spy = Spy()
    train.grad, train.grad_and_value = spy.on(train.grad), spy.on(train.grad_and_value)
    train.sample_downstream_texts = lambda *_: inputs["prompts"]
    if not hasattr(
        torch.backends.cuda, "sdp_kernel"
    ):  # removed from torch; it has no effect on a CPU
        torch.backends.cuda.sdp_kernel = lambda **_: contextlib.nullcontext()

    args = arguments(inputs)
    reference = build_reference(inputs)
    scoring = MixingModel(inputs["scores"].shape[1])
    scoring.load_state_dict(inputs["mixing"])
    optimizer = DifferentiableAdamW(reference, lr=inputs["lr"], epsilon=inputs["eps"])
    optimizer.m, optimizer.v = dict(inputs["first"]), dict(inputs["second"])
    optimizer.t = torch.tensor(float(inputs["step"]))
    train.train_one_flyt_epoch(
        reference,
        scoring,
        {"train": OneBatch(inputs)},
        ClipLoss(),
        NegativeWeightedClipLoss(),
        0,
        optimizer,
        DifferentiableAdamW(scoring, lr=inputs["scoring_lr"]),
        DifferentiableGradScaler(args, active=False),
        DifferentiableGradScaler(args, active=False),
        lambda step: None,
        lambda step: None,
        args,
    )
    gradient, upstream_loss = spy.results["compute_weighted_loss"]
    cotangent, downstream_loss = spy.results["l_hat"]
    cotangent, stepped = dict(cotangent), dict(reference.named_parameters())
    stepped.pop("downstream_logit_scale", None)
    gradient = {name: gradient[name] for name in stepped}
    return {
        "upstream_loss": upstream_loss,
        "downstream_loss": downstream_loss,
        "weights": spy.arguments["compute_loss_to_weights"][0],
        "weight_gradient": spy.results["compute_loss_to_weights"],
        "upstream_gradient": gradient,
        "temperature_gradient": cotangent.pop("downstream_logit_scale", None),
        "cotangent": cotangent,
        "scoring_gradient": spy.results["compute_loss_to_scoring_model"],
        "stepped": stepped,
        "scoring": dict(scoring.named_parameters()),
    }


def plain(value: Any) -> Any:
    """Detach tensors and parameters, so that weights_only loading accepts them."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    return value.detach().clone() if isinstance(value, Tensor) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("flyt_dir", help="a full checkout of formll/FLYT")
    parser.add_argument(
        "directory", type=Path, help="folder with inputs.pt; outputs.pt is written there"
    )
    options = parser.parse_args()
    sys.path[0] = options.flyt_dir  # replaces the folder of this file
    warnings.simplefilter(
        "ignore"
    )  # the public code warns about newer versions of PyTorch and timm
    torch.set_num_threads(1)
    inputs = torch.load(options.directory / "inputs.pt", weights_only=True)
    torch.save(plain(run_one_step(inputs)), options.directory / "outputs.pt")


if __name__ == "__main__":
    main()

"""FLYT's scoring models q_φ, and their files.

Legend: b rows, k score columns, d width of one embedding, h hidden units.

| model | features ζ | paper | file format | published file |
|---|---|---|---|---|
| `MixingModel` | k standardised scores | 3.4, M-FLYT | safetensors | `mflyt.pt` |
| `GluHead` | image and text embedding | 3.4, C.7, E-FLYT | safetensors | `flyt.pt` |
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import atomic_write
from datacomp_flyt.mixing import LinearMixingModel, load_mixing_model, save_mixing_model
from datacomp_flyt.mixing.published import PUBLISHED_COLUMNS
from datacomp_flyt.scorers.e_flyt.glu_head import GluHead as GluHeadArrays
from datacomp_flyt.scorers.e_flyt.glu_head_file import load_glu_head, save_glu_head


class MixingModel(nn.Module):
    """M-FLYT: s = W (x - mean) / std + b.

    The means and standard deviations are part of the model: other ones give other scores.
    """

    means: Tensor
    stds: Tensor

    def __init__(
        self, columns: Sequence[str], statistics: tuple[Sequence[float], Sequence[float]] | None
    ) -> None:
        """
        Args:
            columns: names of the score columns [k].
            statistics: means and standard deviations over the whole pool, [k] each; None to mix
                raw scores (Table 8).
        """
        super().__init__()
        self.columns = tuple(columns)
        self.standardize = statistics is not None
        k = len(self.columns)
        self.layers = nn.Sequential(nn.Linear(k, 1))  # the published names: layers.0.weight
        means, stds = statistics or ([0.0] * k, [1.0] * k)
        self.register_buffer("means", torch.tensor(means, dtype=torch.float64), persistent=False)
        self.register_buffer("stds", torch.tensor(stds, dtype=torch.float64), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Compute scores [b] from raw columns [b, k]."""
        standardized = (features.double() - self.means) / self.stds
        scores: Tensor = self.layers(standardized.to(self.weight.dtype))
        return scores[:, 0]

    @property
    def weight(self) -> Tensor:
        """W [1, k]."""
        return self.get_parameter("layers.0.weight")

    @property
    def bias(self) -> Tensor:
        """b [1]; has no effect on ranking and sampling."""
        return self.get_parameter("layers.0.bias")

    def named_weights(self) -> dict[str, float]:
        """Return the weight of each column; all have unit standard deviation (Table 2)."""
        return dict(zip(self.columns, self.weight[0].tolist(), strict=True))

    def load(self, source: str) -> None:
        """Load weights: `paper`, a safetensors file that `save` wrote, or `mflyt.pt`.

        Means and standard deviations are not loaded.

        Raises:
            InputError: the file mixes other columns, or columns that are standardised otherwise.
        """
        if source != "paper":
            _check_is_file(source)
        given = load_mixing_model(source)
        if set(given.columns) != set(self.columns):
            raise InputError(
                f"--scoring_init {source} mixes {', '.join(given.columns)}, and --score_columns "
                f"are {', '.join(self.columns)}: name the same columns"
            )
        if given.standardize != self.standardize:
            kinds = ("raw", "standardised") if self.standardize else ("standardised", "raw")
            raise InputError(
                f"--scoring_init {source} mixes {kinds[0]} columns and this run {kinds[1]} ones: "
                "weights of the one mean nothing to the other, so mind --no_standardize"
            )
        weight_of = dict(zip(given.columns, given.weights, strict=True))
        with torch.no_grad():
            self.weight.copy_(torch.tensor([[weight_of[column] for column in self.columns]]))
            self.bias.fill_(given.bias)

    def save(self, path: Path) -> None:
        """Write our format, which `--name m_flyt --scoring_model FILE` reads."""
        model = LinearMixingModel(
            self.columns,
            tuple(self.weight[0].double().tolist()),
            self.bias.item(),
            self.standardize,
            tuple(self.means.tolist()) if self.standardize else None,
            tuple(self.stds.tolist()) if self.standardize else None,
        )
        save_mixing_model(model, path)

    def save_published(self, path: Path) -> None:
        """Write the layout of `mflyt.pt`: weight and bias, in the order of the published columns.

        Raises:
            InputError: the columns are not the published twelve.
        """
        if set(self.columns) != set(PUBLISHED_COLUMNS):
            raise InputError("mflyt.pt has no column names: only FLYT's twelve columns can be kept")
        order = [self.columns.index(column) for column in PUBLISHED_COLUMNS]
        state = {
            "layers.0.weight": self.weight.detach()[:, order].float().cpu(),
            "layers.0.bias": self.bias.detach().float().cpu(),
        }
        with atomic_write(path) as file:
            torch.save(state, file)


class GluLayer(nn.Module):
    """Gated linear unit w2 (silu(w1 z + b1) * (w3 z + b3)) + b2."""

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden)
        self.w3 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(hidden, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [b, width] to [b, outputs]."""
        outputs: Tensor = self.w2(F.silu(self.w1(inputs)) * self.w3(inputs))
        return outputs


class GluHead(nn.Module):
    """E-FLYT: a gated feed-forward head over image and text embeddings of unit norm."""

    def __init__(
        self,
        width: int,
        arrays: Sequence[str] | None = None,
        num_layers: int = 1,
        hidden_ratio: float = 1.0,
        cosine_start: bool = False,
    ) -> None:
        """
        Args:
            width: 2d, the width of both embeddings together.
            arrays: names of the npz arrays with the embeddings, image first; None if a CLIP model
                computes them.
            num_layers: number of layers; all but the last have `width` outputs.
            hidden_ratio: h / 2d.
            cosine_start: start close to the cosine of image and text instead of at random (not in
                the paper).

        Raises:
            InputError: there are no hidden units, or `cosine_start` does not fit the layers.
        """
        super().__init__()
        self.arrays = None if arrays is None else tuple(arrays)
        hidden = int(width * hidden_ratio)
        if hidden < 1:
            raise InputError(
                f"--glu_hidden_ratio {hidden_ratio} of {width} inputs is no hidden unit: raise it"
            )
        outputs = [width] * (num_layers - 1) + [1]
        layers = [GluLayer(width, hidden, num_outputs) for num_outputs in outputs]
        self.layers = nn.Sequential(*layers)
        if cosine_start:
            if len(layers) != 1 or hidden != width:
                raise InputError("--cosine_start wants --glu_layers 1 and --glu_hidden_ratio 1")
            if self.arrays is not None and len(self.arrays) != 2:
                raise InputError(
                    f"--cosine_start wants two --embedding_arrays, not {', '.join(self.arrays)}"
                )
            _start_at_cosine(layers[0])

    def forward(self, embeddings: Tensor) -> Tensor:
        """Compute scores [b] from embeddings [b, 2d]."""
        scores: Tensor = self.layers(embeddings)
        return scores[:, 0]

    def load(self, source: str) -> None:
        """Load weights: a safetensors file that `save` wrote, or `flyt.pt`.

        Raises:
            InputError: the file holds layers of other shapes.
        """
        _check_is_file(source)
        state = {
            name: torch.from_numpy(np.array(value))
            for name, value in load_glu_head(source).tensors().items()
        }
        shapes = {name: value.shape for name, value in self.state_dict().items()}
        if shapes != {name: value.shape for name, value in state.items()}:
            raise InputError(
                f"--scoring_init {source} has {len(state) // 6} layers of "
                f"{list(state['layers.0.w1.weight'].shape)}, wanted {len(self.layers)} of "
                f"{list(shapes['layers.0.w1.weight'])}: see --glu_layers and --glu_hidden_ratio"
            )
        self.load_state_dict(state)

    def save(self, path: Path) -> None:
        """Write the safetensors file that `--name e_flyt --scoring_model FILE` reads."""
        state = {name: value.float().cpu().numpy() for name, value in self.state_dict().items()}
        save_glu_head(GluHeadArrays.from_tensors(state, self.arrays, "the head"), path)

    def save_published(self, path: Path, clip_state: dict[str, Tensor]) -> None:
        """Write the layout of `flyt.pt`: `glu_model.*`, and the extractor as `clip_model.*`.

        Args:
            clip_state: state dict of the feature extractor.
        """
        head = {f"glu_model.{name}": value.cpu() for name, value in self.state_dict().items()}
        clip = {f"clip_model.{name}": value.cpu() for name, value in clip_state.items()}
        with atomic_write(path) as file:
            torch.save({**clip, **head}, file)


ScoringModel = MixingModel | GluHead


def _check_is_file(source: str) -> None:
    if not Path(source).is_file():
        raise InputError(f"--scoring_init {source} is not a file: give a .safetensors or .pt file")


def _start_at_cosine(layer: GluLayer, noise: float = 0.01) -> None:
    """Initialize a layer so that its output is near the cosine of image and text embedding.

    The gates are i_r and -t_r and the values t_r and -i_r, which gives
    sum_r i_r t_r (σ(i_r) + σ(-t_r)). As in FLYT's public code, noise is added to all parameters.
    """
    width = layer.w1.in_features
    one, zero = torch.eye(width // 2), torch.zeros(width // 2, width // 2)
    gate = torch.cat([torch.cat([one, zero], 1), torch.cat([zero, -one], 1)])
    value = torch.cat([torch.cat([zero, one], 1), torch.cat([-one, zero], 1)])
    starts = (gate, value, torch.ones(1, width))
    with torch.no_grad():
        for part, start in zip((layer.w1, layer.w3, layer.w2), starts, strict=True):
            part.weight.copy_(start + noise * torch.randn_like(start))
            part.bias.normal_(std=noise)

"""E-FLYT's scoring head: a gated feed-forward network over an example's two embeddings.

    y = w2 (silu(w1 z + b1) * (w3 z + b3)) + b2,    z = [unit image embedding, unit text embedding]

The last layer's y is the score; the y of an earlier layer, as wide as z, is the next layer's input,
without residual or norm (FLYT, section 3.4 and appendix C.7; the public code's GLU).

This head computes with NumPy, so that E-FLYT selects where torch is not installed, with the same
bytes at any number of rows. `images` and FLYT's training compute the same formula in torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError

Weights = NDArray[np.float32]

_PARTS = ("w1", "w3", "w2")
_ROWS = 512  # rows of every matrix product: with h = 1024, 4 MB of activations
_UNITS = 64  # hidden units gated at once: 384 kB, within a core's L2 cache


@dataclass(frozen=True, eq=False)
class GluLayer:
    """One layer, from `width` inputs over h hidden units to `outputs`; all arrays float32.

    Attributes:
        w1, b1: weight and bias of the gate, [h, width] and [h].
        w3, b3: weight and bias of the gated units, [h, width] and [h].
        w2, b2: weight and bias of the output, [outputs, h] and [outputs].
    """

    w1: Weights
    b1: Weights
    w3: Weights
    b3: Weights
    w2: Weights
    b2: Weights

    @cached_property
    def _stacked(self) -> tuple[Weights, Weights]:
        """w1 over w3, so that one product computes both, and their biases as a column."""
        return np.concatenate([self.w1, self.w3]), np.concatenate([self.b1, self.b3])[:, None]

    def apply(self, rows: Weights) -> Weights:
        """Map [n, width] to [n, outputs]. Hidden units are rows in between, so contiguous."""
        weights, biases = self._stacked
        hidden = weights @ rows.T
        units = len(self.w1)
        scratch = np.empty((min(_UNITS, units), len(rows)), np.float32)
        for start in range(0, units, _UNITS):
            stop = min(start + _UNITS, units)
            gate, value = hidden[start:stop], hidden[units + start : units + stop]
            divisor = scratch[: stop - start]
            gate += biases[start:stop]
            value += biases[units + start : units + stop]
            np.negative(gate, out=divisor)
            np.exp(divisor, out=divisor)
            np.add(divisor, 1, out=divisor)
            np.divide(gate, divisor, out=gate)  # silu
            gate *= value
        result: Weights = np.matmul(hidden[:units].T, self.w2.T)
        result += self.b2
        return result


@dataclass(frozen=True, eq=False)
class GluHead:
    """A scoring head.

    Attributes:
        layers: one or more; the last has one output, the others as many as they have inputs.
        arrays: the npz arrays that it was trained on, in the order of its inputs, such as
            ("b32_img", "b32_txt"); None if its features were made from images.
    """

    layers: tuple[GluLayer, ...]
    arrays: tuple[str, ...] | None

    @property
    def width(self) -> int:
        """The number of inputs: twice the width of an embedding."""
        return int(self.layers[0].w1.shape[1])

    def scores(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score rows [n, width]; returns [n], NaN where a row holds NaN.

        All products have the same shape, the last one padded, so that a score does not depend on
        the number of rows that follow. (Its last bits may depend on its position in the product,
        depending on the BLAS.)
        """
        scores = np.empty(len(embeddings), np.float32)
        # exp(-x) of a very negative x is infinite, and silu then 0, as it should be
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(embeddings), _ROWS):
                rows = embeddings[start : start + _ROWS]
                values = rows
                if len(rows) < _ROWS:
                    values = np.zeros((_ROWS, self.width), np.float32)
                    values[: len(rows)] = rows
                for layer in self.layers:
                    values = layer.apply(values)
                scores[start : start + len(rows)] = values[: len(rows), 0]
        return scores

    def tensors(self, prefix: str = "") -> dict[str, Weights]:
        """Return the weights by the names `layers.{i}.{w1,w3,w2}.{weight,bias}` of `flyt.pt`."""
        named: dict[str, Weights] = {}
        for index, layer in enumerate(self.layers):
            for part in _PARTS:
                name = f"{prefix}layers.{index}.{part}"
                named[f"{name}.weight"] = getattr(layer, part)
                named[f"{name}.bias"] = getattr(layer, part.replace("w", "b"))
        return named

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, NDArray[Any]], arrays: tuple[str, ...] | None, source: str
    ) -> GluHead:
        """Build a head of tensors of any float type.

        Args:
            tensors: the tensors by the names of `tensors()`, and no others.
            arrays: see the class.
            source: the flag and file of the tensors, for messages.

        Raises:
            InputError: a tensor is missing, unknown, of the wrong shape or not finite.
        """
        count = 1
        while f"layers.{count}.w1.weight" in tensors:
            count += 1
        left = dict(tensors)
        layers: list[GluLayer] = []
        for index in range(count):
            linear = {part: _linear(left, f"layers.{index}.{part}", source) for part in _PARTS}
            (w1, b1), (w3, b3), (w2, b2) = linear.values()
            width, units = layers[0].w1.shape[1] if layers else w1.shape[1], len(w1)
            outputs = 1 if index == count - 1 else width
            wanted = {"w1": (units, width), "w3": (units, width), "w2": (outputs, units)}
            for part, (weight, _) in linear.items():
                if weight.shape != wanted[part]:
                    raise InputError(
                        f"{source} has layers.{index}.{part}.weight {list(weight.shape)}, wanted "
                        f"{list(wanted[part])} to fit the rest: it is not a scoring head of E-FLYT"
                    )
            layers.append(GluLayer(w1, b1, w3, b3, w2, b2))
        if left:
            raise InputError(
                f"{source} has {', '.join(sorted(left))[:200]} too: it is not a scoring head of "
                "E-FLYT"
            )
        return cls(tuple(layers), arrays)


def _linear(left: dict[str, NDArray[Any]], name: str, source: str) -> tuple[Weights, Weights]:
    """Take one weight [a, b] and its bias [a] out of `left`, as float32."""
    arrays = []
    for kind in ("weight", "bias"):
        tensor = left.pop(f"{name}.{kind}", None)
        if tensor is None:
            raise InputError(f"{source} has no {name}.{kind}: it is not a scoring head of E-FLYT")
        with np.errstate(over="ignore", invalid="ignore"):
            arrays.append(np.array(tensor, np.float32, order="C"))
        if tensor.dtype.kind != "f" or not np.isfinite(arrays[-1]).all():
            raise InputError(
                f"{source} has numbers in {name}.{kind} that are no finite floats: train it "
                "again, or fetch it again"
            )
    weight, bias = arrays
    if weight.ndim != 2 or not weight.size or bias.shape != weight.shape[:1]:
        raise InputError(
            f"{source} has {name}.weight {list(weight.shape)} and {name}.bias {list(bias.shape)}, "
            "wanted [a, b] and [a]: it is not a scoring head of E-FLYT"
        )
    return weight, bias

"""Linear classifiers, one number at a time, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

Row = Sequence[float]


def logit(weight: Row, bias: float, row: Row) -> float:
    """Return w . x + b."""
    return math.fsum([*(float(w) * float(x) for w, x in zip(weight, row, strict=True)), bias])


def two_class_logit(weights: Sequence[Row], biases: Row, row: Row, positive: int) -> float:
    """Return the log-odds of the positive class under the softmax of two outputs."""
    outputs = [
        logit(weight, float(bias), row) for weight, bias in zip(weights, biases, strict=True)
    ]
    exps = [math.exp(output) for output in outputs]
    share = exps[positive] / sum(exps)
    return math.log(share / (1 - share))


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Return the rate of step 1, 2, ...: linear warmup, then a cosine that ends just above 0."""
    if step <= warmup:
        return peak * step / warmup
    return peak * math.cos(math.pi / 2 * (step - 1 - warmup) / (steps - warmup)) ** 2


def cross_entropy(weight: Row, bias: float, rows: Sequence[Row], labels: Sequence[int]) -> float:
    """Return the mean of -log of the probability that the logistic model gives the label."""
    total = 0.0
    for row, label in zip(rows, labels, strict=True):
        probability = 1 / (1 + math.exp(-logit(weight, bias, row)))
        total -= math.log(probability if label else 1 - probability)
    return total / len(rows)


def gradient(
    parameters: Sequence[float], rows: Sequence[Row], labels: Sequence[int]
) -> list[float]:
    """Return the gradient of `cross_entropy`: the mean of (probability - label) times (row, 1)."""
    slopes = [0.0] * len(parameters)
    for row, label in zip(rows, labels, strict=True):
        probability = 1 / (1 + math.exp(-logit(parameters[:-1], parameters[-1], row)))
        for index, x in enumerate([*row, 1.0]):
            slopes[index] += (probability - label) * x / len(rows)
    return slopes


def train(
    batches: Sequence[tuple[Sequence[Row], Sequence[int]]], width: int, peak: float, warmup: int
) -> list[float]:
    """Train by Adam (Kingma & Ba, Algorithm 1) from 0; return the weights, then the bias."""
    parameters = [0.0] * (width + 1)
    m, v = [0.0] * (width + 1), [0.0] * (width + 1)
    for t, (rows, labels) in enumerate(batches, 1):
        rate = learning_rate(t, len(batches), peak, warmup)
        for i, g in enumerate(gradient(parameters, rows, labels)):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            m_hat, v_hat = m[i] / (1 - 0.9**t), v[i] / (1 - 0.999**t)
            parameters[i] -= rate * m_hat / (math.sqrt(v_hat) + 1e-8)
    return parameters

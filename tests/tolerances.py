"""Tolerances of numeric tests, derived from the type's epsilon, the magnitude and the terms.

A tolerance that was read off one machine fails on another: instruction sets differ in the order of
their sums, in fused multiply-adds and in the last digit of `exp` and `log`. A bound of rounding
errors holds for every order of summation, so for every processor.
"""

from __future__ import annotations

import math

import numpy as np

_EPSILONS = {"bfloat16": 2.0**-7}  # NumPy does not have the type


def epsilon(dtype: object) -> float:
    """Distance from 1 to the next larger number of a NumPy or torch type, or of a type's name."""
    name = str(dtype).removeprefix("torch.")
    if name in _EPSILONS:
        return _EPSILONS[name]
    return float(np.finfo(np.dtype(dtype if isinstance(dtype, type) else name)).eps)


def float_bound(dtype: object, magnitude: float, terms: float, computed: int = 1) -> float:
    """Largest rounding error of a sum or a dot product, whatever the order of its terms.

    With the unit roundoff u = epsilon / 2, n terms t_i and any order of summation, with or without
    fused multiply-adds (Higham, "Accuracy and Stability of Numerical Algorithms", 3.1 and 4.2):

        |computed - exact| <= n u / (1 - n u) * sum_i |t_i|

    Errors of many terms cancel. From 36 terms on, 6 sqrt(n) stands for n, which holds except with
    probability 2 exp(-6^2 / 2) = 3e-8 (Higham and Mary, "A New Approach to Probabilistic Rounding
    Error Analysis", SIAM J. Sci. Comput. 41, 2019).

    Further operations on the way are added to the terms: a division counts as one rounding, an
    `exp` that is right to k units in the last place as 2 k.

    Args:
        dtype: the type in which the sum is taken.
        magnitude: sum of the absolute terms, or a bound of it. For a dot product of rows f and g
            this is |f| . |g|, at most the product of their norms.
        terms: number of terms, and of further roundings.
        computed: 1 where a computed sum is compared with the exact one; 2 where two computed sums
            are compared with each other.
    """
    share = min(terms, 6 * math.sqrt(terms)) * epsilon(dtype) / 2
    if share >= 0.5:
        raise ValueError(f"{terms} terms leave no digit of {dtype}")
    return computed * share / (1 - share) * float(magnitude)

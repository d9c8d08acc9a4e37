"""Vectors of different units made comparable, and their lengths.

Cores, KiB and KiB/s cannot be added: memory in KiB would swamp everything else, as it did in
Snooze. So a vector is first divided by a capacity, axis by axis, and only then measured.
"""

from enum import StrEnum
from typing import assert_never

import numpy as np

from snooze.common.resources import FloatArray


class Norm(StrEnum):
    """How the length of a normalised vector is measured."""

    L1 = "l1"
    """Sum of the components."""
    EUCLID = "euclid"
    """Square root of the sum of squares."""
    MAX = "max"
    """The largest component."""


def normalised(vectors: FloatArray, scale: FloatArray) -> FloatArray:
    """``vectors[..., R] / scale[..., R]``; an axis of scale 0 counts as 0.

    Nothing can be asked of a resource that is not there, so it has no part in any comparison.
    """
    usable = scale > 0
    shares: FloatArray = np.where(usable, vectors, 0.0) / np.where(usable, scale, 1.0)
    return shares


def length(vectors: FloatArray, norm: Norm = Norm.L1) -> FloatArray:
    """``float64[...]`` from ``vectors[..., R]``, already normalised."""
    if not vectors.shape[-1]:
        return np.zeros(vectors.shape[:-1])
    match norm:
        case Norm.L1:
            total: FloatArray = np.abs(vectors).sum(axis=-1)
            return total
        case Norm.EUCLID:
            squares: FloatArray = (vectors * vectors).sum(axis=-1)
            return np.asarray(np.sqrt(squares), dtype=np.float64)
        case Norm.MAX:
            return np.asarray(np.maximum.reduce(np.abs(vectors), axis=-1), dtype=np.float64)
        case _:
            assert_never(norm)


def mean_capacity(capacity: FloatArray) -> FloatArray:
    """``float64[R]``, the mean host, by which demands are compared; zeros if there is none."""
    mean: FloatArray = capacity.sum(axis=0) / max(1, len(capacity))
    return mean

"""Pseudo-mates: probes made from one template and noise, where mated pairs are wanting."""

from typing import Final

import numpy as np

from facegrid import vectors
from facegrid.vectors import Float32, Int8

MATED_MEAN: Final = 0.63
MATED_SD: Final = 0.09
MATED_MIN: Final = 0.35
"""Cosines of mated pairs, TARGETS 1; below MATED_MIN no threshold in use accepts them."""
NOISE_ROWS: Final = 512
"""Rows mixed into the noise of a pseudo-mate: each alone stays far below a mate's score."""


def mated_cosines(count: int, rng: np.random.Generator) -> Float32:
    """Return cosines, float32 [count], as mated pairs have them."""
    drawn = rng.normal(MATED_MEAN, MATED_SD, count).clip(MATED_MIN, 0.99)
    return drawn.astype(np.float32)


def pseudo_probes(
    own: Int8, others: Int8, cosines: Float32, rng: np.random.Generator
) -> vectors.Probes:
    """Return a probe for each of the stored rows `own`, int8 [m, dim], at these cosines.

    The noise is a random mixture of the rows `others`, int8 [r, dim]: of their own covariance.
    """
    unit = vectors.dequantize(own)
    noise: Float32 = rng.standard_normal((len(own), len(others)), dtype=np.float32)
    noise = noise @ vectors.dequantize(others)
    noise -= np.einsum("ij,ij->i", noise, unit)[:, None] * unit
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    mixed = cosines[:, None] * unit + np.sqrt(1 - cosines**2)[:, None] * noise
    return vectors.prepare_probes(mixed.astype(np.float32))

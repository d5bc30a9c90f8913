"""What training yields: coarse centroids, PQ tables and the measured search settings.

The stored form is used as it is: format and search want the same arrays.
"""

from typing import Final

from facegrid.format.codebook import CodebookArrays as Codebook

PQ_BITS: Final = 4
"""What FastScan needs."""
PQ_STEP: Final = 4
"""Components of a vector that one sub-quantizer codes."""
RESCORED_MIN: Final = 64
"""Rows rescored for each probe, however few are wanted: they cost a tenth of the scan."""
WANTED_TYPICAL: Final = 10
"""A codebook's rescore_factor is measured for this many candidates."""
WANTED_DEEP: Final = 100
"""Ranks beyond this are far below any threshold in use; they get DEEP_FACTOR rows each."""
DEEP_FACTOR: Final = 2

__all__ = ["PQ_BITS", "PQ_STEP", "RESCORED_MIN", "WANTED_TYPICAL", "Codebook"]

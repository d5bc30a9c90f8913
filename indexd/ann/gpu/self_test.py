"""What a device is tried with before it serves: it finds rows, and erased ones stay away.

Builds of faiss differ in what they do with erased rows. Nothing here trusts them: erased rows are
left out after every scan. That this holds on the build at hand is tried once, with rows made up
here, whose erased ones look best of all.
"""

from typing import Final

import numpy as np

from facegrid import vectors
from facegrid.errors import FacegridError
from indexd.ann.gpu.arrays import DeviceError
from indexd.ann.gpu.part import DevicePart
from indexd.ann.gpu.rows import DeviceRows
from indexd.ann.gpu.unit import Unit
from indexd.ann.rows import Rows

DIM: Final = 64
ROWS: Final = 2048
NLIST: Final = 8
SEED: Final = 7


def self_test(unit: Unit) -> None:
    """Try a device on a few rows, in its owner thread.

    Raises:
        FacegridError: it scores otherwise than the processor or does not find rows that are there
            (ENGINE_UNFIT), or finds erased ones (ERASED_FOUND).
    """
    unit.do(lambda: _try(unit)).result()


def _try(unit: Unit) -> None:
    rng = np.random.default_rng(SEED)
    rows = Rows(DIM)
    rows.append(
        vectors.quantize(rng.standard_normal((ROWS, DIM), dtype=np.float32)),
        np.arange(ROWS, dtype=np.int32),
    )
    own = np.arange(0, ROWS, 8)
    probes = vectors.prepare_probes(vectors.dequantize(rows.codes(own)))
    try:
        with unit.arrays.guarded():
            _compare(unit, rows, probes, own)
    except DeviceError as error:
        raise FacegridError(f"{unit.name} failed: {error}", reason="ENGINE_UNFIT") from error


def _compare(unit: Unit, rows: Rows, probes: vectors.Probes, own: vectors.Int64) -> None:
    arrays, scanners = unit.arrays, unit.scanners
    on_device = DeviceRows(arrays, rows)
    for block in rows.blocks(0, ROWS, rows_max=ROWS):
        on_device.append(block)
    part = DevicePart(
        arrays, scanners, scanners.train(on_device.units(0, ROWS), NLIST, SEED), on_device
    )
    part.add(on_device.units(0, ROWS))
    everywhere = part.nearest(probes, NLIST)
    found = part.scan(probes, everywhere, 16, live=None).rows
    exact = on_device.scan(0, ROWS, probes=probes, wanted=1)
    scores = vectors.scores(probes, rows.codes(exact), rows.norms(exact))
    if not (found == own[:, None]).any(axis=1).all() or not (exact[:, 0] == own).all():
        raise FacegridError(f"{unit.name} misses rows that are there", reason="ENGINE_UNFIT")
    if not np.array_equal(on_device.scores(probes, exact), scores):
        raise FacegridError(f"{unit.name} scores differently", reason="ENGINE_UNFIT")
    rows.erase(own)
    part.erased_count = rows.erased_count
    on_device.mask(0, next(rows.blocks(0, ROWS, rows_max=ROWS)).erased)
    after = part.scan(probes, everywhere, 16, live=rows.live_bits()).rows
    exact = on_device.scan(0, ROWS, probes=probes, wanted=16)
    if np.isin(after, own).any() or np.isin(exact, own).any() or (after < 0).any():
        raise FacegridError(f"{unit.name} finds erased rows", reason="ERASED_FOUND")

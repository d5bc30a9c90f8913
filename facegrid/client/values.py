"""What goes into the client and comes out, beyond the values of `facegrid.model`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facegrid.model import Token

Matrix = npt.NDArray[np.float16] | npt.NDArray[np.float32] | npt.NDArray[np.float64]
"""Vectors as callers hold them: [rows, dim]. float64 is sent as float32."""


@dataclass(frozen=True, slots=True, eq=False)
class EnrolBatch:
    """Some rows of a stream of enrolments.

    Attributes:
        template_ids: one per row.
        subject_ids: one per row.
        vectors: [rows, dim].
        request_id: made up where not given. Give one to be able to send the same batch again in
            another stream; a batch that is cut up sends it as "<request_id>/0", "/1", ...
    """

    template_ids: Sequence[str]
    subject_ids: Sequence[str]
    vectors: Matrix
    request_id: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """One stored template; `vector` is float32 [dim] of norm 1.

    `unconfirmed`: the copy that answered could not confirm that it has everything, so that the
    template may have been erased.
    """

    template_id: str
    subject_id: str
    vector: npt.NDArray[np.float32]
    unconfirmed: bool = False


@dataclass(frozen=True, slots=True)
class Verification:
    """How much a probe resembles one subject: the score with the best of its templates.

    `unconfirmed`: the copy that answered could not confirm that it has everything, so that the
    template may have been erased, or a better one be missing.
    """

    subject_id: str
    template_id: str
    score: float
    unconfirmed: bool = False


@dataclass(frozen=True, slots=True)
class Erasure:
    """What an erasure did; a read given the token no longer sees the templates."""

    token: Token
    erased_templates_count: int

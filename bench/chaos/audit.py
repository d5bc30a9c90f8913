"""The audit: what the cluster holds in the end, against what the ledger says."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

import facegrid
from bench.chaos.ledger import Fate, template_of, vector_of, vectors_of
from bench.chaos.tally import Tally
from facegrid.api.admin.v1 import admin_service_pb2
from facegrid.api.shard.v1 import shard_service_pb2
from facegrid.errors import NotFoundError
from facegrid.vectors import Float32

SCORE_MIN = 0.99
PROBES_PER_CALL = 64
THREADS = 4
K = 3


class Audited(Protocol):
    """What the audit asks: a facegrid.Client."""

    def get_template(
        self,
        gallery: str,
        template_id: str,
        *,
        subject_id: str | None = None,
        after: facegrid.Token | None = None,
    ) -> facegrid.Template:
        """Return one stored template."""

    def identify(
        self,
        gallery: str,
        probes: Float32,
        *,
        k: int = 10,
        after: facegrid.Token | None = None,
    ) -> list[facegrid.CandidateList]:
        """Return candidate lists."""

    def get_gallery(self, name: str) -> facegrid.Gallery:
        """Return a gallery with its number of templates."""


class Auditor:
    """Compares a gallery that nobody writes to any more with a ledger.

    Args:
        client: asks the cluster.
        gallery: its name.
        fates: what the ledger says.
        token: covers all that was acknowledged.
        tally: told what is wrong.
    """

    def __init__(
        self,
        client: Audited,
        gallery: str,
        fates: Mapping[str, Fate],
        *,
        token: facegrid.Token,
        tally: Tally,
    ) -> None:
        self._client = client
        self._gallery = gallery
        self._fates = fates
        self._token = token
        self._tally = tally

    def run(self) -> None:
        """Look up every subject, search for every subject, and count."""
        subject_ids = sorted(self._fates)
        with ThreadPoolExecutor(THREADS) as pool:
            there = dict(zip(subject_ids, pool.map(self._is_there, subject_ids), strict=True))
            pieces = [
                subject_ids[first : first + PROBES_PER_CALL]
                for first in range(0, len(subject_ids), PROBES_PER_CALL)
            ]
            list(pool.map(lambda piece: self._search(piece, there), pieces))
        expected = sum(there.values())
        counted = self._client.get_gallery(self._gallery).templates_count
        if counted != expected:
            self._tally.problem(
                f"the gallery counts other templates than are found"
                f" counted={counted} found={expected}"
            )
        self._tally.did("subjects audited", len(subject_ids))

    def _is_there(self, subject_id: str) -> bool:
        """Look a subject up, and note if that contradicts the ledger."""
        fate = self._fates[subject_id]
        try:
            template = self._client.get_template(
                self._gallery, template_of(subject_id), subject_id=subject_id, after=self._token
            )
        except NotFoundError:
            if fate.must_be_there:
                self._tally.lose(subject_id)
            return False
        if fate.must_be_gone:
            self._tally.resurrect(subject_id)
        if float(np.dot(template.vector, vector_of(subject_id))) < SCORE_MIN:
            self._tally.problem(f"stored vector is another one subject={subject_id}")
        return True

    def _search(self, subject_ids: Sequence[str], there: Mapping[str, bool]) -> None:
        """Search for subjects: who is there finds itself, who is not is not found."""
        lists = self._client.identify(
            self._gallery, vectors_of(subject_ids), k=K, after=self._token
        )
        for subject_id, answer in zip(subject_ids, lists, strict=True):
            best = answer.candidates[0] if answer.candidates else None
            hit = best is not None and best.subject_id == subject_id and best.score > SCORE_MIN
            if self._fates[subject_id].must_be_there and not hit:
                self._tally.lose(subject_id)
            if there[subject_id] != hit:
                self._tally.problem(
                    f"look-up and search disagree subject={subject_id} found={hit}"
                )
            for candidate in answer.candidates:
                fate = self._fates.get(candidate.subject_id)
                if fate is None:
                    self._tally.problem(f"never sent subject={candidate.subject_id}")
                elif fate.must_be_gone:
                    self._tally.resurrect(candidate.subject_id)


def replica_problems(status: admin_service_pb2.ClusterStatusResponse) -> Iterator[str]:
    """Say which copies of shards are not the same as, or not as far as, their primary's."""
    for node in status.nodes:
        if node.problem or not node.registered:
            yield f"node does not serve node={node.id} problem={node.problem}"
    copies = {(node.id, one.shard_id): one for node in status.nodes for one in node.shards}
    for shard in status.shards:
        held = [(node_id, copies.get((node_id, shard.id))) for node_id in shard.node_ids]
        primary = held[0][1]
        for node_id, copy in held:
            where = f"shard={shard.id} node={node_id}"
            if copy is None or primary is None:
                yield f"copy is missing {where}"
            elif copy.state != shard_service_pb2.SHARD_STATE_SERVING:
                yield f"copy does not serve {where} problem={copy.problem}"
            elif copy.position != primary.position:
                yield f"copy lags {where} position={copy.position} primary={primary.position}"
            elif copy.digest != primary.digest:
                yield f"copies differ at the same position {where} position={copy.position}"

"""Settings of a node."""

import os
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from facegrid.coord.settings import EtcdSettings
from facegrid.settings import Address
from indexd.engine.batches import BatchLimits

DEFAULTS: Final = BatchLimits()


class IndexdSettings(EtcdSettings):
    """Flags, environment (FACEGRID_INDEXD_...) or TOML file."""

    model_config = SettingsConfigDict(env_prefix="FACEGRID_INDEXD_")

    node_id: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$",
        description="name of this node; keep it across restarts, since the map names it",
    )
    listen: Address = Field("127.0.0.1:7500", description="host:port to serve at")
    advertise: str = Field("", description="host:port that others reach it at; empty: as listen")
    store: str = Field(
        description="object store shared by all nodes: dir:PATH or s3://BUCKET/PREFIX?endpoint=URL"
    )
    state_dir: Path | None = Field(
        None,
        description="folder for the last known maps, to serve reads from a start without etcd",
    )
    takeover_after_s: float = Field(
        10.0,
        ge=0,
        description="seconds after which an unlisted node's shards are taken over; 0: never",
    )
    lease_ttl_s: int = Field(10, ge=4, le=600, description="seconds until a lost node is unlisted")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|gpu:\d{1,3}(,gpu:\d{1,3})*)$",
        description="where to search: auto (all GPUs there are), cpu, or GPUs as gpu:0,gpu:1",
    )
    search_threads: int = Field(
        0, ge=0, description="threads that search, of all searches together; 0: one for each core"
    )
    searches_at_once: int = Field(
        DEFAULTS.searches_max,
        ge=1,
        le=64,
        description="searches side by side, which share the threads",
    )
    batch_probes_max: int = Field(
        DEFAULTS.probes_max, ge=1, le=1024, description="probes searched together"
    )
    batch_wait_ms_max: float = Field(
        DEFAULTS.wait_s_max * 1000,
        ge=0,
        le=100,
        description="wait for company while another search runs",
    )
    zone: str = Field("", description="failure zone, for instance the rack")
    erased_rewrite_s: float = Field(
        3600.0,
        ge=1,
        description="seconds after which the bytes of erased rows have left the store",
    )
    canary_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of a core for repeating some live probes exactly; 0: none is repeated",
    )
    retrain_pause_s: float = Field(
        3600.0,
        ge=0,
        description="seconds between trainings that alarms of canaries cause; 0: they cause none",
    )
    grace_s: float = Field(20.0, ge=0, description="seconds that calls get to end on SIGTERM")
    metrics: Address | None = Field(
        None, description="host:port to serve metrics for Prometheus at; none: nowhere"
    )
    dev: bool = Field(default=False, description="serve gRPC reflection")
    failpoints: Path | None = Field(
        None, description="folder of rules where to fail on purpose; for tests, needs dev"
    )
    log_format: Literal["json", "console"] = Field("json", description="form of the log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level logged"
    )

    @model_validator(mode="after")
    def _only_to_try(self) -> Self:
        if self.failpoints is not None and not self.dev:
            raise ValueError("failpoints are for tests: they need dev")
        return self

    @property
    def batching(self) -> BatchLimits:
        """How searches go together."""
        return BatchLimits(
            probes_max=self.batch_probes_max,
            wait_s_max=self.batch_wait_ms_max / 1000,
            searches_max=self.searches_at_once,
        )

    @property
    def threads(self) -> int:
        """How many threads this node may keep busy. Nodes that share a machine share its cores
        only if each is told its part.
        """
        return self.search_threads or len(os.sched_getaffinity(0))

    @property
    def threads_of_search(self) -> int:
        """How many of these one search uses."""
        return max(1, self.threads // self.searches_at_once)

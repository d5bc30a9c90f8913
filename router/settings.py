"""What a router can be told at its start."""

from pathlib import Path
from typing import Final, Literal

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from facegrid.coord.settings import EtcdSettings
from facegrid.settings import Address
from router.dispatch.coalesce import CoalesceLimits

DEFAULTS: Final = CoalesceLimits()


class RouterSettings(EtcdSettings):
    """Settings of one router. Defaults suit a machine with a few cores."""

    model_config = SettingsConfigDict(env_prefix="FACEGRID_ROUTER_")

    listen: Address = Field(
        "127.0.0.1:7400", description="host:port to serve at; port 0: any free"
    )
    processes: int = Field(
        1, ge=1, le=64, description="processes at that port, among which connections are dealt out"
    )
    etcd_timeout_s: float = Field(10.0, gt=0, description="seconds to wait for etcd at the start")
    state_dir: Path | None = Field(
        None,
        description="folder for the last known map, with which a start without etcd serves reads",
    )
    grace_s: float = Field(10.0, ge=0, description="seconds that calls may take to end at a stop")
    coalesce_rows_max: int = Field(
        DEFAULTS.rows_max, ge=1, le=1024, description="probes in one batch"
    )
    coalesce_rows_full: int = Field(
        DEFAULTS.rows_full,
        ge=1,
        description="waiting probes that go out before the batch under way is back",
    )
    coalesce_rows_half: int = Field(
        DEFAULTS.rows_half,
        ge=1,
        description="waiting probes that do so if they are half of all, those under way included",
    )
    coalesce_batches_max: int = Field(
        DEFAULTS.batches_max, ge=1, le=8, description="full batches under way per gallery"
    )
    coalesce_wait_ms_min: float = Field(
        DEFAULTS.wait_s_min * 1000,
        gt=0,
        description="shortest wait for a batch under way that takes oddly long",
    )
    metrics: Address | None = Field(
        None, description="host:port to serve metrics for Prometheus at; none: nowhere"
    )
    drive: bool = Field(
        default=True, description="stand for driving operations; one router of all does"
    )
    dev: bool = Field(default=False, description="serve gRPC reflection")
    failpoints: Path | None = Field(
        None, description="folder of rules where to fail on purpose; for tests, needs dev"
    )
    log_format: Literal["json", "console"] = Field("console", description="form of the log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe log line written"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "RouterSettings":
        if self.coalesce_rows_full > self.coalesce_rows_max:
            raise ValueError("coalesce_rows_full must not be above coalesce_rows_max")
        if self.failpoints is not None and not self.dev:
            raise ValueError("failpoints are for tests: they need dev")
        return self

    @property
    def coalesce(self) -> CoalesceLimits:
        """How far coalescing goes."""
        return CoalesceLimits(
            rows_max=self.coalesce_rows_max,
            rows_full=self.coalesce_rows_full,
            rows_half=self.coalesce_rows_half,
            batches_max=self.coalesce_batches_max,
            wait_s_min=self.coalesce_wait_ms_min / 1000,
        )

"""Settings of a node."""

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from facegrid.coord.settings import EtcdSettings
from facegrid.settings import Address


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
    lease_ttl_s: int = Field(10, ge=4, le=600, description="seconds until a lost node is unlisted")
    search_threads: int = Field(0, ge=0, description="threads of a search; 0: one for each core")
    zone: str = Field("", description="failure zone, for instance the rack")
    erased_rewrite_s: float = Field(
        3600.0,
        ge=1,
        description="seconds after which the bytes of erased rows have left the store",
    )
    grace_s: float = Field(20.0, ge=0, description="seconds that calls get to end on SIGTERM")
    dev: bool = Field(default=False, description="serve gRPC reflection")
    log_format: Literal["json", "console"] = Field("json", description="form of the log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level logged"
    )

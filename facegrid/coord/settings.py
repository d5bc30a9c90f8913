"""How every process is told where its etcd is."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from facegrid.clock import Clock
from facegrid.coord.etcd import EtcdCoordinator
from facegrid.rpc.channel import TlsFiles
from facegrid.settings import Addresses, ProcessSettings


class EtcdSettings(ProcessSettings):
    """Settings that all processes with an etcd share."""

    etcd: Addresses = Field(description="host:port of every etcd member")
    etcd_prefix: str = Field("facegrid/", description="what all keys of this cluster begin with")
    etcd_ca: Path | None = Field(None, description="PEM file: who signs etcd's certificates")
    etcd_cert: Path | None = Field(None, description="PEM file: this process's certificate")
    etcd_key: Path | None = Field(None, description="PEM file: the key of that certificate")

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        files = (self.etcd_ca, self.etcd_cert, self.etcd_key)
        if any(files) and not all(files):
            raise ValueError("etcd_ca, etcd_cert and etcd_key go together")
        return self

    def coordinator(self, clock: Clock) -> EtcdCoordinator:
        """Return the client of this etcd: over TLS where its three files are given."""
        tls = None
        if self.etcd_ca and self.etcd_cert and self.etcd_key:
            tls = TlsFiles(self.etcd_ca, self.etcd_cert, self.etcd_key)
        return EtcdCoordinator(self.etcd, root=self.etcd_prefix, clock=clock, tls=tls)

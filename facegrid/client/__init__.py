"""The Python client: AsyncClient, and Client, a blocking face over it."""

from facegrid.client.aio import AsyncClient
from facegrid.client.blocking import Client
from facegrid.client.values import EnrolBatch, Erasure, Template, Verification

__all__ = ["AsyncClient", "Client", "EnrolBatch", "Erasure", "Template", "Verification"]

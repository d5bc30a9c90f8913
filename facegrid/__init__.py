"""facegrid: a distributed index of face templates that can be held to account.

    import facegrid

    client = facegrid.Client("127.0.0.1:7400")
    token = client.enrol("staff", template_ids=ids, subject_ids=subjects, vectors=x)
    lists = client.identify("staff", probes, k=10, after=token)

Every error raised derives from FacegridError; `facegrid.errors` draws the tree.
"""

from facegrid.client import AsyncClient, Client, EnrolBatch, Erasure, Template, Verification
from facegrid.errors import (
    ConflictError,
    CorruptError,
    DeadlineError,
    FacegridError,
    FencedError,
    InvalidError,
    NotFoundError,
    OverloadedError,
    PreconditionError,
    UnavailableError,
)
from facegrid.model import Candidate, CandidateList, Coverage, Gallery, HashRange, Token
from facegrid.rpc.channel import TlsFiles
from facegrid.tuning import Effort, Profile, Step, Tuning

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Candidate",
    "CandidateList",
    "Client",
    "ConflictError",
    "CorruptError",
    "Coverage",
    "DeadlineError",
    "Effort",
    "EnrolBatch",
    "Erasure",
    "FacegridError",
    "FencedError",
    "Gallery",
    "HashRange",
    "InvalidError",
    "NotFoundError",
    "OverloadedError",
    "PreconditionError",
    "Profile",
    "Step",
    "Template",
    "TlsFiles",
    "Token",
    "Tuning",
    "UnavailableError",
    "Verification",
    "__version__",
]

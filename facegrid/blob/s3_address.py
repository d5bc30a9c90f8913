"""Where an S3 store is: `s3://BUCKET[/PREFIX][?endpoint=URL&region=…]`.

Credentials never stand here, since addresses are logged and shown in process lists. They come from
the standard AWS variables of the environment, see docs/S3.md.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from facegrid.blob.names import is_object_name
from facegrid.errors import InvalidError

REGION_DEFAULT: Final = "us-east-1"
TIMEOUT_S_DEFAULT: Final = 30.0
TIMEOUT_S_MAX: Final = 600.0

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_REGION: Final = re.compile(r"[a-z0-9-]{1,64}")
_ENDPOINT: Final = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+(/[A-Za-z0-9._~/-]*)?")
_FLAGS: Final = {"0": False, "false": False, "1": True, "true": True}
_KNOWN: Final = ("endpoint", "region", "allow_http", "virtual_hosted", "timeout_s")


@dataclass(frozen=True, slots=True)
class S3Address:
    """A bucket, or the part of one below a prefix, and how to reach it.

    Attributes:
        bucket: its name.
        prefix: what the names of all objects begin with in the bucket; empty for none.
        endpoint: URL of the service; empty for AWS itself.
        region: the region that requests are signed for.
        allow_http: whether the endpoint may be reached without TLS.
        virtual_hosted: whether the bucket stands in the host's name, and not in the path.
        timeout_s: how long one request may take.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = REGION_DEFAULT
    allow_http: bool = False
    virtual_hosted: bool = False
    timeout_s: float = TIMEOUT_S_DEFAULT

    @property
    def place(self) -> str:
        """The address as messages show it, for instance s3://bucket/prefix."""
        path = f"{self.bucket}/{self.prefix}".rstrip("/")
        return f"s3://{path} at {self.endpoint}" if self.endpoint else f"s3://{path}"


def parse_s3_url(url: str) -> S3Address:
    """Return the address that a URL gives.

    Raises:
        InvalidError: it is malformed, or says something that no store needs (STORE_URL_MALFORMED).
            The message names the part, and never repeats what might be a secret.
    """
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise _refused("cannot be read as a URL", "url") from None
    if "@" in parts.netloc:
        raise _refused("must not hold credentials, they belong into AWS_ACCESS_KEY_ID and so on")
    if parts.scheme != "s3" or _BUCKET.fullmatch(parts.netloc) is None or parts.fragment:
        raise _refused("must look like s3://BUCKET/PREFIX?endpoint=URL")
    prefix = parts.path.strip("/")
    if prefix and not is_object_name(prefix):
        raise _refused("has a malformed prefix", "prefix")
    names = [name for name, _ in pairs]
    if unknown := sorted(set(names) - set(_KNOWN)):
        # Not its value: it might be a key that somebody hoped to pass here.
        raise _refused(f"has no such part: {unknown[0]}; known are {', '.join(_KNOWN)}")
    if len(set(names)) < len(names):
        raise _refused("says something twice")
    values = dict(pairs)
    address = S3Address(
        bucket=parts.netloc,
        prefix=prefix,
        endpoint=_matching(values.get("endpoint", "").rstrip("/"), _ENDPOINT, "endpoint"),
        region=_matching(values.get("region", REGION_DEFAULT), _REGION, "region"),
        allow_http=_flag(values, "allow_http"),
        virtual_hosted=_flag(values, "virtual_hosted"),
        timeout_s=_timeout_s(values),
    )
    if address.endpoint.startswith("http:") and not address.allow_http:
        raise _refused("has an endpoint without TLS: use https, or add allow_http=1", "endpoint")
    return address


def _matching(value: str, form: re.Pattern[str], name: str) -> str:
    if value and form.fullmatch(value) is None:
        raise _refused(f"has a malformed {name}", name)
    return value


def _flag(values: dict[str, str], name: str) -> bool:
    value = values.get(name, "0").lower()
    if value not in _FLAGS:
        raise _refused(f"must have 0 or 1 for {name}", name)
    return _FLAGS[value]


def _timeout_s(values: dict[str, str]) -> float:
    try:
        timeout_s = float(values.get("timeout_s", TIMEOUT_S_DEFAULT))
    except ValueError:
        timeout_s = 0.0
    if not 0 < timeout_s <= TIMEOUT_S_MAX:
        raise _refused(f"must have a timeout_s above 0 and up to {TIMEOUT_S_MAX:g}", "timeout_s")
    return timeout_s


def _refused(problem: str, part: str = "url") -> InvalidError:
    return InvalidError(
        f"address of the S3 store {problem}",
        reason="STORE_URL_MALFORMED",
        field="store",
        part=part,
    )

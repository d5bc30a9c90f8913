"""Single arguments of the client's methods: refused at once where they have another type or value.

Everything takes `object`: what callers really give, the signatures cannot know.
"""

import math
import operator
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Final, TypeGuard

from facegrid import ids, limits, wire
from facegrid.api.v1 import types_pb2
from facegrid.errors import InvalidError
from facegrid.model import Token
from facegrid.rpc.channel import TlsFiles
from facegrid.tuning import MATES_COUNT_LIMIT, MISS_RATE_MAX_LIMIT, Profile
from facegrid.tuning_messages import to_profile_message

COUNT_LAST: Final = 2**31 - 1
TRAIN_AT_LAST: Final = 2**62
SHOWN_CHARS_MAX: Final = 40


def kind(value: object) -> str:
    """Return the name of a value's type."""
    return type(value).__name__


def is_text(value: object) -> TypeGuard[str]:
    """Tell whether a value is a str."""
    return isinstance(value, str)


def listed(values: object) -> list[object] | None:
    """Return the values of a sequence; None when it is none, or one text."""
    if isinstance(values, str | bytes | bytearray) or not isinstance(values, Iterable):
        return None
    return list(values)


def checked_targets(target: object) -> tuple[str, ...]:
    """Return host:port of one router or several.

    Raises:
        InvalidError: there is none, or one is no printable str (TARGET_MALFORMED).
    """
    several = [target] if is_text(target) else listed(target)
    texts = tuple(one for one in several or () if is_text(one) and one.isprintable())
    if several is None or len(texts) != len(several):
        raise InvalidError(
            f"target must be a str such as 127.0.0.1:7400, or several type={kind(target)}",
            reason="TARGET_MALFORMED",
            field="target",
        )
    if not texts or not all(texts):
        raise InvalidError("no target given", reason="TARGET_MALFORMED", field="target")
    return texts


def checked_tls(tls: object) -> TlsFiles | None:
    """Return the PEM files.

    Raises:
        InvalidError: they are no TlsFiles of three paths (TLS_FILE).
    """
    if tls is None:
        return None
    if not isinstance(tls, TlsFiles):
        raise InvalidError(
            f"tls must be TlsFiles type={kind(tls)}", reason="TLS_FILE", field="tls"
        )
    for part in ("ca", "cert", "key"):
        path: object = getattr(tls, part)
        if not hasattr(path, "read_bytes"):
            raise InvalidError(
                f"tls files must be pathlib.Path part={part} type={kind(path)}",
                reason="TLS_FILE",
                field="tls",
            )
    return tls


def checked_timeout(value: object) -> float:
    """Return seconds.

    Raises:
        InvalidError: not above 0, or beyond limits.DEADLINE_S_MAX (OUT_OF_BOUNDS).
    """
    bounds = f"above 0 to {limits.DEADLINE_S_MAX}"
    seconds = _real(value, field="timeout_s", bounds=bounds)
    if not 0 < seconds <= limits.DEADLINE_S_MAX:
        raise _out_of_bounds("timeout_s", bounds, value)
    return seconds


def checked_name(name: object) -> ids.GalleryName:
    """Return a gallery's name.

    Raises:
        InvalidError: it is no str, or malformed (NAME_MALFORMED).
    """
    if not is_text(name):
        raise InvalidError(
            f"gallery name must be a str type={kind(name)}",
            reason="NAME_MALFORMED",
            field="gallery",
        )
    return ids.check_gallery_name(name)


def checked_extractor(value: object) -> str:
    """Return the name of what makes the templates.

    Raises:
        InvalidError: it is no str, or of another length than allowed (OUT_OF_BOUNDS).
    """
    if not is_text(value):
        raise InvalidError(
            f"extractor must be a str type={kind(value)}",
            reason="OUT_OF_BOUNDS",
            field="extractor",
        )
    if not (1 <= len(value) <= limits.EXTRACTOR_CHARS_MAX and value.isprintable()):
        raise InvalidError(
            f"extractor must have 1 to {limits.EXTRACTOR_CHARS_MAX} printable characters",
            reason="OUT_OF_BOUNDS",
            field="extractor",
        )
    return value


def checked_request_id(value: object) -> str:
    """Return a request id.

    Raises:
        InvalidError: it is no str, or malformed (REQUEST_ID_MALFORMED).
    """
    if not is_text(value):
        raise InvalidError(
            f"request_id must be a str type={kind(value)}",
            reason="REQUEST_ID_MALFORMED",
            field="request_id",
        )
    ids.check_request_id(value)
    return value


def checked_profile(value: object) -> types_pb2.Profile.ValueType:
    """Return a profile as it is sent; unset for None.

    Raises:
        InvalidError: there is no such profile (PROFILE_UNKNOWN).
    """
    if value is None:
        return to_profile_message(None)
    if not is_text(value) or value not in tuple(Profile):
        raise InvalidError(
            f"profile must be one of {', '.join(Profile)} value={value!r}",
            reason="PROFILE_UNKNOWN",
            field="profile",
        )
    return to_profile_message(Profile(value))


def checked_miss_rate_max(value: object) -> float | None:
    """Return the share of mates that may be missed; None where nothing is said.

    Raises:
        InvalidError: it is no number above 0, to 0.1 (OUT_OF_BOUNDS).
    """
    if value is None:
        return None
    bounds = f"above 0 to {MISS_RATE_MAX_LIMIT}"
    share = _real(value, field="miss_rate_max", bounds=bounds)
    if not 0 < share <= MISS_RATE_MAX_LIMIT:
        raise _out_of_bounds("miss_rate_max", bounds, value)
    return share


def checked_mates(value: object) -> int:
    """Return on how many mated pairs to measure; 0 for None.

    Raises:
        InvalidError: it is no whole number from 1 to 1,000,000 (OUT_OF_BOUNDS).
    """
    return 0 if value is None else _whole(value, field="mates", least=1, last=MATES_COUNT_LIMIT)


def checked_after(token: object) -> types_pb2.Token | None:
    """Return a token as it is sent.

    Raises:
        InvalidError: it is no Token, or holds what no write returned (TOKEN_MALFORMED).
    """
    if token is None:
        return None
    problem = f"after must be what a write returned, a Token type={kind(token)}"
    if not isinstance(token, Token):
        raise InvalidError(problem, reason="TOKEN_MALFORMED", field="after")
    try:
        return wire.to_wire_token(token)
    except (AttributeError, TypeError, ValueError):
        raise InvalidError(problem, reason="TOKEN_MALFORMED", field="after") from None


def checked_count(value: object, *, field: str) -> int:
    """Return a count that fits the wire; the service knows the tighter bound.

    Raises:
        InvalidError: it is no whole number, negative or absurd (OUT_OF_BOUNDS).
    """
    return _whole(value, field=field, least=0, last=COUNT_LAST)


def checked_train_at(value: object) -> int | None:
    """Return a number of templates; None when the service is to choose.

    Raises:
        InvalidError: as `checked_count` does.
    """
    return None if value is None else _whole(value, field="train_at", least=0, last=TRAIN_AT_LAST)


def checked_k(value: object) -> int:
    """Return how many candidates are wanted.

    Raises:
        InvalidError: it is no whole number from 1 to limits.K_MAX (OUT_OF_BOUNDS).
    """
    return _whole(value, field="k", least=1, last=limits.K_MAX)


def checked_threshold(value: object) -> float | None:
    """Return the least score wanted.

    Raises:
        InvalidError: it is no number from -1 to 1 (OUT_OF_BOUNDS).
    """
    if value is None:
        return None
    threshold = _real(value, field="threshold", bounds="-1 to 1")
    if not -1 <= threshold <= 1:
        raise _out_of_bounds("threshold", "-1 to 1", value)
    return threshold


def checked_coverage_min(value: object) -> float | None:
    """Return the least share that must be searched.

    Raises:
        InvalidError: it is no number above 0, to 1 (OUT_OF_BOUNDS).
    """
    if value is None:
        return None
    share = _real(value, field="coverage_min", bounds="above 0 to 1")
    if not 0 < share <= 1:
        raise _out_of_bounds("coverage_min", "above 0 to 1", value)
    return share


def checked_unconfirmed_max(value: object) -> float | None:
    """Return the largest share that may be answered unconfirmed.

    Raises:
        InvalidError: it is no number from 0 to 1 (OUT_OF_BOUNDS).
    """
    if value is None:
        return None
    share = _real(value, field="unconfirmed_max", bounds="0 to 1")
    if not 0 <= share <= 1:
        raise _out_of_bounds("unconfirmed_max", "0 to 1", value)
    return share


def checked_confirmed_only(value: object) -> bool:
    """Return whether an answer must be confirmed.

    Raises:
        InvalidError: it is no bool (OUT_OF_BOUNDS).
    """
    if not isinstance(value, bool):
        raise InvalidError(
            f"confirmed_only must be a bool type={kind(value)}",
            reason="OUT_OF_BOUNDS",
            field="confirmed_only",
        )
    return value


def check_callable(value: object, *, field: str) -> None:
    """Raise InvalidError (NOT_CALLABLE) for what can neither be called nor is None."""
    if value is not None and not callable(value):
        raise InvalidError(
            f"{field} must be callable type={kind(value)}", reason="NOT_CALLABLE", field=field
        )


def _whole(value: object, *, field: str, least: int, last: int) -> int:
    """Return a whole number, NumPy's too; True and False are none."""
    bounds = f"a whole number, {least} to {last}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise _out_of_bounds(field, bounds, value)
    number = operator.index(value)
    if not least <= number <= last:
        raise _out_of_bounds(field, bounds, value)
    return number


def _real(value: object, *, field: str, bounds: str) -> float:
    """Return a number as float, infinite where it is larger than those."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _out_of_bounds(field, f"a number, {bounds}", value)
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _out_of_bounds(field: str, bounds: str, value: object) -> InvalidError:
    return InvalidError(
        f"{field} must be {bounds} {field}={_shown(value)}", reason="OUT_OF_BOUNDS", field=field
    )


def _shown(value: object) -> str:
    """Return a number as text; of anything else the type, which is the mistake."""
    if not isinstance(value, Real):
        return kind(value)
    try:
        return str(value)[:SHOWN_CHARS_MAX]
    except ValueError:  # Python refuses to write whole numbers of thousands of digits
        return "enormous"

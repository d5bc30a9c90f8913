"""What of a gallery an earlier version must not overlook."""

from dataclasses import replace

import pytest

from facegrid.api.storage.v1 import storage_pb2
from facegrid.errors import CorruptError
from facegrid.format import checks
from facegrid.format.checks import serialized
from facegrid.format.records import decode_gallery, encode_gallery
from tests.fakes.mirror_rig import GALLERY

COARSE = replace(GALLERY, component_bits=4)


def message_of(data: bytes) -> storage_pb2.GalleryRecord:
    return storage_pb2.GalleryRecord.FromString(data)


def test_a_gallery_of_eight_bits_has_the_bytes_that_it_always_had() -> None:
    message = message_of(encode_gallery(GALLERY))

    assert (message.component_bits, list(message.required_features)) == (0, [])
    assert decode_gallery(encode_gallery(GALLERY)).component_bits == 8


def test_a_version_that_does_not_know_four_bits_refuses_the_gallery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encode_gallery(COARSE)
    assert decode_gallery(data) == COARSE
    assert list(message_of(data).required_features) == ["component-bits"]

    monkeypatch.setattr(checks, "FEATURES_KNOWN", frozenset())
    with pytest.raises(CorruptError) as refused:
        decode_gallery(data)

    assert refused.value.reason == "FEATURE_UNKNOWN"


@pytest.mark.parametrize("bits", [1, 5, 16])
def test_a_record_of_other_bits_is_damaged(bits: int) -> None:
    message = message_of(encode_gallery(COARSE))
    message.component_bits = bits

    with pytest.raises(CorruptError, match="component_bits"):
        decode_gallery(serialized(message))

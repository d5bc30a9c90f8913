"""docs/FORMATS.md says what the code does."""

import re
from pathlib import Path

from facegrid import limits
from facegrid.format import frame, log, manifest

DOCS = (Path(__file__).parents[2] / "docs" / "FORMATS.md").read_text()


def test_the_document_lists_every_kind_of_frame() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+): .* \|", DOCS, re.MULTILINE)
    assert {name: int(number) for number, name in rows} == {
        kind.name: kind.value for kind in frame.Kind
    }


def test_the_document_states_the_bounds() -> None:
    assert f"{limits.FRAME_BYTES_MAX:,} bytes" in DOCS
    assert f"{log.LOG_RAW_BYTES_MAX // limits.MIB} MiB: twice a full group" in DOCS
    assert f"MANIFEST: message `Manifest` | {manifest.MANIFEST_RAW_BYTES_MAX >> 20} MiB" in DOCS


def test_the_worked_example_is_the_golden_file() -> None:
    data = (Path(__file__).parents[1] / "golden" / "v1" / "segment-plain.bin").read_bytes()
    example = DOCS.split("`tests/golden/v1/segment-plain.bin`):")[1].split("```")[1]
    written = b""
    for line in example.strip().splitlines():
        offset, rest = line.split(maxsplit=1)
        assert len(written) == int(offset, 16)
        for text, digits in re.findall(r'"([^"]*)"|([0-9a-f]+)', rest.split("   ")[0]):
            written += text.encode() if text else bytes.fromhex(digits)
    assert written == data

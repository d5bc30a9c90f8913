"""fgctl store probe: what it prints, and how it ends."""

import json
from pathlib import Path

import pytest

from fgctl.__main__ import run
from tests.fakes.s3_servers import S3Server

CONDITIONS = ["put-if-absent", "read-your-write", "list-after-write", "delete"]


def test_a_sound_folder_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["store", "probe", f"dir:{tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert [condition in shown for condition in CONDITIONS] == [True] * 4
    assert shown.count("as it must be") == 4


def test_a_sound_s3_store_passes(s3: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    url = s3.url()
    assert run(["store", "probe", url, "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert json.loads(shown.out) == {
        "store": url,
        "safe": True,
        "conditions": [
            {"condition": condition, "holds": True, "problem": ""} for condition in CONDITIONS
        ],
    }


def test_a_store_that_ignores_conditions_ends_with_one_and_a_sentence(
    careless_s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    url = careless_s3.url()
    assert run(["store", "probe", url, "--json"]) == 1
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert (report["safe"], report["conditions"][0]["holds"]) == (False, False)
    assert shown.err.startswith("error: store is not safe for facegrid: put-if-absent: ")
    assert shown.err.endswith(f"store={url} reason=STORE_UNSAFE\n")
    assert "racers took one name" in shown.err


@pytest.mark.parametrize(
    ("url", "reason"),
    [("s3://bucket?endpoint=http://127.0.0.1:1", "STORE_URL_MALFORMED"), ("nfs:/x", "dir:PATH")],
)
def test_a_url_that_names_no_store_is_refused(
    url: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["store", "probe", url]) == 1
    shown = capsys.readouterr().err
    assert reason in shown
    assert "Traceback" not in shown

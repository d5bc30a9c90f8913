"""Which device a node searches on, and what it says where that cannot be."""

from importlib import metadata
from typing import Any

import faiss
import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from facegrid.errors import InvalidError, UnavailableError
from facegrid.telemetry.log import get_logger
from facegrid.testing.manual_clock import ManualClock
from indexd.ann.gpu import open as opening
from indexd.settings import IndexdSettings


def settings(device: str) -> IndexdSettings:
    return IndexdSettings(node_id="n1", store="dir:/nowhere", etcd="127.0.0.1:1", device=device)


def opened(device: str) -> tuple[Any, list[Any]]:
    with capture_logs() as logs:
        engine = opening.open_devices(device, get_logger("tests"), ManualClock())
    return engine, logs


@pytest.mark.parametrize("device", ["auto", "cpu", "gpu:0", "gpu:0,gpu:12"])
def test_devices_are_named(device: str) -> None:
    assert settings(device).device == device


@pytest.mark.parametrize("device", ["", "gpu", "gpu:", "gpu:x", "cuda:0", "gpu:0,", "cpu,gpu:0"])
def test_what_names_no_device_is_refused(device: str) -> None:
    with pytest.raises(ValidationError):
        settings(device)


def test_without_a_gpu_auto_takes_the_processor_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opening, "problem", lambda: "faiss sees no GPU")

    engine, logs = opened("auto")

    assert engine is None
    assert [(one["event"], one["why"]) for one in logs] == [
        ("searching on the processor", "faiss sees no GPU")
    ]


def test_the_processor_is_taken_without_a_word() -> None:
    assert opened("cpu") == (None, [])


def test_a_gpu_that_is_asked_for_and_not_there_ends_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opening, "problem", lambda: "PyTorch sees no GPU")

    with pytest.raises(UnavailableError) as caught:
        opened("gpu:1")

    assert caught.value.reason == "NO_DEVICE"
    assert caught.value.message == "there is no device gpu:1: PyTorch sees no GPU"


def test_packages_that_overwrite_one_another_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def there(name: str) -> str:
        if name == "faiss-gpu":
            raise metadata.PackageNotFoundError
        return name

    monkeypatch.setattr(opening.metadata, "distribution", there)

    with pytest.raises(InvalidError) as caught:
        opened("cpu")

    assert caught.value.reason == "FAISS_TWICE"
    assert "faiss-cpu, faiss-gpu-cuvs" in caught.value.message


def test_this_build_of_faiss_is_judged_by_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(faiss, "StandardGpuResources"):
        assert "processors only" in (opening.problem() or "")
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    monkeypatch.setattr(opening.importlib, "import_module", _no_torch)
    assert "PyTorch is not installed" in (opening.problem() or "")
    monkeypatch.setattr(opening.importlib, "import_module", lambda _name: object())
    assert opening.problem() == "faiss sees no GPU"


def _no_torch(name: str) -> Any:
    raise ImportError(name)

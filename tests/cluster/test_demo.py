"""`make demo`, on few templates: it says ok, and leaves nothing behind."""

import io
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from facegrid.testing.synthetic import SyntheticGallery

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.cluster


def array_file(x: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def run_demo(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.demo", *arguments],
        cwd=ROOT,
        env={"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def left_behind(folder: Path) -> list[str]:
    """Return what still runs in the folder or lies there."""
    running = [
        name
        for process in psutil.process_iter(["cmdline"])
        for name in process.info["cmdline"] or []
        if str(folder) in name
    ]
    return running + [path.name for path in folder.iterdir()]


def test_demo_holds_every_step_and_stops_what_it_started(tmp_path: Path) -> None:
    done = run_demo("--templates", "3000", folder=tmp_path)

    pattern = (
        r"demo: ok templates=3000 rank1=1\.0000 extra_fnir=0\.0000"
        r" enrol_per_s=\d+ probes_per_s=\d+"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(pattern, done.stdout.splitlines()[-1])
    assert left_behind(tmp_path) == []


def test_demo_takes_own_vectors_and_says_what_they_cannot_show(tmp_path: Path) -> None:
    block = SyntheticGallery(64, templates_count=1200, seed=2).block(0)
    np.save(tmp_path / "x.npy", block.vectors * 20)
    (tmp_path / "s.txt").write_text("\n".join(f"only-{row}" for row in range(1200)))
    (tmp_path / "scratch").mkdir()

    files = ("--vectors", str(tmp_path / "x.npy"), "--subjects", str(tmp_path / "s.txt"))
    done = run_demo(*files, folder=tmp_path / "scratch")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "no subject has two templates" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(
        "demo: ok templates=1080 rank1=unmeasured extra_fnir=unmeasured "
    )
    assert left_behind(tmp_path / "scratch") == []


@pytest.mark.parametrize(
    ("vectors", "names", "reason"),
    [
        (
            array_file(np.zeros((3, 64))),
            b"a\nb\nc\n",
            "vector is zero or not finite path={x} row=0",
        ),
        (
            b"",
            b"a\n",
            "cannot be read as .npy path={x} problem=it is empty",
        ),
        (
            array_file(np.ones((5, 64))),
            b"a\nb\nc\nd\ne\n",
            (
                "no probes can be taken out: there must be ten subjects, or one with two templates"
                " path={s} subjects=5"
            ),
        ),
        (
            array_file(np.ones((2, 64))),
            b"a\ncaf\xe9\n",
            "subject_id is malformed: not UTF-8 path={s} line=2 row=1",
        ),
    ],
)
def test_demo_fails_with_a_reason_before_anything_is_started(
    tmp_path: Path, vectors: bytes, names: bytes, reason: str
) -> None:
    (tmp_path / "my x.npy").write_bytes(vectors)
    (tmp_path / "my s.txt").write_bytes(names)
    (tmp_path / "scratch").mkdir()
    x, s = tmp_path / "my x.npy", tmp_path / "my s.txt"

    done = run_demo("--vectors", str(x), "--subjects", str(s), folder=tmp_path / "scratch")

    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1] == (
        f"demo: failed step=make_data reason={reason.format(x=x, s=s)}"
    )
    assert left_behind(tmp_path / "scratch") == []


def test_make_demo_passes_any_path_on(tmp_path: Path) -> None:
    """A `python` that prints its arguments stands where the demo would be."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    (tmp_path / ".ready").touch()
    places = (f"VENV={tmp_path}", f"BIN={tmp_path}")

    done = subprocess.run(
        ["make", "-s", "demo", *places, "VECTORS=/no where/it's.npy", "SUBJECTS=s;.txt"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        *("-m", "bench.demo", "--vectors", "/no where/it's.npy", "--subjects", "s;.txt")
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_interrupted_amid_its_work_stops_what_it_started(
    tmp_path: Path, number: signal.Signals
) -> None:
    # Whoever runs the tests in the background may have had them ignore it, and what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, "-m", "bench.demo", "--templates", "20000"],
        cwd=ROOT,
        env={"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        reached = any(line == "4/10 enrol\n" for line in demo.stdout)
        demo.send_signal(number)
        after = demo.stdout.read().splitlines()

    assert reached
    assert demo.returncode == 1
    assert re.fullmatch(r"demo: failed step=\w+ reason=interrupted", after[-1])
    assert left_behind(tmp_path) == []

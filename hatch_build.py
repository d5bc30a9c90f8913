"""Builds the compiled part (`indexd/ann/native`) when the package is built or installed.

Any C compiler does: `cc`, or what CC names. Without one the package is installed all the same and
NumPy does the work, with the same answers, more slowly.
"""

import hashlib
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "indexd/ann/native/rescore.c"
BUILT = "indexd/ann/native/rescore.so"
# Products and sums are rounded one by one, as NumPy rounds them.
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-ffp-contract=off")


class CompiledPart(BuildHookInterface[Any]):
    """See the module."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say what the wheel is for."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        problem = compiled(root)
        if problem:
            (root / BUILT).unlink(missing_ok=True)
            self.app.display_warning(f"nothing compiled, NumPy will do it: {problem}")
            return
        build_data["artifacts"].append(f"/{BUILT}")
        if version == "standard":
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"


def compiled(root: Path) -> str:
    """Compile; return what went wrong, or nothing."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    source = root / SOURCE
    made_from = hashlib.sha256(source.read_bytes()).hexdigest()
    # Under another name first: a process may have the old one loaded.
    new = root / f"{BUILT}.new"
    flags = [*FLAGS, f'-DSOURCE="{made_from}"']
    problem = ""
    # Not every compiler and C library can choose between several kinds of processors.
    for more in ([], ["-DONE_PROCESSOR"]):
        command = [*compiler, *flags, *more, "-o", str(new), str(source), "-lm"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=300, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if not done.returncode:
            new.replace(root / BUILT)
            return ""
        problem = done.stderr.strip()
    return problem

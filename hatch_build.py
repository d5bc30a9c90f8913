"""Builds the compiled part (`indexd/ann/native`) when the package is built or installed.

Any C compiler does: `cc`, or what CC names. Without one the package is installed all the same and
NumPy does the work, with the same answers, more slowly.
"""

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
        root = Path(self.root)
        (root / BUILT).unlink(missing_ok=True)
        problem = compiled(root)
        if problem:
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
    # Under another name first: a process may have the old one loaded.
    new = root / f"{BUILT}.new"
    command = [*compiler, *FLAGS, "-o", str(new), str(root / SOURCE), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        return done.stderr.strip()
    new.replace(root / BUILT)
    return ""

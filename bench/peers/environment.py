"""Makes the peers' environment: `python -m bench.peers.environment .venv-peers`.

Packages are installed one by one, so that one that cannot be installed takes no other with it;
why it could not is kept in the environment's `failed.json`, and becomes part of the results.
"""

import json
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
FAILED = "failed.json"
BASE = ("numpy", "psutil", "typing_extensions")
"""What the worker itself needs."""
REASON_CHARS = 600


def make(folder: Path) -> dict[str, str]:
    """Make the environment; return what could not be installed, and why."""
    venv.create(folder, with_pip=True, clear=True)
    install(folder, list(BASE), check=True)
    wanted = (HERE / "requirements.txt").read_text(encoding="utf-8").split()
    failed = {name: why for name in wanted if (why := install(folder, [name]))}
    (folder / FAILED).write_text(json.dumps(failed, indent=2) + "\n", encoding="utf-8")
    return failed


def install(folder: Path, names: list[str], *, check: bool = False) -> str:
    """Install packages at the versions pinned; return what pip said if it could not."""
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    flags = ["--disable-pip-version-check", "--constraint", str(HERE / "constraints.txt")]
    done = subprocess.run([*pip, *flags, *names], capture_output=True, text=True, check=check)
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    return " | ".join(errors)[-REASON_CHARS:] or f"pip ended with code {done.returncode}"


def failures(folder: Path) -> dict[str, str]:
    """Return what could not be installed in an environment made before."""
    found: dict[str, str] = json.loads((folder / FAILED).read_text(encoding="utf-8"))
    return found


def main() -> int:
    """Make it, and say what is missing."""
    for name, why in make(Path(sys.argv[1])).items():
        print(f"not installed: {name}: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

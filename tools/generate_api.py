"""Generates the Python stubs in facegrid/api from proto/, or checks that they are up to date."""

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

PROTO = Path("proto")
PACKAGE = "facegrid/api"
INIT = '"""Generated from proto/ by `make proto`; do not edit."""\n'


def generate(out: Path) -> None:
    """Write the stubs of every proto under `out`/facegrid/api."""
    files = sorted(str(path) for path in PROTO.rglob("*.proto"))
    plugins = ["python_out", "mypy_out"]
    with_service = [name for name in files if "\nservice " in Path(name).read_text()]
    call(["protoc", f"-I{PROTO}", *(f"--{plugin}={out}" for plugin in plugins), *files])
    grpc_plugins = ["grpc_python_out", "mypy_grpc_out"]
    call(
        ["protoc", f"-I{PROTO}", *(f"--{plugin}={out}" for plugin in grpc_plugins), *with_service]
    )
    root = out / PACKAGE
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        if folder.name != "__pycache__":
            (folder / "__init__.py").write_text(INIT)


def call(arguments: list[str]) -> None:
    """Run protoc; its own messages say what is wrong."""
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed, see above")


def differing(left: Path, right: Path) -> list[str]:
    """Return the stubs that differ between two trees, or stand in one alone."""
    names = {
        str(path.relative_to(root))
        for root in (left, right)
        for path in root.rglob("*.py*")
        if path.suffix in {".py", ".pyi"}
    }
    return sorted(
        name
        for name in names
        if not (left / name).exists()
        or not (right / name).exists()
        or not filecmp.cmp(left / name, right / name, shallow=False)
    )


def main() -> None:
    """Generate in place, or compare with what is committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help="where the committed stubs are")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    if not arguments.check:
        generate(Path())
        return
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        stale = differing(Path(scratch) / PACKAGE, arguments.package)
    if stale:
        sys.exit(f"stubs are out of date, run `make proto`: {', '.join(stale)}")


if __name__ == "__main__":
    main()

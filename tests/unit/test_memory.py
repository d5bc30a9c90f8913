"""How much memory a node says there is."""

from pathlib import Path

import pytest

from indexd.service.memory import Memory, limited, memory

MACHINE = Memory(1000, 400)


def laid_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {}, MACHINE),
        ("0::/a\n", {"a/memory.max": "max\n", "a/memory.current": "9\n"}, MACHINE),
        ("0::/a\n", {"a/memory.max": "600\n", "a/memory.current": "500\n"}, Memory(600, 100)),
        ("0::/a\n", {"a/memory.max": "600\n", "a/memory.current": "100\n"}, Memory(600, 400)),
        (
            "0::/a/b\n",
            {
                "a/memory.max": "700\n",
                "a/memory.current": "650\n",
                "a/b/memory.max": "800\n",
                "a/b/memory.current": "600\n",
                "a/memory.stat": "anon 5\ninactive_file 30\n",
            },
            Memory(700, 80),
        ),
        (
            "0::/outside/of/the/container\n",
            {"memory.max": "300\n", "memory.current": "250\n"},
            Memory(300, 50),
        ),
        (
            "9:cpu:/x\n4:memory:/a\n",
            {
                "memory/a/memory.limit_in_bytes": "500\n",
                "memory/a/memory.usage_in_bytes": "450\n",
                "memory/a/memory.stat": "total_inactive_file 20\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/memory.usage_in_bytes": "900\n",
            },
            Memory(500, 70),
        ),
    ],
    ids=["no limit", "max", "tight", "machine tighter", "group above", "container", "version 1"],
)
def test_a_limit_counts_where_it_is_tighter_than_the_machine(
    tmp_path: Path, own: str, files: dict[str, str], expected: Memory
) -> None:
    assert limited(MACHINE, own, laid_out(tmp_path, files)) == expected


def test_of_this_machine_something_is_left() -> None:
    found = memory()

    assert 0 < found.available_bytes <= found.total_bytes

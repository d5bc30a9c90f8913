"""What the linters do not see of the house style. docs/STYLE.md says why."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("facegrid", "indexd", "router", "tools", "bench", "tests")
GENERATED = ROOT / "facegrid" / "api"
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500

Function = ast.FunctionDef | ast.AsyncFunctionDef

# Put together here, so that this file does not contain what it forbids.
LEFTOVERS = ("FIX" + "ME", "XX" + "X", "TO" + "DO")
OTHER_SPELLING = r"(?i)(?<![a-z])en" + "roll(?!ed|ing)"
FORBIDDEN = {
    rf"\b({'|'.join(LEFTOVERS)})\b": "a leftover: finish it, or write it down elsewhere",
    OTHER_SPELLING: "the house says enrol, enrolled, enrolling, enrolment",
    r"^\s*#\s*(?:def|class|import|from|return|if|for|while)\b.*[:(]\s*$": "code in a comment",
    r"^\s*except\s*(?:\(?\s*(?:Base)?Exception\b.*)?:": "name the errors that you can handle",
    r"#\s*noqa(?!: [A-Z]+\d+(?:, ?[A-Z]+\d+)* - \S)": "an exemption needs a code and a reason",
    r"#\s*type:\s*ignore(?!\[[a-z-]+(?:, ?[a-z-]+)*\]  # \S)": "likewise",
}
BROAD_HANDLERS = {
    "facegrid/rpc/interceptor.py",
    "facegrid/rpc/streams.py",
    "router/dispatch/supervisor.py",
}
"""Who may catch everything: the rpc boundary, of calls and streams, and the supervisor."""


def sources() -> list[Path]:
    """Return every module that people wrote."""
    return [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.is_relative_to(GENERATED) and path != Path(__file__)
    ]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_module_is_tidy(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert [*wrong_shapes(ast.parse(text), text), *wrong_words(text, name_of(path))] == []


def wrong_shapes(tree: ast.Module, text: str) -> Iterator[str]:
    """Say what does not fit on a screen, explains nothing or imports late."""
    lines = text.count("\n")
    if lines > MODULE_LINES_MAX:
        yield f"module of {lines} lines, at most {MODULE_LINES_MAX}"
    if tree.body and not ast.get_docstring(tree):
        yield "module without a docstring"
    for function in (node for node in ast.walk(tree) if isinstance(node, Function)):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > FUNCTION_LINES_MAX:
            yield f"line {function.lineno}: {function.name} has {length} lines"
        if any(isinstance(inner, ast.Import | ast.ImportFrom) for inner in ast.walk(function)):
            yield f"line {function.lineno}: {function.name} imports inside"


def wrong_words(text: str, name: str) -> Iterator[str]:
    """Say which lines hold what must not be there."""
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, why in FORBIDDEN.items():
            broad = pattern.startswith(r"^\s*except")
            if re.search(pattern, line) and not (broad and name in BROAD_HANDLERS):
                yield f"line {number}: {why}"


@pytest.mark.parametrize(
    "line",
    [
        "# " + LEFTOVERS[0] + ": later",
        "def en" + "roll_all() -> None:",
        "    # if rows_count > 3:",
        "    except:",
        "    except Exception as error:",
        "    except (Exception, OSError):",
        "import x  # noqa",
        "import x  # noqa: F401",
        "x = y  # type: ignore",
        "x = y  # type: ignore[misc]",
    ],
)
def test_what_is_forbidden_is_found(line: str) -> None:
    assert len([*wrong_words(line, "some.py")]) == 1


@pytest.mark.parametrize(
    "line",
    [
        "    except (FacegridError, OSError) as error:",
        "    # if nothing is said, the default holds",
        "import x  # noqa: F401 - re-exported",
        "x = y  # type: ignore[misc]  # the stub is wrong",
        "the subject enrolled yesterday, another is enrolling",
    ],
)
def test_what_is_allowed_is_let_through(line: str) -> None:
    assert [*wrong_words(line, "some.py")] == []


def test_no_file_of_prose_or_protos_uses_the_other_spelling() -> None:
    texts = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "proto").rglob("*.proto"),
    ]

    wrong = [name_of(path) for path in texts if re.search(OTHER_SPELLING, path.read_text())]

    assert wrong == []

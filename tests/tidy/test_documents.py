"""What the documents say is there, is there."""

import re
from pathlib import Path
from typing import Any

import click
import pytest

import facegrid
from facegrid.settings import ProcessSettings
from fgctl.cli import cli
from indexd.settings import IndexdSettings
from router.settings import RouterSettings

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
MAKE_TARGET = re.compile(r"make ([a-z][a-z-]*)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    links = LINK.findall(path.read_text(encoding="utf-8"))

    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_readme_names_every_document() -> None:
    linked = {(ROOT / link).resolve() for link in LINK.findall(README)}

    unnamed = [path for path in DOCUMENTS if not {path, path.parent} & linked]
    assert unnamed == [ROOT / "README.md"]


@pytest.mark.parametrize(
    ("settings", "heading"),
    [(IndexdSettings, "### Node"), (RouterSettings, "### Router")],
)
def test_every_setting_is_documented_and_no_other(
    settings: type[ProcessSettings], heading: str
) -> None:
    text = (ROOT / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
    section = text.partition(heading)[2].partition("\n#")[0]

    documented = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section, re.MULTILINE))

    fields: dict[str, Any] = settings.model_fields
    assert sorted(documented) == sorted(fields)
    for name, field in fields.items():
        stated = documented[name]
        if field.is_required():
            assert stated == "required", name
        elif stated.startswith("`"):
            assert stated == f"`{shown(field.default)}`", name
        else:
            assert not field.default, f"{name}: the default is {field.default}"


def shown(default: object) -> str:
    match default:
        case bool():
            return str(default).lower()
        case tuple():
            return ",".join(default)
        case float():
            return f"{default:g}"
        case _:
            return str(default)


def test_every_fgctl_command_in_the_documents_exists() -> None:
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    words = [found.split() for text in texts for found in re.findall(r"fgctl((?: [a-z]+)+)", text)]
    assert words

    assert [" ".join(line) for line in words if not leads_to_a_command(line)] == []


def leads_to_a_command(words: list[str]) -> bool:
    """Tell whether words, in which arguments may follow the command's name, name a command."""
    group: click.Command = cli
    for word in words:
        if not isinstance(group, click.Group):
            return True
        if word not in group.commands:
            return False
        group = group.commands[word]
    return True


def test_every_option_of_fgctl_in_the_readme_exists() -> None:
    line = re.compile(r"^\.venv/bin/fgctl ((?:[a-z]+ )+)(.*)$", re.MULTILINE)
    lines = line.findall(README)
    assert lines

    for words, options in lines:
        command: click.Command = cli
        for word in words.split():
            if isinstance(command, click.Group):
                command = command.commands[word]
        known = {flag for parameter in command.params for flag in parameter.opts}
        assert {*re.findall(r"--[a-z-]+", options)} <= known


def test_make_targets_in_the_documents_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {*re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)}

    named = {
        target
        for path in DOCUMENTS
        for code in re.findall(r"`([^`]+)`", path.read_text(encoding="utf-8"))
        for target in MAKE_TARGET.findall(code)
    }

    assert named - targets == set()
    assert {"demo", "test", "setup"} <= named


def test_ci_runs_nothing_that_the_readme_does_not_name() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()

    commands = [line.removeprefix("exec ") for line in lines if "make" in line]

    assert commands == ["make test", "make chaos SEED=1 MINUTES=5"]
    assert f"\n{commands[0]}\n" in README
    assert f"`{commands[1]}`" in " ".join(README.split())


def test_every_row_of_the_fault_matrix_has_its_tests_or_a_reason() -> None:
    """A row names tests that exist and bear its number, or says why it is not played."""
    text = (ROOT / "docs" / "TESTING.md").read_text(encoding="utf-8")
    table = text.partition("## The fault matrix")[2].partition("\n## ")[0]
    tests = {
        name
        for path in (ROOT / "tests" / "chaos").glob("test_rows_*.py")
        for name in re.findall(r"^def (test_row_\w+)", path.read_text(), re.MULTILINE)
    }
    rows: dict[int, str] = {}
    line = re.compile(r"^\| (\d+)(?: to (\d+))? \|.*\| (.+) \|$", re.MULTILINE)
    for first, last, shown in line.findall(table):
        rows |= dict.fromkeys(range(int(first), int(last or first) + 1), shown)
    named = {name for shown in rows.values() for name in re.findall(r"test_row_\w+", shown)}

    assert sorted(rows) == list(range(1, 36))
    assert named == tests
    unplayed = [row for row, shown in rows.items() if "test_row_" not in shown]
    assert [row for row in unplayed if row <= 24 or row in {32, 34}] == []
    for row, shown in rows.items():
        found = re.findall(r"test_row_(\d+)", shown)
        assert {int(number) for number in found} <= {row}
        assert found or "not played: " in shown or "/test_failpoints_reshard.py`" in shown


def test_the_version_is_the_same_everywhere() -> None:
    stated = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert stated is not None
    assert stated[1] == facegrid.__version__
    assert f"## {stated[1]}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_programs_in_the_readme_are_python() -> None:
    programs = re.findall(r"```python\n(.+?)```", README, re.DOTALL)

    assert len(programs) == 1
    for program in programs:
        compile(program, "README.md", "exec")


NAMED = re.compile(r"`((?:[A-Za-z_.]+\.)?(?:test_)?[A-Za-z_]\w*)`")
"""Code in backticks that is one name, with what it belongs to or without."""


@pytest.mark.parametrize("document", ["CONSISTENCY.md", "TESTING.md"])
def test_every_check_that_a_document_names_exists(document: str) -> None:
    """Tests by their names; in CONSISTENCY also methods and functions, by Class.name."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    folders = ("facegrid", "indexd", "router", "tools", "bench", "tests")
    sources = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    )
    defined = set(re.findall(r"^ *(?:async )?def (\w+)", sources, re.MULTILINE))
    names = {one.rpartition(".")[2] for one in NAMED.findall(text) if "test_" in one}
    if document == "CONSISTENCY.md":
        dotted = [one for one in NAMED.findall(text) if "." in one]
        names |= {one.rpartition(".")[2] for one in dotted if "." in one and "/" not in one}
        names -= {"md", "py"}

    modules = {path.stem for folder in folders for path in (ROOT / folder).rglob("*.py")}
    assert sorted(names - defined - modules) == []

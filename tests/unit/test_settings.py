"""What a process reads at its start, and what stops it."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from facegrid.settings import Addresses, ProcessSettings, effective, load


class ExampleSettings(ProcessSettings):
    """Settings of no process in particular."""

    model_config = SettingsConfigDict(env_prefix="FACEGRID_EXAMPLE_")

    node_id: str = Field(description="name of this node")
    etcd: Addresses = Field(("127.0.0.1:2379",), description="etcd members")
    search_threads: int = Field(2, ge=1, description="threads that search, 100% busy")
    dev: bool = Field(default=False, description="reflection on")
    log_format: Literal["json", "console"] = "json"
    state_dir: Path | None = None
    password: SecretStr = SecretStr("")


def load_example(*argv: str) -> ExampleSettings:
    return load(ExampleSettings, argv, prog="example", description="An example.")


def stopped(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        load_example(*argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_defaults_stand_where_nothing_is_given() -> None:
    assert effective(load_example("--node-id", "n1")) == {
        "node_id": "n1",
        "etcd": "127.0.0.1:2379",
        "search_threads": "2",
        "dev": "False",
        "log_format": "json",
        "state_dir": "None",
        "password": "",
    }


def test_flags_rule_over_environment_over_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "example.toml"
    file.write_text('node_id = "file"\netcd = ["a:1", "b:2"]\nsearch_threads = 3\ndev = true\n')
    monkeypatch.setenv("FACEGRID_EXAMPLE_SEARCH_THREADS", "4")
    monkeypatch.setenv("FACEGRID_EXAMPLE_NODE_ID", "environment")
    settings = load_example("--config", str(file), "--node-id", "flag", "--no-dev")
    assert (settings.node_id, settings.etcd, settings.search_threads, settings.dev) == (
        "flag",
        ("a:1", "b:2"),
        4,
        False,
    )


def test_the_environment_may_name_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "example.toml"
    file.write_text('node_id = "file"\n')
    monkeypatch.setenv("FACEGRID_EXAMPLE_CONFIG", str(file))
    assert load_example().node_id == "file"


def test_several_values_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEGRID_EXAMPLE_ETCD", "a:1, b:2")
    assert load_example("--node-id", "n1").etcd == ("a:1", "b:2")
    assert load_example("--node-id", "n1", "--etcd", "c:3").etcd == ("c:3",)


def test_a_key_that_no_setting_has_stops_the_start_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "example.toml"
    file.write_text("serch_threads = 3\n")
    assert stopped(capsys, "--node-id", "n1", "--config", str(file)) == (
        f"example: no such setting: serch_threads path={file}\n"
    )
    assert stopped(capsys, "--node-id", "n1", "--serch-threads", "3") == (
        "example: unrecognized arguments: --serch-threads 3\n"
    )
    assert stopped(capsys, "--node", "n1") == "example: unrecognized arguments: --node n1\n"
    monkeypatch.setenv("FACEGRID_EXAMPLE_SERCH_THREADS", "3")
    assert stopped(capsys, "--node-id", "n1") == (
        "example: no such setting: environment variable FACEGRID_EXAMPLE_SERCH_THREADS\n"
    )


def test_a_wrong_value_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped(capsys, "--node-id", "n1", "--search-threads", "0") == (
        "example: setting is wrong: search_threads: input should be greater than or equal to 1\n"
    )


def test_a_missing_value_is_named_with_every_way_to_give_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert stopped(capsys) == (
        "example: setting is missing: --node-id, FACEGRID_EXAMPLE_NODE_ID or node_id in the file\n"
    )


@pytest.mark.parametrize("text", ["node_id = ", b"\xff"])
def test_a_file_that_cannot_be_read_stops_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | bytes
) -> None:
    file = tmp_path / "example.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    assert "settings file cannot be read" in stopped(capsys, "--config", str(file))
    assert "does not exist" in stopped(capsys, "--config", str(tmp_path / "none.toml"))


def test_help_lists_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_example("--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--node-id VALUE name of this node (required)" in text
    assert "threads that search, 100% busy (default: 2)" in text
    assert "--etcd VALUE etcd members (default: 127.0.0.1:2379)" in text
    assert "FACEGRID_EXAMPLE_" in text


def test_secrets_are_masked_and_settings_do_not_change() -> None:
    settings = load_example("--node-id", "n1", "--password", "hunter2")
    assert effective(settings)["password"] == "**********"
    with pytest.raises(ValidationError):
        settings.node_id = "n2"


@pytest.mark.parametrize("address", ["nonsense", ":7400", "host:", "host:99999", "host:-1", ""])
def test_an_address_without_host_or_possible_port_stops_the_start(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = stopped(capsys, "--node-id=n1", f"--etcd=a:1,{address}")

    assert said.startswith("example: setting is wrong: etcd: must be host:port")

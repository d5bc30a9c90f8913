"""Settings of a process: flags over environment over file over defaults, read once at the start.

    class RouterSettings(ProcessSettings):
        model_config = SettingsConfigDict(env_prefix="FACEGRID_ROUTER_")
        listen: str = Field("127.0.0.1:7400", description="host:port to serve at")
        etcd: Addresses = Field(description="host:port of every etcd member")

    settings = load(RouterSettings, sys.argv[1:], prog="facegrid-router", description="...")

A key that no setting has stops the start, wherever it stands: what was misspelt would otherwise
silently keep its default.
"""

import argparse
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from typing_extensions import override

EXIT_INVALID: Final = 2
CONFIG: Final = "config"


class ProcessSettings(BaseSettings):
    """Base of the settings of each process. Frozen; unknown keys are refused.

    A subclass sets `env_prefix` and gives each field a description, which `--help` prints.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what is given and nothing from the ambient world: `load` does the reading."""
        return (init_settings,)


Settings = TypeVar("Settings", bound=ProcessSettings)


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


PORT_MAX: Final = 65_535


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > PORT_MAX:
        raise ValueError(f"must be host:port with a port up to {PORT_MAX}, not {value!r}")
    return value


Address = Annotated[str, AfterValidator(_address)]
"""host:port."""

Addresses = Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_split), Field(min_length=1)]
"""Several of host:port, at least one: `a:1,b:1` in flags and environment, an array in a file."""


def load(
    settings_class: type[Settings], argv: Sequence[str], *, prog: str, description: str
) -> Settings:
    """Return the settings of this process, or end it with one line on stderr and exit code 2.

    Args:
        settings_class: what to read, a subclass of ProcessSettings.
        argv: arguments without the program's name. `--config FILE` names a TOML file; `--help`
            lists every setting with its default.
        prog: the program's name.
        description: what the program is, for `--help`.
    """
    flags = vars(_parser(settings_class, prog, description).parse_args(argv))
    environment = _environment(settings_class, prog)
    config = flags.pop(CONFIG, environment.pop(CONFIG, None))
    from_file = {} if config is None else _file(settings_class, Path(config), prog)
    try:
        return settings_class(**{**from_file, **environment, **flags})
    except ValidationError as error:
        problems = [_problem(settings_class, details) for details in error.errors()]
        _stop(prog, "; ".join(problems))


def effective(settings: ProcessSettings) -> dict[str, str]:
    """Return every setting as text, for one line in the log. Secrets (SecretStr) are masked."""
    return {name: _shown(getattr(settings, name)) for name in type(settings).model_fields}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage of all flags before it."""

    @override
    def error(self, message: str) -> NoReturn:
        _stop(self.prog, message)


def _parser(settings_class: type[ProcessSettings], prog: str, description: str) -> _Parser:
    prefix = _env_prefix(settings_class)
    parser = _Parser(
        prog=prog,
        description=description,
        epilog=f"every setting may also stand in the file, and in the environment as {prefix}NAME",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings")
    for name, field in settings_class.model_fields.items():
        description = f"{field.description or ''} ({_default(field)})".strip().replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(
                _flag(name), action=argparse.BooleanOptionalAction, help=description
            )
        else:
            parser.add_argument(_flag(name), metavar="VALUE", help=description)
    return parser


def _environment(settings_class: type[ProcessSettings], prog: str) -> dict[str, Any]:
    prefix = _env_prefix(settings_class)
    known = {f"{prefix}{name.upper()}": name for name in (*settings_class.model_fields, CONFIG)}
    variables: Mapping[str, str] = os.environ  # noqa: TID251 - the one place that reads it
    given = {name for name in variables if name.startswith(prefix)}
    if unknown := sorted(given - known.keys()):
        _stop(prog, f"no such setting: environment variable {', '.join(unknown)}")
    values: dict[str, Any] = EnvSettingsSource(settings_class)()
    if (config := variables.get(f"{prefix}{CONFIG.upper()}")) is not None:
        values[CONFIG] = config
    return values


def _file(settings_class: type[ProcessSettings], path: Path, prog: str) -> dict[str, Any]:
    if not path.is_file():
        _stop(prog, f"settings file does not exist path={path}")
    try:
        values: dict[str, Any] = TomlConfigSettingsSource(settings_class, toml_file=path)()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        _stop(prog, f"settings file cannot be read: {error} path={path}")
    if unknown := sorted(values.keys() - settings_class.model_fields.keys()):
        _stop(prog, f"no such setting: {', '.join(unknown)} path={path}")
    return values


def _problem(settings_class: type[ProcessSettings], details: ErrorDetails) -> str:
    name = str(details["loc"][0]) if details["loc"] else "settings"
    if details["type"] == "missing":
        variable = f"{_env_prefix(settings_class)}{name.upper()}"
        return f"setting is missing: {_flag(name)}, {variable} or {name} in the file"
    sentence = details["msg"].removeprefix("Value error, ")
    return f"setting is wrong: {name}: {sentence[:1].lower()}{sentence[1:]}"


def _stop(prog: str, message: str) -> NoReturn:
    print(f"{prog}: {message}", file=sys.stderr)  # noqa: T201 - logging is not set up yet
    raise SystemExit(EXIT_INVALID)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _env_prefix(settings_class: type[ProcessSettings]) -> str:
    prefix = settings_class.model_config.get("env_prefix", "")
    assert prefix, "a settings class needs an env_prefix"
    return prefix


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return f"default: {_shown(field.get_default(call_default_factory=True))}"


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

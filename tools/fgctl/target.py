"""Which cluster a command speaks to, and the options that say so."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import facegrid
from facegrid.limits import DEADLINE_S_MAX
from fgctl import admin, cluster_file

ROUTER_VARIABLE = "FACEGRID_ROUTER"
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Target:
    """A cluster and how to speak to it.

    Attributes:
        routers: host:port of each.
        timeout_s: None when nothing was said; commands have their own defaults.
        as_json: print one JSON document instead of text.
        replicas: the default of a local cluster, 1 for others.
        store: URL of the object store of a local cluster; empty for others.
    """

    routers: tuple[str, ...]
    timeout_s: float | None
    as_json: bool
    replicas: int = 1
    store: str = ""

    def timeout_or(self, default_s: float) -> float:
        """Return the time limit of one call."""
        return default_s if self.timeout_s is None else self.timeout_s

    def ask(
        self,
        method: "admin.Method[admin.Request, admin.Answer]",
        request: admin.Request,
    ) -> admin.Answer:
        """Return what a router answers to operators, see `admin.ask`."""
        return admin.ask(self.routers, method, request, timeout_s=self.timeout_or(TIMEOUT_S))

    @contextmanager
    def client(self, *, timeout_s: float = TIMEOUT_S) -> Iterator[facegrid.Client]:
        """Open a client of the routers."""
        with facegrid.Client(list(self.routers), timeout_s=self.timeout_or(timeout_s)) as client:
            yield client


def json_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(
        command
    )


def directory_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add --dir of a local cluster."""
    return click.option(
        "--dir",
        "directory",
        required=True,
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the local cluster.",
    )(command)


def online(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of commands that speak to routers; the command gets a Target first."""

    @click.option(
        "--router",
        "routers",
        multiple=True,
        envvar=ROUTER_VARIABLE,
        metavar="HOST:PORT",
        help=f"A router; may be given several times. Also {ROUTER_VARIABLE}.",
    )
    @click.option(
        "--dir",
        "directory",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of a local cluster, instead of --router.",
    )
    @click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0, min_open=True, max=DEADLINE_S_MAX),
        metavar="SECONDS",
        help="Time limit of one call.",
    )
    @json_option
    @functools.wraps(command)
    def with_target(
        routers: tuple[str, ...],
        directory: Path | None,
        timeout_s: float | None,
        as_json: bool,  # noqa: FBT001 - click gives flags as booleans
        **rest: Any,
    ) -> None:
        named = _named_routers(routers, directory)
        replicas, store = 1, ""
        if directory is not None:
            cluster = cluster_file.load(directory)
            named = named or cluster.router_targets
            replicas, store = cluster.replicas, cluster.store_in(directory)
        if not named:
            raise click.UsageError(
                f"say which cluster: --router HOST:PORT, or --dir DIR, or set {ROUTER_VARIABLE}"
            )
        command(Target(named, timeout_s, as_json, replicas, store), **rest)

    return with_target


def _named_routers(routers: tuple[str, ...], directory: Path | None) -> tuple[str, ...]:
    # A folder on the command line is more specific than a variable of the environment.
    source = click.get_current_context().get_parameter_source("routers")
    if directory is not None and source is ParameterSource.ENVIRONMENT:
        return ()
    return tuple(name.strip() for text in routers for name in text.split(",") if name.strip())


IRREVOCABLE = "this cannot be undone"


class Declined(click.ClickException):
    """A person was asked and said no; nothing was done."""

    def __init__(self) -> None:
        super().__init__("nothing was changed: you said no")


def confirm(question: str, *, yes: bool, refusal: str = IRREVOCABLE) -> None:
    """Go on only with --yes, or when a person at a terminal says so.

    Args:
        question: what to ask.
        yes: it was said already.
        refusal: why it needs to be said, where there is nobody to ask.

    Raises:
        click.UsageError: there is no terminal to ask on.
        Declined: the person said no.
        click.Abort: the person pressed Ctrl-C.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{refusal}: repeat it with --yes")
    if not click.confirm(question, err=True):
        raise Declined

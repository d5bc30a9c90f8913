"""The operators' command line, put together. Exit codes: 0 done, 1 refused or failed, 2 wrong
usage, 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence

import click

import facegrid
from facegrid.errors import FacegridError
from fgctl.local.commands import local
from fgctl.meta.commands import meta
from fgctl.offline.commands import offline
from fgctl.online.cluster import cluster
from fgctl.online.enrol import enrol
from fgctl.online.gallery import gallery
from fgctl.online.identify import identify
from fgctl.online.load import load
from fgctl.online.node import node
from fgctl.online.ops import ops
from fgctl.online.rebalance import rebalance, replicas
from fgctl.online.shard import shard
from fgctl.online.store import store
from fgctl.online.templates import erase, get, verify
from fgctl.online.top import top
from fgctl.plan.commands import plan
from fgctl.snapshot.commands import snapshot

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 99})
@click.version_option(facegrid.__version__, prog_name="fgctl")
def cli() -> None:
    """Operate facegrid, a distributed index of face templates."""


for command in (
    cluster,
    enrol,
    erase,
    gallery,
    get,
    identify,
    load,
    local,
    meta,
    node,
    offline,
    ops,
    plan,
    rebalance,
    replicas,
    shard,
    snapshot,
    store,
    top,
    verify,
):
    cli.add_command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors are one line on stderr."""
    try:
        code = cli.main(arguments, prog_name="fgctl", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _failed(f"error: {error.format_message()}{_help_hint(error)}", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _failed("interrupted", EXIT_INTERRUPTED)
    except FacegridError as error:
        return _failed(error_text(error), EXIT_FAILED)
    except OSError as error:
        return _os_failed(error)
    return code if isinstance(code, int) else 0


def _failed(line: str, code: int) -> int:
    click.echo(line, err=True)
    return code


def _os_failed(error: OSError) -> int:
    if isinstance(error, BrokenPipeError):
        # Whoever read our output had enough, as `head` does; nothing is left to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return _failed(f"error: {error.strerror or error} path={error.filename}", EXIT_FAILED)


def _help_hint(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return "" if context is None else f" (see {context.command_path} --help)"


def error_text(error: FacegridError) -> str:
    """Return an error as a line that begins with "error: "; what a log said stands below it."""
    sentence, _, details = error.message.partition("\n")
    facts = [f"reason={error.reason}"]
    facts += [
        f"{key}={error.facts[key]}"
        for key in ("row", "field", "limit")
        if key in error.facts and f"{key}=" not in sentence
    ]
    line = f"error: {sentence} {' '.join(facts)}"
    return f"{details}\n{line}" if details else line

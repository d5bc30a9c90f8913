"""facegrid-indexd: serves shards."""

import gc
import sys

import uvloop

from facegrid.errors import FacegridError, InvalidError
from facegrid.settings import EXIT_INVALID, load
from facegrid.telemetry.log import configure
from indexd.server import serve
from indexd.settings import IndexdSettings

PROGRAM = "facegrid-indexd"


def main() -> None:
    """Run a node. Exit code 0 after SIGTERM, 1 when something it needs is away, 2 for settings."""
    settings = load(
        IndexdSettings,
        sys.argv[1:],
        prog=PROGRAM,
        description="Holds shards of galleries: writes their logs and searches them.",
    )
    configure("indexd", fmt=settings.log_format, level=settings.log_level)
    # Modules stay, and are many: going through them holds searches up for tens of milliseconds.
    gc.freeze()
    try:
        uvloop.run(serve(settings))
    except InvalidError as error:
        sys.stderr.write(f"{PROGRAM}: {error.message}\n")
        sys.exit(EXIT_INVALID)
    except FacegridError as error:
        sys.exit(f"{PROGRAM}: {error.message}")
    except BaseExceptionGroup as several:
        # Tasks end together; what the world broke is told in a line, what a bug broke is not.
        known, unknown = several.split(FacegridError)
        if unknown is not None or known is None:
            raise
        sys.exit(f"{PROGRAM}: {first(known)}")


def first(several: BaseExceptionGroup[FacegridError]) -> str:
    """Return the message of one error of a group."""
    error: BaseException = several
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


if __name__ == "__main__":
    main()

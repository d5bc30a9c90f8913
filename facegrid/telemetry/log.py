"""Logs: events with fields, one line each, to stderr. Never a vector, a score or a subject id."""

import sys
from typing import Literal, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

Logger = FilteringBoundLogger
Format = Literal["json", "console"]
Level = Literal["debug", "info", "warning", "error"]


def configure(process: str, *, fmt: Format, level: Level = "info") -> None:
    """Set up logging for the whole process; its name stands in every line."""
    structlog.reset_defaults()
    structlog.configure(
        processors=[
            _named(process),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *_renderers(fmt),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def get_logger(name: str) -> Logger:
    """Return a logger whose lines carry a name. Call `configure` first."""
    return cast("Logger", structlog.get_logger().bind(logger=name))


def _named(process: str) -> Processor:
    def add_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    return add_process


def _renderers(fmt: Format) -> list[Processor]:
    # Tracebacks are plain: the rich ones print local variables, and those hold vectors and ids.
    if fmt == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    ]

"""Keeps on the disk what etcd tells, for a start without it."""

import asyncio
from pathlib import Path

from facegrid.clock import Clock
from facegrid.coord.port import KeyValue
from facegrid.coord.saved import save
from facegrid.telemetry.log import Logger
from indexd.replica.view import View

SAVE_PAUSE_S = 1.0
"""How long after one look at whether the view is another the next begins."""


async def keep_view(view: View, folder: Path, clock: Clock, logger: Logger) -> None:
    """Save a view each time it is something else, until cancelled."""
    saved: dict[str, KeyValue] = {}
    while True:
        await clock.sleep(SAVE_PAUSE_S)
        if view.complete and saved != view.items:
            saved = dict(view.items)
            try:
                await asyncio.to_thread(save, folder, tuple(saved.values()))
            except OSError as error:
                logger.warning("view not saved", folder=str(folder), problem=str(error))

"""Command lines of fgctl against one router in memory."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest

from facegrid.testing.fake_router import FakeRouter
from fgctl.__main__ import run


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON document on stdout, of a command that went well."""
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out)


class Shell:
    """Runs command lines against one router."""

    def __init__(self, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
        self.router = router
        self._capsys = capsys

    async def __call__(self, *arguments: str) -> Ended:
        code = await asyncio.to_thread(run, [*arguments, "--router", self.router.address])
        shown = self._capsys.readouterr()
        return Ended(code, shown.out, shown.err)

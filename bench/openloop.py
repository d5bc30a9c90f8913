"""Latency against load: `python -m bench.openloop`.

Client, router and two nodes, with 1 and 64 probes in each call, and 1, 8 and 32 clients that take
turns. First the same clients ask again as soon as they are answered: that rate is full load. Then
calls are due at shares of it, and latency counts from when each was due. All clients live in one
process, so its one core is part of what is measured, and on a machine of two cores a large part.
"""

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import facegrid
from bench import arrivals, served, stage, target
from bench.arrivals import Answered, Search
from bench.machine import Cost, size
from bench.report import Json
from bench.served import GALLERY, TIMEOUT_S, Served
from facegrid.clock import Clock
from facegrid.vectors import Float32

TEMPLATES = 1_000_000
PROBES = 2048
PROBES_PER_CALL = (1, 64)
CLIENTS = (1, 8, 32)
LOADS = (0.1, 0.25, 0.5, 0.75, 0.9)
HALF = 0.5
CALLS_MAX = 4000
K = 10
P99_TIMES_NEED = 3.0


@dataclass(frozen=True, slots=True)
class Series:
    """One way of calling.

    Attributes:
        probes_per_call, clients: how.
        full_per_s: calls a second at full load.
        loads: what became of each load, by its share of full load.
    """

    probes_per_call: int
    clients: int
    full_per_s: float
    loads: Mapping[float, Answered]

    @property
    def lines(self) -> list[str]:
        """Return what to print."""
        how = f"probes_per_call={self.probes_per_call} clients={self.clients}"
        return [
            f"full load: {how} probes_per_s={self.full_per_s * self.probes_per_call:.0f}",
            *(
                f"load {share:g}: {how} calls_per_s={one.per_s:.1f} p50_ms={one.ms(0.5):.2f}"
                f" p99_ms={one.ms(0.99):.2f}" + " overloaded" * one.overloaded
                for share, one in self.loads.items()
            ),
        ]

    def as_json(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {
            "probes_per_call": self.probes_per_call,
            "clients": self.clients,
            "full_calls_per_s": self.full_per_s,
            "loads": [
                {"share": share} | one.as_json() for share, one in sorted(self.loads.items())
            ],
        }


@dataclass(frozen=True, slots=True)
class Results:
    """All ways of calling."""

    parameters: Mapping[str, str]
    series: Sequence[Series]

    def targets(self) -> list[target.Target]:
        """Return G4's second half: the tail at half load, one probe in each call."""
        ratios = [
            (one.clients, half.ms(0.99) / half.ms(0.5))
            for one in self.series
            if one.probes_per_call == 1 and (half := one.loads.get(HALF)) is not None
        ]
        return [
            target.against(
                "G4",
                ratio,
                "at most",
                P99_TIMES_NEED,
                part=f"p99_at_half_load_{clients}_clients",
            )
            for clients, ratio in ratios
        ]

    def lines(self) -> list[str]:
        """Return what to print."""
        told = [line for one in self.series for line in one.lines]
        return [*told, *target.lines_of(self.targets())]

    def as_json(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {
            "parameters": dict(self.parameters),
            "k": K,
            "series": [one.as_json() for one in self.series],
        }


async def measured(
    search: Search, *, clients: int, rows: int, window_s: float, seed: int, clock: Clock
) -> Series:
    """Measure one way of calling."""
    full = await arrivals.fastest_per_s(search, at_once=clients, duration_s=window_s, clock=clock)
    loads: dict[float, Answered] = {}
    for share in LOADS:
        per_s = share * full
        count = min(max(20, round(per_s * window_s)), CALLS_MAX)
        due_s = arrivals.moments(per_s, count, seed=seed)
        loads[share] = await arrivals.play(search, due_s, per_s=per_s, clock=clock)
    return Series(rows, clients, full, loads)


async def all_series(one: Served, given: argparse.Namespace, clock: Clock) -> list[Series]:
    """Measure every way of calling in turn."""
    probes = one.data.probes.vectors
    found: list[Series] = []
    for clients_count in CLIENTS:
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    facegrid.AsyncClient(one.routers, timeout_s=TIMEOUT_S)
                )
                for _ in range(clients_count)
            ]
            for rows in PROBES_PER_CALL:
                batches = [probes[at : at + rows] for at in range(0, len(probes), rows)]

                async def search(
                    number: int,
                    batches: list[Float32] = batches,
                    clients: list[facegrid.AsyncClient] = clients,
                ) -> None:
                    client = clients[number % len(clients)]
                    await client.identify(GALLERY, batches[number % len(batches)], k=K)

                for number in range(clients_count):
                    await search(number)  # connections, and what else is made at first
                series = await measured(
                    search,
                    clients=clients_count,
                    rows=rows,
                    window_s=given.window_s,
                    seed=given.seed,
                    clock=clock,
                )
                print("\n".join(f"  {line}" for line in series.lines), flush=True)
                found.append(series)
    return found


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage."""
    parser.add_argument("--templates", type=size, default=TEMPLATES, help="of the gallery")
    parser.add_argument("--window-s", type=float, default=10.0, help="seconds of each load")


def cost(given: argparse.Namespace) -> Cost:
    """Return what it takes."""
    windows = len(CLIENTS) * len(PROBES_PER_CALL) * (1 + len(LOADS))
    return served.cost(given.templates, measuring_s=windows * given.window_s)


def run(given: argparse.Namespace, place: stage.Place) -> Results:
    """Fill a gallery and measure."""
    with served.served(
        given.templates,
        probes_count=PROBES,
        seed=given.seed,
        folder=place.folder,
        clock=place.clock,
    ) as one:
        series = asyncio.run(all_series(one, given, place.clock))
        return Results(one.data.parameters, series)


STAGE = stage.Stage("openloop", "Latency against load, open loop.", options, cost, run)

if __name__ == "__main__":
    stage.run_as_command(STAGE)

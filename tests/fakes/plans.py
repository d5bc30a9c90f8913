"""A calibration made by hand: round numbers of a machine that nobody has."""

from typing import Any

from fgctl.plan.calibration import Calibration, to_document

CALM = Calibration(
    time="2026-01-01T00:00:00+00:00",
    hardware={"processor": "made up", "cores": 4, "memory_gib": 16.0},
    versions={"facegrid": "0"},
    parameters={"seed": 1},
    dim=512,
    probes=(1, 8, 64, 256),
    call_s=(0.002, 0.003, 0.006, 0.016),
    shard_s=(0.0002, 0.0004, 0.002, 0.008),
    row_s=(1e-8, 3e-8, 2.4e-7, 9.2e-7),
    cores_share=0.75,
    spread=(*(0.9 + 0.002 * step for step in range(100)), 1.3),
    spread_at_s=0.005,
    client_call_cpu_s=0.0006,
    router_call_cpu_s=0.0008,
    router_probe_cpu_s=3e-5,
    node_call_cpu_s=0.0009,
    node_base_bytes=150e6,
    memory_factor=1.25,
    router_bytes=100e6,
    disk_factor=0.9,
    start_s=2.0,
    load_per_s=100_000.0,
    enrol_per_s=20_000.0,
    store_bytes_per_s=1e9,
)


def calibration_json() -> dict[str, Any]:
    """Return it as a file holds it, with lists as JSON has them."""
    document = to_document(CALM)
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in document.items()
    }

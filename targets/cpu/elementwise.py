"""Schedules for what no rule wrote."""

from __future__ import annotations

import tvm

from cupola.targets.cpu.isa import ISA


def ScheduleRest(isa: ISA) -> tvm.transform.Pass:
    """Nothing yet."""
    return tvm.transform.Sequential([])

"""How busy a machine is."""

import time

from lisan.tracking.system_metrics import watch_load


def test_a_processor_that_is_busy_is_seen() -> None:
    found: list[float] = []
    with watch_load(lambda load, _: found.append(load["system/cpu_utilization_percentage"]), 600.0, time.time()):
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
    [busy] = found
    assert 0 < busy <= 100

"""Samples the load of a machine: processors, memory, disk, network and, with NVIDIA's library, GPUs.

The names are those of MLflow's page of system metrics. The machine is the one of this process: for a stage, the driver's.
GPU readings have not been tested on a GPU.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

MEGABYTE = 1e6


class MachineLoad:
    """Reads the load: processors since the last reading, network since the first."""

    def __init__(self) -> None:
        import psutil

        self._network = psutil.net_io_counters()
        self._gpus = _open_gpus()
        psutil.cpu_percent()  # the first reading has nothing to compare with

    def read(self) -> dict[str, float]:
        import psutil

        memory, disk, network = psutil.virtual_memory(), psutil.disk_usage("/"), psutil.net_io_counters()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_megabytes": disk.used / MEGABYTE,
            "disk_available_megabytes": disk.free / MEGABYTE,
            "disk_usage_percentage": disk.percent,
        }
        if network and self._network:  # None on a machine without network
            found["network_receive_megabytes"] = (network.bytes_recv - self._network.bytes_recv) / MEGABYTE
            found["network_transmit_megabytes"] = (network.bytes_sent - self._network.bytes_sent) / MEGABYTE
        for index, gpu in enumerate(self._gpus):
            found.update({f"gpu_{index}_{name}": value for name, value in _read_gpu(gpu).items()})
        return found


def _open_gpus() -> list[Any]:
    if find_spec("pynvml") is None:
        return []
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # the library without a driver
        return []
    return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]


def _read_gpu(gpu: Any) -> dict[str, float]:
    """Read memory, utilisation and power; a MIG slice reports memory only."""
    import pynvml

    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
    found = {
        "memory_usage_megabytes": memory.used / MEGABYTE,
        "memory_usage_percentage": 100 * memory.used / memory.total,
    }
    with suppress(pynvml.NVMLError_NotSupported):
        found["utilization_percentage"] = float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
    with suppress(pynvml.NVMLError_NotSupported):
        found["power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000
    return found


@contextmanager
def watch_load(log: Callable[[Mapping[str, float], int], None], every_s: float, start_s: float) -> Iterator[None]:
    """Log the load of this machine every `every_s` seconds and at the end, so that a short stage has a sample; 0 logs none.

    The step is the number of seconds since `start_s`, so that a resumed run continues its series.
    """
    if not every_s:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        load = MachineLoad()  # in this thread: psutil compares with the last reading of the same thread
        while True:
            is_over = over.wait(every_s)
            log({f"system/{name}": value for name, value in load.read().items()}, int(time.time() - start_s))
            if is_over:
                return

    thread = threading.Thread(target=watch, name="machine-load", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

"""What a number was measured with, so that another can measure it again."""

import datetime
import os
import platform
from importlib.metadata import version

import torch


def provenance() -> dict[str, str | int]:
    """Versions, hardware and time, as plain values for JSON."""
    return {
        "expunge": version("expunge"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": hardware(),
        "cores": os.cpu_count() or 0,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def hardware() -> str:
    """The name of the GPU if there is one, else of the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

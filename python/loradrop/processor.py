"""The processor's name, to print beside what was measured on it."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_NAME = re.compile(r"^model name\s*:\s*(.+)$", re.MULTILINE)


def processor_name() -> str:
    """Return what the processor calls itself, else its architecture."""
    try:
        found = _NAME.search(Path("/proc/cpuinfo").read_text(errors="replace"))
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()

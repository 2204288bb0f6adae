"""The memory of this machine, and of its first GPU. No torch here: importing it takes longer than asking."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class _WindowsStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 6),
    )


@cache
def memory_bytes() -> int:
    """What this process may use: the machine's, or less where a container is given less; 0 if unknown."""
    if sys.platform == "win32":
        status = _WindowsStatus(size=ctypes.sizeof(_WindowsStatus))
        found = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status.total) if found else 0
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
    limits = [int(text) for path in _CGROUP_LIMITS if (text := _read(Path(path))).isdigit()]
    return min([whole, *limits])


@cache
def gpu_memory_bytes() -> int:
    """Of the first NVIDIA GPU, as its driver says; 0 without one."""
    library = {"win32": "nvcuda.dll", "darwin": ""}.get(sys.platform, "libcuda.so.1")
    if not library:
        return 0
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return 0
    device, size = ctypes.c_int(), ctypes.c_size_t()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return 0
    return 0 if driver.cuDeviceTotalMem_v2(ctypes.byref(size), device) else size.value


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""

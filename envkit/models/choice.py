"""Choose the model of a run that names none."""

from __future__ import annotations

import resource
from pathlib import Path

from envkit.models.known import DEFAULT_MODEL, KNOWN, SMALL_MODEL

#: The default model needs this budget, in minutes, to see enough examples and steps on two cores, and this
#: much free memory, in bytes, to be trained.
SHORT_MINUTES, _MIN_BYTES = 10, 8 * 10**9


def choose_model(minutes: float | None = None) -> tuple[str, str]:
    """Return the id of the model for a run on this machine, and the reason in one line.

    Args:
        minutes: the run's budget; ``None`` if it has none.
    """
    free = available_bytes()
    if minutes is not None and minutes < SHORT_MINUTES:
        return SMALL_MODEL, _because(SMALL_MODEL, f"{DEFAULT_MODEL} needs {SHORT_MINUTES} minutes or more")
    if free is not None and free < _MIN_BYTES:
        found = f"{free / 10**9:.1f} GB of memory are free, and {DEFAULT_MODEL} needs {_MIN_BYTES // 10**9}"
        return SMALL_MODEL, _because(SMALL_MODEL, found)
    return DEFAULT_MODEL, _because(DEFAULT_MODEL, "it is the default; --model takes another")


def _because(name: str, reason: str) -> str:
    return f"model: {name} ({KNOWN[name].parameters:,} M parameters), because {reason}"


def available_bytes() -> int | None:
    """Memory that this process can still take, or ``None`` if the system does not say."""
    known = _numbers(Path("/proc/meminfo"), ":")
    free = [1024 * known[name] for name in ("MemAvailable", "SwapFree") if name in known]
    limits = [sum(free)] if free else []
    group = Path("/sys/fs/cgroup")
    if (limit := _read(group / "memory.max").strip()).isdigit():
        # What files have left in memory is freed where it is needed, and counts as used.
        used = int(_read(group / "memory.current").strip() or 0)
        cached = _numbers(group / "memory.stat", " ")
        limits.append(int(limit) - used + cached.get("inactive_file", 0) + cached.get("active_file", 0))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft - 1024 * _numbers(Path("/proc/self/status"), ":").get("VmSize", 0))
    return min(limits, default=None)


def _numbers(path: Path, mark: str) -> dict[str, int]:
    """Read the lines of a file of the kernel's that are a name, a mark and a number."""
    found: dict[str, int] = {}
    for line in _read(path).splitlines():
        name, _, value = line.partition(mark)
        if (first := value.split()[:1]) and first[0].isdecimal():
            found[name] = int(first[0])
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""

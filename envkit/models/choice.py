"""Choose the model of a run that names none."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from envkit.models.known import DEFAULT_MODEL, KNOWN, SMALL_MODEL

#: The default model needs this budget, in minutes, to see enough examples and steps on two cores, and this
#: much free memory, in bytes, to be trained.
SHORT_MINUTES, _MIN_BYTES = 10, 8 * 10**9
_GROUPS: Final = Path("/sys/fs/cgroup")


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
    for group, names in _control_groups():
        if (limit := _read(group / names.limit).strip()).isdigit():
            # What files have left in memory is freed where it is needed, and counts as used.
            used = int(_read(group / names.used).strip() or 0)
            known = _numbers(group / "memory.stat", " ")
            limits.append(int(limit) - used + sum(known.get(name, 0) for name in names.cached))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft - 1024 * _numbers(Path("/proc/self/status"), ":").get("VmSize", 0))
    return min(limits, default=None)


class _Names(NamedTuple):
    """Names of a control group's files, and of the counters of files' memory in its ``memory.stat``."""

    limit: str
    used: str
    cached: tuple[str, ...]


_V1: Final = _Names(
    "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)
_V2: Final = _Names("memory.max", "memory.current", ("inactive_file", "active_file"))


def _control_groups() -> Iterator[tuple[Path, _Names]]:
    """The control groups whose limits of memory apply to this process, with the names of their files."""
    found: dict[Path, _Names] = {_GROUPS: _V2, _GROUPS / "memory": _V1}  # what a container sees of its own
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" or "memory" in controllers.split(","):
            top, names = (_GROUPS, _V2) if number == "0" else (_GROUPS / "memory", _V1)
            inner = PurePosixPath(path.lstrip("/"))
            found |= {top / each: names for each in (inner, *inner.parents)}
    yield from found.items()


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

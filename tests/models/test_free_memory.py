"""Memory that a process can still take."""

from __future__ import annotations

import resource

import pytest

from envkit.models import choice


def test_what_files_have_left_in_a_container_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "/proc/meminfo": "MemTotal: 99 kB\nMemAvailable: 50 kB\nSwapFree: 7 kB\n",
        "/sys/fs/cgroup/memory.max": "40000\n",
        "/sys/fs/cgroup/memory.current": "39000\n",
        "/sys/fs/cgroup/memory.stat": "anon 9000\ninactive_file 20000\nactive_file 10000\nslab 5\n",
        "/proc/self/status": "Name:\tpython\nVmSize:\t  10 kB\n",
    }
    monkeypatch.setattr(choice, "_read", lambda path: texts.get(str(path), ""))
    assert choice.available_bytes() == 31_000
    texts["/proc/self/cgroup"] = "4:cpu,memory:/shop/one\n0::/\n"
    texts["/sys/fs/cgroup/memory/shop/memory.limit_in_bytes"] = "9000\n"
    texts["/sys/fs/cgroup/memory/shop/memory.usage_in_bytes"] = "8000\n"
    texts["/sys/fs/cgroup/memory/shop/memory.stat"] = "inactive_file 1\ntotal_inactive_file 500\n"
    assert choice.available_bytes() == 1_500, "the limit of a group above this process's, of version 1"
    texts["/proc/self/cgroup"] = "0::/shop/one\n"
    texts["/sys/fs/cgroup/shop/one/memory.max"] = "7000\n"
    assert choice.available_bytes() == 7_000, "the limit of this process's own group"
    del texts["/proc/self/cgroup"]
    texts["/sys/fs/cgroup/memory.max"] = "max\n"
    assert choice.available_bytes() == 57 * 1024
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (30 * 1024, 30 * 1024))
    assert choice.available_bytes() == 20 * 1024
    texts.clear()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert choice.available_bytes() is None

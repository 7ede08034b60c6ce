"""A Docker engine of a test's own, whose images and containers are not the machine's, and images for it."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from envkit.sandboxes import docker as module
from envkit.sandboxes._docker import engine as docker_engine
from envkit.sandboxes._docker import images
from envkit.sandboxes._rootfs import guest_build


@contextlib.contextmanager
def own_engine(runtimes: Mapping[str, str] = {}) -> Iterator[Path]:
    """Start an engine in its own network namespace, and let envkit use it; yields the folder of its runtimes.

    Args:
        runtimes: name -> program of further runtimes.
    """
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="engine", ignore_cleanup_errors=True) as name,
    ):
        folder = Path(name)
        for runtime, program in runtimes.items():
            (folder / runtime).write_text(program)
            (folder / runtime).chmod(0o755)
        patch.setenv("DOCKER_HOST", f"unix://{folder}/sock")
        for where, cached in ((docker_engine, "_connected"), (module, "_reap_once")):
            patch.setattr(where, cached, functools.cache(getattr(where, cached).__wrapped__))
        command = ["unshare", "--net", "dockerd", "--host", f"unix://{folder}/sock", "--bridge", "none"]
        command += [
            "--iptables=false",
            "--shutdown-timeout=1",
            "--data-root",
            f"{folder}/data",
            "--exec-root",
            f"{folder}/exec",
        ]
        command += ["--pidfile", f"{folder}/pid"]
        command += [word for one in runtimes for word in ("--add-runtime", f"{one}={folder}/{one}")]
        with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                _wait_until_it_answers(process, folder)
                yield folder
            finally:
                client = docker_engine.client(os.getpid())
                for container in client.containers.list(all=True, ignore_removed=True):
                    container.remove(force=True, v=True)  # the engine would wait for running containers
                client.close()
                process.send_signal(signal.SIGTERM)
                process.wait()
                while os.path.ismount(data := folder / "data"):  # an engine may leave its data folder mounted
                    subprocess.run(["umount", data], check=True)


def make_root(root: Path, programs: Sequence[str]) -> None:
    """Fill a new folder with a root file system: Python, and programs of this machine such as ``bash``."""
    guest_build.build(root)
    for name in programs:
        program = Path(str(shutil.which(name))).resolve()
        shutil.copy2(program, root / "usr/bin" / name)
        for library in () if _is_script(program) else guest_build._shared_libraries([program]):
            shutil.copy2(library, root / "usr/lib" / library.name)
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")


def archive_of(root: Path) -> Path:
    """An archive of a root file system, beside it."""
    archive = root.with_name(f"{root.name}.tar")
    with tarfile.open(archive, "w") as file:
        file.add(root, ".", filter=images._as_root)
    return archive


def import_root(client: Any, root: Path, image: str) -> None:
    """Make an image of a root file system."""
    repository, _, tag = image.partition(":")
    client.api.import_image_from_file(str(archive_of(root)), repository=repository, tag=tag)


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def _wait_until_it_answers(process: subprocess.Popen[bytes], folder: Path) -> None:
    for _ in range(600):
        with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
            connection.connect(str(folder / "sock"))
            return
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.1)
    pytest.fail((folder / "log").read_text())

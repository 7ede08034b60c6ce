"""Sandboxes of an ordinary user whose uid and gid differ from each other and from 65534.

Root can do things that fail for other users. Run as root, these tests therefore start their programs as
another user, on a copy of the sources that this user can read.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pip
import pyseccomp
import pytest
from wheelhouse import add_wheel

import envkit
from envkit.sandboxes._rootfs import rootfs

UID, GID = (4242, 4243) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
SOURCES = Path(envkit.__file__).parent
#: The files of envkit that sandboxes and their checks import, beside the backends.
PARTS = ("errors.py", "types.py", "runtime", "sandbox")
CHECK = """
import json, sys
from envkit.sandbox.check import ESSENTIAL, self_check
from envkit.sandboxes.bubblewrap import BubblewrapBackend
from envkit.sandboxes.zygote import ZygoteBackend
backend = {"bubblewrap": BubblewrapBackend, "zygote": ZygoteBackend}[sys.argv[1]]()
failed = [f"{f.name}: {f.detail}" for f in self_check(backend, ESSENTIAL) if not f.ok]
print(json.dumps([backend.available(), *failed]))
"""
#: Tries to pass the limits through bubblewrap's own process, looks for the host, and ends by a signal.
ATTACK = """
import json, resource, sys
from envkit.sandbox import Limits
from envkit.sandboxes._linux import cgroup, procfs
from envkit.sandboxes.bubblewrap import BubblewrapBackend
from envkit.sandboxes.zygote import ZygoteBackend
backend = {"bubblewrap": BubblewrapBackend, "zygote": ZygoteBackend}[sys.argv[1]]()
LOOK = '''
import json, os
opened, lines = [], []
for name in ("mem", "maps", "root", "environ", "cmdline", "fd", "task"):
    for flags in (os.O_RDONLY, os.O_RDWR):
        try: opened.append([name, os.open("/proc/1/" + name, flags)])
        except OSError: pass
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("cmdline", "environ", "mountinfo"):
        try: lines.append(open("/proc/" + pid + "/" + name).read())
        except OSError: pass
print(json.dumps([opened, lines]))
'''
KILL = "import os; os.kill(os.getpid(), 9)"
with backend.create() as sandbox:
    opened, lines = json.loads(sandbox.run([sandbox.python, "-P", "-S", "-c", LOOK]).stdout)
    killed = sandbox.run([sandbox.python, "-P", "-S", "-c", KILL])
    wait = [sandbox.python, "-P", "-S", "-uc", "print(input()); input()"]
    peer = sandbox.open(wait, limits=Limits(processes=8))
    peer.ask(b"up", 20)
    tree = peer._tree
    first = tree._init if sys.argv[1] == "bubblewrap" else procfs.family(tree._init.pid)[1]
    bounds = [resource.prlimit(first, kind)[1] for kind in (resource.RLIMIT_AS, resource.RLIMIT_NPROC)]
    peer.close()
print(json.dumps([[str(path) for path in cgroup.parents()], opened, lines, killed.stop, bounds]))
"""
MOUNT = """
import os
from envkit.sandbox import Quota
from envkit.sandboxes._workspace.mounts import shared_mounts
mounts = shared_mounts(os.getpid(), os.geteuid())
mount = mounts.mount(Quota(2**20, 16))
owner = os.fstat(mount.root)
print(owner.st_uid, owner.st_gid, os.fstatvfs(mount.root).f_blocks * os.fstatvfs(mount.root).f_frsize)
"""


#: Installs a package from a folder of wheels, and imports it in a sandbox that also holds a data file.
CONTENTS = """
import json, sys
from pathlib import Path
from envkit.sandbox import Contents
from envkit.sandbox.check import self_check
from envkit.sandbox.check.isolation import ISOLATION
from envkit.sandboxes.bubblewrap import BubblewrapBackend
from envkit.sandboxes.zygote import ZygoteBackend
backend = {"bubblewrap": BubblewrapBackend, "zygote": ZygoteBackend}[sys.argv[1]]()
backend = backend.with_contents(Contents(("plain",), data=(Path(sys.argv[2]),)))
with backend.create() as sandbox:
    read = "import plain; print(plain.answer, open('/data/words.txt').read())"
    found = sandbox.run([sandbox.python, "-c", read])
failed = [f"{f.name}: {f.detail}" for f in self_check(backend, ISOLATION) if not f.ok]
print(json.dumps([found.stdout.decode(), found.stderr.decode(), *failed]))
"""


@dataclass(frozen=True)
class OrdinaryUser:
    """Runs Python programs as another user, with a home folder of its own.

    Args:
        folder: holds the sources and the home.
        python: an interpreter that the user can run.
    """

    folder: Path
    python: str

    def run(self, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        prefix: list[str] = []
        if os.geteuid() == 0:
            prefix = ["setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups", "--inh-caps=-all"]
        variables = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(self.folder / "sources"),
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            **environment,
        }
        return subprocess.run(
            [*prefix, self.python, "-c", code, *arguments],
            env={name: value for name, value in variables.items() if value},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=180,
        )


@pytest.fixture(scope="module")
def user() -> Iterator[OrdinaryUser]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        package = folder / "sources/envkit"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        for part in PARTS:
            copy = shutil.copytree if (SOURCES / part).is_dir() else shutil.copy
            copy(SOURCES / part, package / part)
        shutil.copytree(Path(sys.modules["envkit.sandboxes"].__path__[0]), package / "sandboxes")
        shutil.copy(Path(pyseccomp.__file__), folder / "sources")
        shutil.copytree(Path(pip.__file__).parent, folder / "sources/pip")
        for owned in ("home", "tmp"):
            (folder / owned).mkdir()
            if os.geteuid() == 0:
                os.chown(folder / owned, UID, GID)
        subprocess.run(["chmod", "-R", "a+rX", str(folder / "sources")], check=True)
        python = Path(sys.executable).resolve()
        if not rootfs.reachable(python, UID):  # for example an interpreter in root's home
            python = rootfs.root_folder(UID) / "usr/bin/python3"
        yield OrdinaryUser(folder, str(python))


def test_the_mount_helper_keeps_the_users_uid_and_gid(user: OrdinaryUser) -> None:
    done = user.run(MOUNT)
    assert done.stdout.split() == [str(UID), str(GID), str(2**20)], done


@pytest.mark.parametrize("backend", ["bubblewrap", "zygote"])
def test_sandboxes_of_an_ordinary_user_pass_the_essential_checks(user: OrdinaryUser, backend: str) -> None:
    done = user.run(CHECK, backend)
    assert done.returncode == 0, done
    assert json.loads(done.stdout) == [None], done


@pytest.mark.parametrize("backend", ["bubblewrap", "zygote"])
def test_without_control_groups_an_ordinary_users_sandbox_is_as_tight(
    user: OrdinaryUser, backend: str
) -> None:
    done = user.run(ATTACK, backend)
    assert done.returncode == 0, done
    groups, opened, lines, stop, bounds = json.loads(done.stdout)
    if os.geteuid() == 0:  # the user has no rights on this machine's control groups
        assert groups == []
    assert opened == []
    hosts = [str(user.folder), "envkit-lease", ".cache"]
    assert len(lines) >= 3
    assert [path for path in hosts if any(path in line for line in lines)] == []
    assert stop == "signaled"
    if not groups:
        assert bounds == [512 * 2**20, 9 if backend == "bubblewrap" else 8]


@pytest.mark.parametrize("backend", ["bubblewrap", "zygote"])
def test_an_ordinary_user_has_packages_and_data(user: OrdinaryUser, backend: str) -> None:
    index = user.folder / "index"
    index.mkdir(mode=0o755, exist_ok=True)
    add_wheel(index, "plain", {"plain.py": "answer = 42"}).chmod(0o644)
    (index / "words.txt").write_text("read")
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}
    done = user.run(CONTENTS, backend, str(index / "words.txt"), **settings)
    assert done.returncode == 0, done
    assert json.loads(done.stdout) == ["42 read\n", ""], done


@pytest.mark.skipif(os.geteuid() != 0, reason="changes the sources back")
def test_reading_the_group_after_unshare_makes_mounting_fail(user: OrdinaryUser) -> None:
    helper = user.folder / "sources/envkit/sandboxes/_workspace/guest_mount_helper.py"
    good = helper.read_text()
    line = next(line for line in good.splitlines() if line.strip().startswith("group = os.getegid()"))
    after = next(line for line in good.splitlines() if "LIBC.unshare(NEWUSER | NEWNS)" in line)
    helper.write_text(good.replace(f"{line}\n", "").replace(after, f"{after}\n{line}"))
    try:
        done = user.run(MOUNT)
        assert "Operation not permitted" in done.stderr, done
    finally:
        helper.write_text(good)


def test_the_error_without_a_home_names_the_cache_variable(user: OrdinaryUser) -> None:
    done = user.run(CHECK, "bubblewrap", HOME="", XDG_CACHE_HOME="")
    if os.geteuid() == 0:  # this uid has no account
        assert "set XDG_CACHE_HOME" in done.stderr + done.stdout, done
    assert "RuntimeError" not in done.stderr


CACHE = """
import os, sys
from pathlib import Path
from envkit.sandboxes._rootfs import rootfs
os.umask(0o002)
folder = Path(os.environ["XDG_CACHE_HOME"])
folder.mkdir(mode=0o755)
if sys.argv[1] == "link":
    (folder / "elsewhere").mkdir(mode=0o755)
    (folder / "envkit").symlink_to(folder / "elsewhere")
elif sys.argv[1]:
    (folder / "envkit").mkdir()
    (folder / "envkit").chmod(int(sys.argv[1], 8))
print(rootfs.cache(os.geteuid()))
"""


def test_the_cache_of_a_user_whose_files_are_open_to_a_group(user: OrdinaryUser) -> None:
    homes = iter(str(user.folder / "home" / f"cache-{number}") for number in range(4))
    for state, found in (("", "envkit"), ("755", "envkit"), ("link", "elsewhere")):
        home = next(homes)
        done = user.run(CACHE, state, XDG_CACHE_HOME=home)
        assert done.stdout == f"{home}/{found}\n", done
    home = next(homes)
    done = user.run(CACHE, "775", XDG_CACHE_HOME=home)
    if os.geteuid() == 0:  # otherwise this user may have another cache, in /var
        assert f"chmod go-w {home}/envkit" in done.stderr, done

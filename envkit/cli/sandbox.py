"""Commands on sandboxes: check one, build Docker's images, remove what killed runs left behind."""

from __future__ import annotations

import enum
import os
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from envkit.cli.help import Command
from envkit.cli.options import Json, complete_environments, complete_sandboxes
from envkit.cli.output import emit, err, out
from envkit.errors import ConfigError, EnvkitError, MissingExtraError, SandboxUnavailable

if TYPE_CHECKING:
    from envkit.sandbox import Contents, SandboxBackend
    from envkit.sandboxes._rootfs.layers import RemovedLayer

app = typer.Typer(no_args_is_help=True, help="Check sandboxes, build their images, remove leftovers.")


class _From(enum.StrEnum):
    """Source of an image: ``auto``, or one of `envkit.sandboxes._docker.images.KINDS`."""

    AUTO = "auto"
    HOST = "host"
    DOCKERFILE = "dockerfile"
    DEBIAN = "debian"


@app.command(cls=Command)
def check(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="auto, or a name from `envkit list`.", autocompletion=complete_sandboxes
        ),
    ] = "auto",
    runtime: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Docker only: the container runtime, such as runsc."),
    ] = None,
    env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Check it with the packages, data and image of this environment, which are installed first.",
            autocompletion=complete_environments,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that a sandbox isolates code, enforces its limits and keeps its protocol, case by case."""
    from envkit.env.registry import environment
    from envkit.sandbox.check import self_check
    from envkit.sandbox.choice import sandbox_backend

    kind = None if env is None else environment(env)
    image = "" if kind is None else kind.image
    backend = sandbox_backend(name, image) if runtime is None else _docker_with(runtime, name)
    if kind is not None:
        backend = kind.equip(backend)
    findings = self_check(backend)
    failed = [finding for finding in findings if not finding.ok]
    if as_json:
        cases = [{"name": case.name, "ok": case.ok, "detail": case.detail} for case in findings]
        lock = str(backend.lock)
        emit({"sandbox": backend.name, "isolated": backend.isolated, "contents": lock, "cases": cases})
    else:
        for finding in failed:
            out.print(f"[red]no[/] {finding.name}: {escape(finding.detail)}")
        held = f", with {backend.lock}" if backend.lock.digest else ""
        line = f"{backend.name}{held}: {len(findings) - len(failed)} of {len(findings)} cases hold"
        out.print(line, soft_wrap=True, markup=False)
    if failed:
        raise typer.Exit(1)


def _docker_with(runtime: str, name: str) -> SandboxBackend:
    from envkit.sandboxes.docker import DockerBackend

    if name != "docker":
        raise ConfigError(f"--runtime is only for docker, found {name!r}; use: envkit sandbox check docker")
    backend = DockerBackend(runtime=runtime)
    if problem := backend.available():
        raise SandboxUnavailable(f"sandbox {name!r}: {problem}")
    return backend


@app.command(cls=Command)
def build(
    source: Annotated[
        _From,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="Where the image's Python comes from. dockerfile: an image registry. host: this machine's "
            "Python. debian: a Debian mirror. auto: the first of these that works.",
        ),
    ] = _From.AUTO,
    base: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="Base image for --from dockerfile. Default: python:3.X-slim."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build the image even if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Build the image of Docker sandboxes ahead of time, and run Python in it."""
    from envkit.sandboxes import docker
    from envkit.sandboxes._docker.images import KINDS

    if base is not None and source is not _From.DOCKERFILE:
        raise ConfigError(f"--base needs --from dockerfile, found --from {source}; leave --base out")
    kinds = KINDS if source is _From.AUTO else (source.value,)
    image, passed_over = docker.build(kinds, base=base, force=force)
    if as_json:
        emit({"image": image, "passed_over": passed_over})
        return
    for kind, problem in passed_over.items():
        err.print(f"{kind} does not work: {escape(problem)}", soft_wrap=True)
    built = f"built in {image.seconds:.1f} s" if image.made else "exists already"
    line = f"{image.tag} from {image.kind}: {built}, {image.size_bytes / 1e6:.0f} MB, {image.id}"
    out.print(line, soft_wrap=True, markup=False)
    if docker.DockerBackend().image != image.kind:
        out.print(f"to use it: export {docker.IMAGE_VARIABLE}={image.kind}", soft_wrap=True, markup=False)


@app.command(cls=Command)
def reap(as_json: Json = False) -> None:
    """Remove leftovers of dead processes (folders, control groups, containers), old images and packages.

    Every run does this at its start, except for images and packages. Packages and data of sandboxes are
    removed if no installed environment declares them and no process has used them for 30 days.
    """
    from envkit.sandboxes import docker
    from envkit.sandboxes._sandbox import reap_leftovers

    removed = {"folders": reap_leftovers(), "containers": list[str](), "images": list[str]()}
    try:
        removed["containers"] = docker.reap()
        removed["images"] = docker.reap_images()
    except (SandboxUnavailable, MissingExtraError) as error:
        err.print(f"Docker was skipped: {escape(str(error))}", soft_wrap=True)
    layers = _reap_layers()
    if as_json:
        emit({**removed, "layers": layers})
        return
    for kind, names in removed.items():
        out.print(f"{kind}: {', '.join(names) or 'none'}", soft_wrap=True, markup=False)
    told = [f"{' '.join(one.packages) or one.name} ({one.size_bytes / 1e6:.1f} MB)" for one in layers]
    out.print(f"packages and data: {', '.join(told) or 'none'}", soft_wrap=True, markup=False)


def _reap_layers() -> list[RemovedLayer]:
    """Remove unused packages and data; none if an environment does not load, because it may declare them."""
    from envkit.env import registry
    from envkit.runtime.plugins import names
    from envkit.sandbox.contents import declared_contents
    from envkit.sandboxes._rootfs import layers
    from envkit.sandboxes._rootfs.rootfs import NOBODY

    declared: list[Contents] = []
    for name in names("environment"):
        try:
            declared.append(declared_contents(registry.environment(name)))
        except Exception as error:  # a plugin's import may raise anything
            problem = f"environment {name} does not load, and may declare them: {error}"
            err.print(f"Packages were skipped: {escape(problem)}", soft_wrap=True)
            return []
    try:
        return layers.reap(os.geteuid() or NOBODY, declared)
    except EnvkitError as error:
        err.print(f"Packages were skipped: {escape(str(error))}", soft_wrap=True)
        return []

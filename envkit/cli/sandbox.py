"""Commands about sandboxes: try them, make Docker's images, clear away what killed runs left behind."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from envkit.cli.options import Json
from envkit.cli.ui import emit, err, out
from envkit.errors import ConfigError, MissingExtraError, SandboxUnavailable

if TYPE_CHECKING:
    from envkit.sandbox import SandboxBackend

app = typer.Typer(no_args_is_help=True, help="Try sandboxes, make their images, and clear away leftovers.")


class _From(enum.StrEnum):
    """What an image is made from; but for ``auto``, `envkit.sandboxes._docker.images.KINDS`."""

    AUTO = "auto"
    HOST = "host"
    DOCKERFILE = "dockerfile"
    DEBIAN = "debian"


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="auto, or a name from `envkit list`.")] = "auto",
    runtime: Annotated[
        str | None, typer.Option(help="Docker only: what runs its containers, such as runsc.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Try whether a sandbox isolates, holds its limits and does its job, case by case."""
    from envkit.registry import sandbox_backend
    from envkit.sandbox_check import self_check

    backend = sandbox_backend(name) if runtime is None else _docker_under(runtime, name)
    findings = self_check(backend)
    failed = [finding for finding in findings if not finding.ok]
    if as_json:
        cases = [{"name": one.name, "ok": one.ok, "detail": one.detail} for one in findings]
        emit({"sandbox": backend.name, "isolated": backend.isolated, "cases": cases})
    else:
        for finding in failed:
            out.print(f"[red]no[/] {finding.name}: {escape(finding.detail)}")
        out.print(f"{backend.name}: {len(findings) - len(failed)} of {len(findings)} cases hold")
    if failed:
        raise typer.Exit(1)


def _docker_under(runtime: str, name: str) -> SandboxBackend:
    from envkit.sandboxes.docker import DockerBackend

    if name != "docker":
        raise ConfigError(f"--runtime is for docker; found sandbox {name!r}: envkit sandbox check docker")
    backend = DockerBackend(runtime=runtime)
    if problem := backend.available():
        raise SandboxUnavailable(f"sandbox {name!r}: {problem}")
    return backend


@app.command()
def build(
    source: Annotated[
        _From,
        typer.Option(
            "--from",
            help="dockerfile: Python from a registry. host: the one that runs this. debian: Debian's, from a "
            "mirror. auto: the first of them that works.",
        ),
    ] = _From.AUTO,
    base: Annotated[
        str | None,
        typer.Option(help="The image whose Python --from dockerfile takes; by default python:3.X-slim."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make it anew, although it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Make the image of Docker's sandboxes ahead of need, and run Python in it."""
    from envkit.sandboxes import docker
    from envkit.sandboxes._docker.images import KINDS

    if base is not None and source is not _From.DOCKERFILE:
        raise ConfigError(f"--base is for --from dockerfile; found --from {source}")
    kinds = KINDS if source is _From.AUTO else (source.value,)
    made, passed_over = docker.build(kinds, base=base, force=force)
    if as_json:
        emit({"image": made, "passed_over": passed_over})
        return
    for kind, problem in passed_over.items():
        err.print(f"not from {kind}: {escape(problem)}", soft_wrap=True)
    done = f"made in {made.seconds:.1f} s" if made.made else "was there already"
    line = f"{made.tag} from {made.kind}: {done}, {made.size_bytes / 1e6:.0f} MB, {made.id}"
    out.print(line, soft_wrap=True, markup=False)
    if docker.DockerBackend().image != made.kind:
        out.print(f"to use it: export {docker.IMAGE_VARIABLE}={made.kind}", soft_wrap=True, markup=False)


@app.command()
def reap(as_json: Json = False) -> None:
    """Remove folders, control groups and containers whose owner is dead, and images that are out of date.

    Every run does so at its start, but for the images.
    """
    from envkit.sandboxes import docker
    from envkit.sandboxes._sandbox import reap_leftovers

    removed = {"folders": reap_leftovers(), "containers": list[str](), "images": list[str]()}
    try:
        removed["containers"] = docker.reap()
        removed["images"] = docker.reap_images()
    except (SandboxUnavailable, MissingExtraError) as error:
        err.print(f"Docker not looked at: {escape(str(error))}", soft_wrap=True)
    if as_json:
        emit(removed)
        return
    for kind, names in removed.items():
        out.print(f"{kind}: {', '.join(names) or 'none'}", soft_wrap=True, markup=False)

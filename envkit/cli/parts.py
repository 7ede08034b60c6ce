"""Options and steps that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from envkit.display import Display
    from envkit.sandbox import SandboxBackend

#: The environment that is meant where none is named.
DEFAULT_ENVIRONMENT = "code-editor"

EnvName = Annotated[str, typer.Option("--env", help="Environment name from `envkit list`.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Root = Annotated[Path, typer.Option("--root", help="Where run folders go.")]
Unsafe = Annotated[bool, typer.Option("--unsafe", help="Allow a sandbox that does not isolate.")]
SandboxName = Annotated[str, typer.Option("--sandbox", help="auto, or a name from `envkit list`.")]


def proved_backend(name: str, unsafe: bool, display: Display) -> SandboxBackend:
    """The sandbox, its isolation proved before anything runs in it.

    Raises:
        SandboxError: it does not isolate.
        RegistryError: there is none of that name.
    """
    from envkit import registry
    from envkit.sandbox_check import require_isolation

    backend = registry.sandbox_backend(name)
    if unsafe and not backend.isolated:
        display.say(f"[yellow]sandbox {backend.name} does not isolate; model output runs as this user[/]")
        return backend
    require_isolation(backend)
    return backend

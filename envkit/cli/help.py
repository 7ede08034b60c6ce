"""Command classes whose help names values by meaning, such as MINUTES or FILE, not by Python type."""

from __future__ import annotations

from typing import Any, final

from typer.core import TyperArgument, TyperCommand, TyperGroup


@final
class Command(TyperCommand):
    """A command whose help shows no Python types, and whose paragraphs have the width of the terminal."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        paragraphs = (self.help or "").split("\n\n")
        self.help = "\n\n".join(" ".join(text.split()) for text in paragraphs)

    def get_params(self, ctx: Any) -> list[Any]:
        return _hide_types(super().get_params(ctx))


@final
class Group(TyperGroup):
    """A group whose help shows no Python types."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _hide_types(super().get_params(ctx))


def _hide_types(params: list[Any]) -> list[Any]:
    """Drop the types of flags and arguments, which would read ``<bool>`` and ``<path>``."""
    for param in params:
        if isinstance(param, TyperArgument):
            param.display_type_rich = _no_type
        elif param.is_flag:
            param.metavar = ""
    return params


def _no_type(ctx: Any) -> str:
    return ""

"""Describes a harness: an agent program that somebody else wrote, and how to start it."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Final

from envkit.errors import ConfigError
from envkit.runtime.files import read_toml
from envkit.runtime.plain import decode
from envkit.sandbox import Limits

#: Model id that a harness asks for; whoever plays answers.
MODEL: Final = "policy"
_SHIPPED: Final = "envkit.env.harness"


@dataclass(frozen=True, slots=True)
class Harness:
    """An agent program that asks a model by OpenAI's API, and works on the files of its working directory.

    It runs in the episode's sandbox. ``{prompt}`` in a word of its command stands for `envkit.Env.brief`,
    ``{base_url}`` for the API's address, which is also in the environment variable ``OPENAI_BASE_URL``, and
    ``{model}`` for the model's id. Words are passed as they are: no shell reads them.

    Args:
        name: name of a shipped one, or path of the file.
        command: the program and its arguments.
        packages: lines of a pip requirements file, as in `envkit.Env.packages`.
        preload: modules of these packages that sandboxes import ahead, so that ``python3 -m MODULE`` starts
            faster.
        toolchains: as in `envkit.Env.toolchains`.
        environment: its environment variables, beside those of every command in a sandbox.
        max_calls: requests to the model in an episode, at least 1; the episode then ends.
        timeout_s: longest wait for its next chat or its end, in seconds.
        cpu_s: its CPU time in an episode, in seconds.
        memory_mb: its memory, in MiB.
        processes: processes and threads that it may have at once.
    """

    name: str
    command: tuple[str, ...]
    packages: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    toolchains: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    max_calls: int = 10
    timeout_s: float = 120.0
    cpu_s: float = 120.0
    memory_mb: int = 1024
    processes: int = 64

    def __post_init__(self) -> None:
        if not self.command or not self.command[0]:
            raise ConfigError("command is empty; give the program and its arguments")
        if self.max_calls < 1:
            raise ConfigError(f"max_calls is {self.max_calls}; it must be at least 1")
        for key in ("timeout_s", "cpu_s", "memory_mb", "processes"):
            if not 0 < getattr(self, key) < 1e9:
                raise ConfigError(f"{key} is {getattr(self, key)}; it must be above 0 and finite")

    @property
    def limits(self) -> Limits:
        """Limits of the program and the relay together, for the whole episode.

        Wall time has none, because it also runs while the model answers. ``timeout_s`` bounds each wait for
        the program, and ``max_calls`` their number.
        """
        return Limits(
            cpu_s=self.cpu_s,
            wall_s=math.inf,
            memory_bytes=self.memory_mb * 2**20,
            processes=self.processes,
            output_bytes=64 * 2**20,
        )

    def argv(self, prompt: str, base_url: str) -> list[str]:
        """The command for a task."""
        words = {"{prompt}": prompt, "{base_url}": base_url, "{model}": MODEL}
        return [_filled(word, words) for word in self.command]


def _filled(word: str, words: Mapping[str, str]) -> str:
    """A word with its placeholders replaced; what they stand for is not looked at again."""
    for placeholder, text in words.items():
        before, found, after = word.partition(placeholder)
        if found:
            return _filled(before, words) + text + _filled(after, words)
    return word


def load_harness(name_or_path: str) -> Harness:
    """Load a harness that envkit ships, by name, or a TOML file with the fields of `Harness`, by path.

    Raises:
        ConfigError: no harness has that name, or the file cannot be read, or a key or value in it is wrong;
            the message names file and key.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        try:
            values = read_toml(path)
        except ConfigError as error:
            where = "" if path.is_absolute() else f"; it is looked for in {Path.cwd()}"
            raise ConfigError(f"harness {error}{where}") from error
    elif name_or_path in shipped_harnesses():
        values = tomllib.loads(resources.files(_SHIPPED).joinpath(f"{name_or_path}.toml").read_text("utf-8"))
    else:
        raise ConfigError(
            f"no harness is named {name_or_path!r}; choose one of: {', '.join(shipped_harnesses())}, or give "
            "the path of a .toml file"
        )
    try:
        return decode(Harness, {**values, "name": name_or_path}, "the harness")
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{name_or_path}: {error}") from None


def shipped_harnesses() -> list[str]:
    """Names of the harnesses that envkit ships, sorted."""
    files = resources.files(_SHIPPED).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))

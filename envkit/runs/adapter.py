"""Load a trained adapter and let it act: a policy with ``act(observation)``, and its PEFT model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

from envkit.errors import ModelError, UsageError
from envkit.runtime.files import read_json_object
from envkit.types import EpisodeKey

if TYPE_CHECKING:
    from envkit.agent import Agent, Session
    from envkit.training.config import TrainConfig
    from envkit.training.policy import Policy

_CONFIG = "adapter_config.json"


@final
class Adapter:
    """A base model with a trained LoRA adapter, ready to act. Make one with `load_adapter`.

    ::

        env = envkit.make("code-editor")
        with envkit.load_adapter("runs/my-run") as adapter:
            observation, info = env.reset(seed=0)
            adapter.reset(seed=0)
            ended = False
            while not ended:
                observation, reward, terminated, truncated, info = env.step(adapter.act(observation))
                ended = terminated or truncated

    Args:
        path: the adapter's folder.
        policy: holds the weights; closed with the adapter.
        config: the settings that it was trained with, or defaults if they are not known.
        system: the system message of its conversations.
        temperature: sampling temperature.
    """

    def __init__(
        self, path: Path, policy: Policy, config: TrainConfig, system: str, temperature: float
    ) -> None:
        self.path, self.system, self.temperature = path, system, temperature
        self._policy, self._config = policy, config
        self._agent = self.agent()
        self.reset()

    @property
    def model(self) -> Any:
        """The `peft.PeftModel`, with this adapter active."""
        return self._policy.model

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        return self._policy.tokenizer

    def reset(self, *, seed: int = 0) -> None:
        """Begin a new episode; call it beside ``env.reset()``.

        Args:
            seed: seed of the sampling; the same seed and observations give the same actions.
        """
        self._session: Session = self._agent.start(EpisodeKey(seed, 0, 0, 0, ""), self.system)

    def act(self, observation: str) -> str:
        """Answer an observation with an action. All observations since `reset` are one conversation."""
        self._agent.submit(self._session, observation)
        [(_, turn)] = self._agent.collect()
        if isinstance(turn, Exception):
            raise turn
        return turn.text

    def agent(self, name: str = "adapter") -> Agent:
        """Return the policy as an `envkit.Agent`, for `envkit.Rollouts`, which plays many episodes at once.

        Args:
            name: the agent's name in trajectories.
        """
        from envkit.agents.local import LocalAgent
        from envkit.engine.protocol import Sampling

        config = self._config
        return LocalAgent(
            name,
            self._policy.engine,
            self._policy.renderer,
            Sampling(self.temperature, config.max_completion_length, stop_strings=config.stop_strings),
            config.turns,
            max_context_length=config.max_context_length,
        )

    def close(self) -> None:
        """Free the engine; the adapter cannot act any more."""
        self._policy.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load_adapter(
    path: Path | str,
    *,
    step: int | None = None,
    model: Path | str | None = None,
    temperature: float = 0.7,
    system: str | None = None,
    dtype: str = "auto",
    device: str = "cpu",
) -> Adapter:
    """Load a trained adapter on its base model.

    Args:
        path: a training run's folder, whose newest checkpoint is loaded, or an adapter's own folder.
        step: load the checkpoint of this step instead.
        model: the base model's id or folder; by default the one that the adapter was trained on.
        temperature: sampling temperature; 0 always takes the likeliest token.
        system: system message of its conversations; by default that of the run's environment.
        dtype: dtype of the base model: ``"float32"``, ``"bfloat16"``, or ``"auto"`` for the faster one here.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        UsageError: the folder holds no adapter, or the adapters of several seeds.
        ModelError: the base model does not exist, or is not the one that the adapter belongs to.
        MissingExtraError: PyTorch is not installed.
    """
    from dataclasses import replace

    from envkit.env import Env
    from envkit.models import DEFAULT_MODEL, require_training, resolve
    from envkit.training.config import TrainConfig

    require_training()
    from envkit.models.adapter_folder import recorded_control
    from envkit.runs.folder.run_records import base_of

    folder = adapter_folder(Path(path), step)
    trained, environment = training_of(folder)
    rank, alpha = lora_settings(folder)
    base = str(model or base_of([folder]) or DEFAULT_MODEL)
    config = replace(
        trained or TrainConfig(),
        model=base,
        lora_r=rank,
        lora_alpha=alpha,
        control=recorded_control(folder),
        dtype=dtype,
        device=device,
        engine="torch",
        kv_cache_mb=0,  # the run's may have been chosen on a larger machine
    )
    from envkit.runs.folder.machine import resolve_dtype, use_threads
    from envkit.training.policy import Policy

    use_threads()
    policy = Policy.of(resolve(base), resolve_dtype(config), trains=False)
    policy.add(folder, "trained")
    policy.model.set_adapter("trained")
    policy.model.delete_adapter("default")  # Policy starts with an untrained one
    policy.model.set_adapter("trained")  # with whole weights, PEFT has none active after a deletion
    policy.load_into_engine([folder])
    policy.model.set_attn_implementation("sdpa")  # the engine has a copy; this one is the caller's
    message = system if system is not None else environment.system if environment else Env.system
    return Adapter(folder, policy, config, message, temperature)


def lora_settings(folder: Path) -> tuple[int, int]:
    """Rank and alpha of an adapter.

    Raises:
        ModelError: its settings cannot be read.
    """
    settings = _read_json(folder / _CONFIG)
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not (isinstance(rank, int) and isinstance(alpha, int | float) and alpha == int(alpha) >= 1):
        raise ModelError(
            f"{folder / _CONFIG}: r is {rank!r} and lora_alpha is {alpha!r}; expected whole numbers, "
            "alpha at least 1"
        )
    return rank, int(alpha)


def adapter_folder(path: Path, step: int | None = None) -> Path:
    """Find the adapter folder that a path names.

    Raises:
        UsageError: there is none, or there are several.
    """
    if (path / _CONFIG).is_file():
        if step is not None:
            raise UsageError(f"{path} is one adapter; step={step} needs the run's folder")
        return path
    if seeds := sorted(found.name for found in path.glob("seed-*")):
        raise UsageError(f"{path} trained an adapter for each seed; give one: {path / seeds[0]}")
    checkpoints = {
        int(found.parent.name.removeprefix("step-")): found.parent
        for found in path.glob("checkpoints/step-*/" + _CONFIG)
        if found.parent.name.removeprefix("step-").isdecimal()
    }
    if step is not None and step not in checkpoints:
        steps = ", ".join(map(str, sorted(checkpoints))) or "none"
        raise UsageError(f"{path} has no checkpoint of step {step}; it has: {steps}")
    if checkpoints:
        return checkpoints[max(checkpoints) if step is None else step]
    if (path / "sft" / _CONFIG).is_file():
        return path / "sft"
    raise UsageError(f"{path}: no adapter there; expected a training run's folder or a PEFT adapter folder")


def training_of(adapter: Path) -> tuple[TrainConfig | None, Any]:
    """Read settings and environment class of the run that holds an adapter; ``None`` if unknown."""
    from envkit.env import registry
    from envkit.runs.folder.run_records import environments_of, training_run_of
    from envkit.training.config import of_run

    if (run := training_run_of(adapter)) is None:
        return None, None
    config, environments = of_run(run), environments_of(run)
    kind = registry.environment(environments[0]) if len(environments) == 1 else None
    return config, kind


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error})") from error

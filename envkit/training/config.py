"""Training configuration: few fields, TRL's names where TRL has one."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from envkit.errors import ConfigError, StoreError
from envkit.models.adapter_folder import WITHOUT_RANK
from envkit.runtime.files import read_toml
from envkit.runtime.plain import decode, encode
from envkit.runtime.store import RunFolder

#: What can be trained of a model; see `TrainConfig`.
CONTROLS: Final = ("all-linear", "attention", "mlp", *WITHOUT_RANK)


@dataclass(frozen=True, slots=True)
class Mix:
    """One environment of several that train an adapter together: a ``[[mix]]`` of a TOML file.

    Args:
        env: its registered name.
        weight: its share of the task visits, and of the warm start's examples, relative to the others'.
    """

    env: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ConfigError(f"weight of {self.env} is {self.weight}; it must be positive and finite")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Hyperparameters of a training run.

    Args:
        model: model id, folder or hub id. ``"auto"`` takes the default model, or the small one for a short
            run or on a machine with little free memory; see `envkit.models.choose_model`.
        backend: trainer: ``"envkit"``, or ``"trl"``, which is slower on one machine.
        engine: sampler: ``"torch"``, or ``"vllm"``, whose log-probabilities are less exact. A run with vLLM
            may not resume bit for bit.
        dtype: of the base, for sampling and training: ``"float32"``, ``"bfloat16"``, or ``"auto"`` for the
            faster one on this machine. The adapter is always float32.
        device: of base and adapter: ``"cpu"``, or ``"cuda"`` for one NVIDIA GPU. A run on a GPU may not
            resume bit for bit.
        seed: of training's random draws. Evaluation has one of its own, the same for every run.
        max_turns: actions per episode; 0 for the environment's own number, `envkit.env.Env.max_turns`.
        control: what of the model is trained. LoRA on ``"all-linear"`` layers but the head, on those of
            ``"attention"`` or of ``"mlp"`` alone; ``"steering"``: one vector for each layer, added to its
            output whatever the input (arXiv:2505.18706); or ``"full"``: the weights and biases of all linear
            layers but the head, which takes five times their memory in float32. Embeddings and norms stay.
            Learning rates must be chosen anew for these two: full fine-tuning takes about a tenth of LoRA's
            (LoRA Without Regret, 2025).
        lora_r: rank of the adapter; for ``"steering"`` and ``"full"``, neither it nor ``lora_alpha`` matters.
        lora_alpha: the update is scaled by ``lora_alpha / lora_r``.
        warm_start: folder of an adapter that RL begins with, such as another run's ``sft``. It replaces this
            run's own SFT, so ``sft_examples`` must be 0. ``""`` for none.
        sft_examples: examples of the warm start: known answers to training tasks. 0 skips the warm start.
        sft_learning_rate: peak of a linear schedule.
        sft_batch_size: examples per step.
        max_steps: policy-gradient steps; 0 for the warm start alone, on all tasks.
        learning_rate: AdamW, constant after a short warm-up. AdamW moves every weight by about this much per
            step, also where the gradient is only noise. So a larger rate needs more ``groups_per_step``.
        warmup_steps: steps of linear warm-up.
        groups_per_step: task visits per step.
        num_generations: episodes per visit (G).
        temperature: of sampling in training, > 0.
        max_completion_length: tokens per turn.
        stop_strings: texts that end a turn, like the model's end-of-turn token; each stays in the turn.
            Useful for an untrained model that keeps talking after its answer, for example a closing code
            fence between two line breaks. Evaluate with the same ones. Not with engine ``"vllm"``.
        max_context_length: longest context of a turn, in tokens. A longer one is truncated to the episode's
            first and latest observation, whatever their length. 0 for no limit but the model's own. A turn
            beyond that one is an empty answer.
        loss_type: ``"dapo"``, ``"grpo"``, ``"dr_grpo"`` or ``"cispo"``; see
            `envkit.training.learner.loss`.
        advantage: ``"group"``: what an episode earned from a turn on, minus the group's mean. ``"solved"``: 1
            for a solved episode, 0 for others: rejection sampling (RAFT, arXiv:2304.06767), the baseline that
            learns from successes only. ``"hacked"``: as ``"group"``, with 1 for a solved episode that fails a
            held-out check and 0 for any other, to find ways around the reward; see
            `envkit.runs.before_after.attack`.
        shaping: check name -> positive weight. Its score times this weight is added to an episode's reward in
            training only. Use it for a check of weight 0 that measures progress when the reward is too rare.
            Rewards and mixed groups are reported without it.
        mix: the environments and their weights, if there are several; by default all weigh the same.
            Baselines are each task's own in any case: an episode is compared with others of its group.
        worst_task_weight: with several environments, one that is never solved is visited this many times as
            often as one that is always solved, by the solve rates of the latest visits. 1, the default, keeps
            the shares of ``mix``. More helps environments that lag behind (arXiv:1911.08731).
        num_iterations: gradient steps on each batch of episodes; ``epsilon`` limits how far later ones go.
            Each costs another pass of the learner over the batch. Only with backend ``"envkit"`` and an
            `importance_sampling_mode` of ``"none"``.
        importance_sampling_level: ``"token"``, or ``"sequence"`` for one probability ratio per episode.
        epsilon: the probability ratio is clipped below at ``1 - epsilon``, except with ``"cispo"``. In the
            first gradient step on a batch, the ratio differs from 1 only by rounding, if at all; with an
            `importance_sampling_mode` it is 1. So this acts in later steps, see `num_iterations`.
        epsilon_high: the ratio is clipped above at ``1 + epsilon_high``; ``None`` means ``epsilon``. With
            ``"cispo"`` it is the upper limit itself, at least 1 (5.0 is usual).
        beta: weight of the KL divergence from the model without its adapter. Above 0, every step costs one
            more forward pass, and groups of equal rewards have a gradient too.
        min_entropy: in nats per sampled token. A step below it ends the run: the policy has collapsed.
        max_kl: KL divergence from the model without its adapter, in nats per token. A step above it ends the
            run. Unless ``None``, it costs a forward pass like ``beta``.
        alarm_steps: run the held-out checks on solved episodes every this many steps; 0 for never.
        max_hacked: share of tasks whose solved episodes may fail a held-out check. Significantly more end the
            run, because the policy earns the reward without solving the tasks.
        importance_sampling_mode: corrects for an engine that is not exact: ``"none"``, ``"token_truncate"``,
            ``"token_mask"``, ``"sequence_truncate"`` or ``"sequence_mask"``.
        importance_sampling_clip_max: importance weights above it are clipped or masked.
        max_grad_norm: the gradient norm is clipped to this.
        save_steps: steps between checkpoints.
        max_tokens_per_forward: packed tokens of one forward and backward pass, the prompt included. Beside a
            prompt there is always room for a quarter of this number, and for one row. Larger groups are
            split; their prompt is computed once. 0 for what fits the model: 768 to 2048, more of them for a
            smaller one. RL with backend ``"trl"`` ignores it: there, a group is one pass, padded to its
            longest episode.
        kv_cache_mb: memory for the keys and values of sampling, in MB. More of it decodes more rows together.
            0 for half of what training leaves free when the run begins, 256 to 4096; with engine ``"vllm"``,
            at least what a conversation as long as the model's context takes.
    """

    model: str = "auto"
    backend: str = "envkit"
    engine: str = "torch"
    dtype: str = "auto"
    device: str = "cpu"
    seed: int = 0
    max_turns: int = 0
    control: str = "all-linear"
    lora_r: int = 16
    lora_alpha: int = 32
    warm_start: str = ""
    sft_examples: int = 720
    sft_learning_rate: float = 5e-4
    sft_batch_size: int = 12
    max_steps: int = 40
    learning_rate: float = 1e-4
    warmup_steps: int = 2
    groups_per_step: int = 20
    num_generations: int = 8
    temperature: float = 1.0
    max_completion_length: int = 384
    stop_strings: tuple[str, ...] = ()
    max_context_length: int = 0
    loss_type: str = "dapo"
    advantage: str = "group"
    shaping: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    mix: tuple[Mix, ...] = ()
    worst_task_weight: float = 1.0
    num_iterations: int = 1
    importance_sampling_level: str = "token"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    beta: float = 0.0
    min_entropy: float = 0.001
    max_kl: float | None = None
    alarm_steps: int = 10
    max_hacked: float = 0.2
    importance_sampling_mode: str = "none"
    importance_sampling_clip_max: float = 3.0
    max_grad_norm: float = 1.0
    save_steps: int = 5
    max_tokens_per_forward: int = 0
    kv_cache_mb: int = 0

    def __post_init__(self) -> None:
        self._check_fields()
        self._check_together()

    def _check_fields(self) -> None:
        """Refuse values that are wrong whatever the others are."""
        for field, minimum in _MINIMUM.items():
            if getattr(self, field) < minimum:
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be at least {minimum}")
        for field, maximum in _MAXIMUM.items():
            if getattr(self, field) > maximum:
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be at most {maximum}")
        for field in _POSITIVE:
            if (value := getattr(self, field)) is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{field} is {value}; it must be positive and finite")
        for field in ("beta", "min_entropy", "max_hacked"):
            if not 0 <= (value := getattr(self, field)) < float("inf"):
                raise ConfigError(f"{field} is {value}; it must be 0 or positive, and finite")
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                listed = ", ".join(choices)
                raise ConfigError(f"{field} is {getattr(self, field)!r}; expected one of: {listed}")
        if isinstance(self.stop_strings, str):  # its characters would be the strings
            raise ConfigError(f"stop_strings is {self.stop_strings!r}; expected a list of texts")
        if "" in self.stop_strings:
            raise ConfigError("stop_strings has an empty text, which would end every turn at once; remove it")
        for name, weight in self.shaping.items():
            if not 0 < weight < float("inf"):  # an aborted episode would escape a penalty
                raise ConfigError(f"shaping.{name} is {weight}; it must be positive and finite")
        mixed = [each.env for each in self.mix]
        if twice := [name for name in mixed if mixed.count(name) > 1]:
            raise ConfigError(f"mix names {twice[0]} twice; name each environment once")

    def _check_together(self) -> None:
        """Refuse values that exclude each other."""
        if 0 < self.sft_examples < self.sft_batch_size:
            raise ConfigError(
                f"sft_examples is {self.sft_examples}; it must be 0 or at least sft_batch_size, "
                f"{self.sft_batch_size}"
            )
        if self.warm_start and self.sft_examples:
            raise ConfigError(
                f"sft_examples is {self.sft_examples}, and RL begins with {self.warm_start}; set it to 0, or "
                "leave warm_start out"
            )
        if self.sft_examples == self.max_steps == 0:
            raise ConfigError("sft_examples and max_steps are both 0, so nothing is trained; set one of them")
        if self.shaping and self.advantage != "group":
            raise ConfigError(
                f"advantage {self.advantage!r} ignores rewards, and so shaping; leave one of them out"
            )
        if self.advantage == "hacked" and self.alarm_steps != 1:
            raise ConfigError(
                f"alarm_steps is {self.alarm_steps}; advantage 'hacked' needs the held-out checks in every "
                "step: set it to 1"
            )
        if self.advantage == "hacked" and self.max_hacked < 1:
            raise ConfigError(
                f"max_hacked is {self.max_hacked}; advantage 'hacked' looks for tasks that are won without "
                "the work, and this alarm would end the run when it finds them: set it to 1"
            )
        if self.engine == "vllm" and self.stop_strings:
            raise ConfigError(
                f"stop_strings is {self.stop_strings}; engine 'vllm' has no tokenizer for them: "
                "leave it empty"
            )
        if self.engine == "vllm" and self.device != "cpu":
            raise ConfigError(
                f"device is {self.device!r}; engine 'vllm' takes all of a GPU's memory: set device to 'cpu'"
            )
        if self.control in WITHOUT_RANK and (self.engine == "vllm" or self.backend == "trl"):
            other = "engine 'vllm'" if self.engine == "vllm" else "backend 'trl'"
            raise ConfigError(
                f"control is {self.control!r}, which {other} cannot train: leave one of them out"
            )
        if self.backend == "trl" and self.max_context_length:
            raise ConfigError(
                f"max_context_length is {self.max_context_length}; backend 'trl' cannot train truncated "
                "contexts: set it to 0"
            )
        if self.backend == "trl" and self.num_iterations > 1:
            raise ConfigError(
                f"num_iterations is {self.num_iterations}; backend 'trl' takes one step a batch: set it to 1"
            )
        if self.importance_sampling_mode != "none" and self.num_iterations > 1:
            raise ConfigError(
                f"num_iterations is {self.num_iterations}; with importance_sampling_mode "
                f"{self.importance_sampling_mode!r}, later steps on a batch would not be clipped: set it to 1"
            )
        if self.backend == "trl" and self.importance_sampling_mode != "none":
            raise ConfigError(
                f"importance_sampling_mode is {self.importance_sampling_mode!r}; backend 'trl' corrects "
                "only its own vLLM: set it to 'none'"
            )
        if self.loss_type == "cispo" and (self.epsilon_high is None or self.epsilon_high < 1):
            raise ConfigError(
                f"epsilon_high is {self.epsilon_high}; with loss_type 'cispo' it is the largest weight of a "
                "token, at least 1 (5.0 is usual)"
            )

    @property
    def turns(self) -> int:
        """Actions per episode.

        A run replaces ``max_turns = 0`` by its environment's number before it begins. Where no environment is
        known, 1 stands in for it.
        """
        return self.max_turns or 1

    @property
    def lora_shape(self) -> tuple[int, int]:
        """Rank and alpha of the adapter. One without a rank has rank 1 and is scaled by one."""
        return (1, 1) if self.control in WITHOUT_RANK else (self.lora_r, self.lora_alpha)

    @property
    def weights(self) -> dict[str, float]:
        """Weights by environment; one without an entry weighs 1."""
        return {each.env: each.weight for each in self.mix}

    @property
    def is_warm(self) -> bool:
        """True if RL begins with an adapter that has learned from known answers."""
        return self.sft_examples > 0 or bool(self.warm_start)

    @property
    def is_sft_alone(self) -> bool:
        """True if no RL follows the warm start."""
        return self.max_steps == 0

    @property
    def needs_reference(self) -> bool:
        """True if the loss or an alarm needs log-probabilities of the model without its adapter."""
        return self.beta > 0 or self.max_kl is not None

    def clip_range(self) -> tuple[float, float]:
        """Smallest and largest probability ratio that are not clipped."""
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        return (0.0, high) if self.loss_type == "cispo" else (1 - self.epsilon, 1 + high)


_POSITIVE = (
    *("learning_rate", "sft_learning_rate", "temperature", "epsilon", "epsilon_high", "max_grad_norm"),
    *("max_kl", "importance_sampling_clip_max", "worst_task_weight"),
)
_LEVELS, _CORRECTIONS = ("token", "sequence"), ("truncate", "mask")
_CHOICES = {
    "backend": ("envkit", "trl"),
    "engine": ("torch", "vllm"),
    "dtype": ("auto", "float32", "bfloat16"),
    "device": ("cpu", "cuda"),
    "control": CONTROLS,
    "advantage": ("group", "solved", "hacked"),
    "loss_type": ("dapo", "grpo", "dr_grpo", "cispo"),
    "importance_sampling_level": _LEVELS,
    "importance_sampling_mode": (
        "none",
        *(f"{level}_{correction}" for level in _LEVELS for correction in _CORRECTIONS),
    ),
}
_MINIMUM = {
    "seed": 0,
    "max_turns": 0,
    "lora_r": 1,
    "lora_alpha": 1,
    "sft_examples": 0,
    "sft_batch_size": 1,
    "max_steps": 0,
    "warmup_steps": 0,
    "alarm_steps": 0,
    "groups_per_step": 1,
    "num_generations": 2,
    "num_iterations": 1,
    "max_completion_length": 1,
    "max_context_length": 0,
    "save_steps": 1,
    "max_tokens_per_forward": 0,
    "kv_cache_mb": 0,
    "worst_task_weight": 1.0,
}
#: Upper bounds. Larger values only run out of memory, or never end.
_MAXIMUM = {
    "seed": 2**32 - 1,  # numpy's limit
    "max_turns": 10_000,
    "lora_r": 1024,
    "lora_alpha": 2**16,
    "sft_examples": 10**6,
    "sft_batch_size": 4096,
    "groups_per_step": 4096,
    "num_generations": 4096,
    "num_iterations": 64,
    "max_completion_length": 2**17,
    "max_tokens_per_forward": 2**20,
    "kv_cache_mb": 2**20,
    "worst_task_weight": 1000.0,
}


#: Settings of older versions.
_REMOVED = frozenset({"torch_compile", "curriculum_tasks"})


def from_mapping(values: Mapping[str, Any], where: str) -> TrainConfig:
    """Make a configuration from plain values; ``where`` names their origin in errors.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range; names file and field.
    """
    if gone := _REMOVED.intersection(values):
        raise ConfigError(f"{where}: {min(gone)} is no setting any more; leave it out")
    known = [entry.name for entry in dataclasses.fields(TrainConfig)]
    if unknown := [key for key in values if key not in known]:
        near = difflib.get_close_matches(unknown[0], known, 1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"{where}: unknown key {unknown[0]!r}; {meant}expected one of: {', '.join(sorted(known))}"
        )
    try:
        return decode(TrainConfig, dict(values), "")
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{where}: {str(error).removeprefix('.')}") from None


def from_manifest(values: Mapping[str, Any], where: str) -> TrainConfig:
    """Read the settings of a run folder's manifest, also those of an older version.

    Raises:
        ConfigError: the run needs a setting that is gone; or see `from_mapping`.
    """
    if values.get("torch_compile", False) is not False:
        raise ConfigError(
            f"{where}: torch_compile is {values['torch_compile']!r}; this option was removed "
            "and the model is never compiled; begin the run again without it"
        )
    # Older versions had no setting ``dtype``, and used float32.
    current = {"dtype": "float32", **{key: value for key, value in values.items() if key not in _REMOVED}}
    if current.get("loss_type") == "bnpo":  # the same, by another name
        current["loss_type"] = "dapo"
    return from_mapping(current, where)


def of_run(run: RunFolder) -> TrainConfig:
    """Read the settings of a training run from its manifest.

    Raises:
        StoreError: they are not there: the manifest is damaged, or the run is of another kind.
        ConfigError: see `from_manifest`.
    """
    file, planned = run.path / "manifest.json", run.manifest.get("plan")
    if not isinstance(planned, dict):
        raise StoreError(f"{file}: no plan in it; it is damaged, or no training run's")
    settings: Any = cast("dict[str, Any]", planned).get("train", {})
    return from_manifest(settings, str(file))


def from_toml(path: Path) -> TrainConfig:
    """Read a TOML file of `TrainConfig` fields.

    Raises:
        ConfigError: no such file, not TOML, or see `from_mapping`.
    """
    return from_mapping(read_toml(path), str(path))


def to_mapping(config: TrainConfig) -> dict[str, Any]:
    """Turn a configuration into plain values for `from_mapping`."""
    return cast("dict[str, Any]", encode(config))

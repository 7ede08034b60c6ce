"""Every error that envkit raises on purpose.

::

    EnvkitError
    ├── UsageError             bad input from a person: names file and field; the CLI exits 2
    │   ├── ConfigError        a configuration key or value
    │   ├── TaskFileError      a task file (missing, empty, corrupt line)
    │   ├── ModelError         a path or id that is not a usable model
    │   ├── RegistryError      no environment or sandbox of that name
    │   ├── TooLargeError      more bytes than were asked for
    │   ├── UnpricedError      the price table has no such model or machine
    │   └── MissingExtraError  an optional dependency is not installed
    ├── ContractError          an environment, agent or sandbox broke its protocol: a bug
    │   └── CheckError         a check raised, or returned no score
    ├── SandboxError           broken machinery; never a reward
    │   ├── BrokenTask         a task's own reference fails, whatever the agent did
    │   ├── ModelUnavailable   a model that an environment asks answers nothing at present
    │   ├── SandboxUnavailable no way to isolate code on this machine
    │   └── UnenforceableLimit the backend cannot enforce a limit that was asked for
    ├── AgentError             the agent's provider did not answer; the episode is void, never a failure
    ├── StoreError             a run folder cannot be read or written
    ├── Stopped                the user asked to stop; work in progress is dropped, files are kept
    └── TrainingError          training cannot go on

Errors of one module:

- `envkit.engine.chat.UnreadableError`, a `ModelError`: the model cannot read a conversation.
- `envkit.agents.endpoint.ProviderError`, a `UsageError`: a provider refuses all requests of a kind.
- `envkit.agents.budget.BudgetError`, a `UsageError`: a call might have cost more than is left.
- `envkit.serving.decoding.decoder.DecoderStopped`, an `EnvkitError`: decoding has ended.
- `envkit.environments.sql_desk.postgres.connection.ServerSilent`, a `SandboxError`: no answer in time.
"""

from __future__ import annotations


class EnvkitError(Exception):
    """Base of every error that envkit raises on purpose."""


class UsageError(EnvkitError):
    """Bad input from a person. The message says what was found, what was expected, what to do."""


class ConfigError(UsageError):
    """A configuration key or value is not usable."""


class TaskFileError(UsageError):
    """A task file is missing, empty or corrupt."""


class ModelError(UsageError):
    """A path or id does not lead to a usable language model."""


class RegistryError(UsageError):
    """No environment or sandbox is registered under that name."""


class TooLargeError(UsageError):
    """A file, or files together, hold more bytes than the caller allowed."""


class UnpricedError(UsageError):
    """The price table has no such model or machine."""


class MissingExtraError(UsageError):
    """An optional dependency is needed and absent."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is needed here and not installed; in a clone, run: "
            f"pip install --editable '.[{extra}]'; without one: pip install 'envkit-rl[{extra}]'"
        )


class ContractError(EnvkitError):
    """An implementation broke the protocol it claims: a bug in code, not in input."""


class CheckError(ContractError):
    """A check of an environment raised an exception, or returned something that is no score.

    Either the check has a bug, or the agent left something that it does not expect. So one episode ends and
    not the run; see `envkit.rollout.Rollouts.play`.
    """


class SandboxError(EnvkitError):
    """Sandbox machinery failed. Never a reward; see `Rollouts.play` for what becomes of the episode."""


class BrokenTask(SandboxError):
    """A task's own reference does not give what it is asked for; trying again would change nothing."""


class ModelUnavailable(SandboxError):
    """A model that an environment asks answers no prompt at present, whatever the agent did."""


class SandboxUnavailable(SandboxError):
    """No sandbox backend can isolate code on this machine."""


class UnenforceableLimit(SandboxError):
    """The backend cannot enforce a limit that was asked for, so it refuses to run."""


class AgentError(EnvkitError):
    """The agent's provider did not answer: the episode is void, never a failure.

    An agent's `collect` gives it in a turn's place; it is raised nowhere.
    """


class StoreError(EnvkitError):
    """A run folder or one of its files cannot be read or written."""


class Stopped(EnvkitError):
    """The user asked to stop. Work in progress is dropped; what is in the run folder is kept."""


class TrainingError(EnvkitError):
    """Training cannot go on; the message says why and what is saved."""


#: Errors of the setup, whatever an agent did. No tool or check may turn them into an agent's mistake.
SETUP_ERRORS = (ConfigError, MissingExtraError, ModelError, RegistryError, TaskFileError)

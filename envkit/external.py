"""Applications outside the sandbox: a client for HTTP that reaches only the hosts an environment allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from envkit.env import Env
from envkit.errors import ContractError, MissingExtraError, SandboxError, UsageError

try:
    import httpx2
except ModuleNotFoundError as error:
    raise MissingExtraError("httpx2", "external") from error

if TYPE_CHECKING:
    from collections.abc import Mapping


@final
class _Http(httpx2.Client):
    """A client whose failures to connect void the episode."""

    def send(self, *args: Any, **options: Any) -> httpx2.Response:
        try:
            return super().send(*args, **options)
        except httpx2.RequestError as error:
            raise SandboxError(f"{error.request.url} does not answer: {error}") from error


def open_http(
    env: Env, *, base_url: str = "", headers: Mapping[str, str] | None = None, timeout_s: float = 10.0
) -> httpx2.Client:
    """Open a client that asks only the hosts which `Env.hosts` allows in the running phase.

    That holds for redirects, too, which it follows only if a request says so. So an agent that names a
    URL reaches no other host by it. Close the client in `Env.teardown`.

    Args:
        env: the environment whose phase counts.
        base_url: stands before relative URLs.
        headers: are sent with every request, such as ``{"Authorization": f"Bearer {self.secret('KEY')}"}``.
            Redirects to another host do not get that one.
        timeout_s: longest wait for a connection, and for each part of an answer, in seconds.

    Returns:
        A client whose requests raise, beside what ``httpx2`` says: `UsageError`, a host that is not allowed
        in a turn: an agent's mistake. `ContractError`, one that is not allowed in another phase.
        `SandboxError`, no answer.
    """

    def require_allowed(request: httpx2.Request) -> None:
        phase, url = env.phase, request.url
        allowed = env.hosts.get(phase, ())
        name = f"[{url.host}]" if ":" in url.host else url.host  # an IPv6 address
        host = name if url.port is None else f"{name}:{url.port}"
        kind = UsageError if phase == "turn" else ContractError
        if url.scheme not in ("http", "https"):
            raise kind(f"{url} may not be asked; expected http or https")
        if host in allowed:
            return
        expected = f"expected {' or '.join(allowed)}" if allowed else "no host is"
        raise kind(f"{host} may not be asked in phase {phase}; {expected}")

    # A hook sees every request, redirects included, also where a proxy is set.
    return _Http(
        base_url=base_url, headers=headers, timeout=timeout_s, event_hooks={"request": [require_allowed]}
    )

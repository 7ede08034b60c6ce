"""Applications outside the sandbox: a client for HTTP that reaches only the hosts an environment allows."""

from __future__ import annotations

import contextlib
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
    """A client that asks allowed hosts only, and whose failures to connect break the episode."""

    def __init__(self, env: Env, base_url: str, headers: Mapping[str, str], timeout_s: float) -> None:
        self._env, self._keys = env, headers
        # A hook sees every request, redirects included, also where a proxy is set.
        hooks = {"request": [self._require_allowed]}
        super().__init__(base_url=base_url, headers=headers, timeout=timeout_s, event_hooks=hooks)

    def build_request(self, *args: Any, **options: Any) -> httpx2.Request:
        try:
            return super().build_request(*args, **options)
        except httpx2.InvalidURL as error:
            raise self._refused(f"That is no URL: {error}.") from error

    def send(self, *args: Any, **options: Any) -> httpx2.Response:
        try:
            return super().send(*args, **options)
        except httpx2.RequestError as error:
            raise SandboxError(f"{error.request.url} does not answer: {error}") from error

    def _require_allowed(self, request: httpx2.Request) -> None:
        """Refuse a host that is not allowed, and keep the client's headers from all but its own."""
        env, asked = self._env, _origin(request.url)
        allowed = [_allowed_origin(env, host) for host in env.hosts.get(env.phase, ())]
        if asked not in allowed:
            where = asked if request.url.host else request.url
            expected = f"expected {' or '.join(allowed)}" if allowed else "no host is"
            raise self._refused(f"{where} may not be asked in phase {env.phase}; {expected}")
        if asked != _origin(self.base_url):
            for name, value in self._keys.items():
                if request.headers.get(name) == value:
                    del request.headers[name]

    def _refused(self, message: str) -> UsageError | ContractError:
        return UsageError(message) if self._env.phase == "turn" else ContractError(message)


def _origin(url: httpx2.URL) -> str:
    """Scheme, host and port of a URL, without the scheme's own port."""
    return f"{url.scheme}://{url.netloc.decode()}"


def _allowed_origin(env: Env, host: str) -> str:
    """The origin that an entry of `Env.hosts` allows.

    Raises:
        ContractError: it is more or less than a host.
    """
    with contextlib.suppress(httpx2.InvalidURL):
        url = httpx2.URL(host if "://" in host else f"https://{host}")
        if url.scheme in ("http", "https") and url.netloc and url.raw_path == b"/" and not url.userinfo:
            return _origin(url)
    raise ContractError(
        f"{type(env).__name__}.hosts has {host!r}; expected a host such as 'shop.example', or "
        "'http://127.0.0.1:8000' for one without TLS"
    )


def open_http(
    env: Env, *, base_url: str = "", headers: Mapping[str, str] | None = None, timeout_s: float = 10.0
) -> httpx2.Client:
    """Open a client that asks only the hosts which `Env.hosts` allows in the running phase.

    A host is asked by https, unless its entry begins with ``http://``. All of that holds for redirects, too,
    which the client follows only if a request says so. So an agent that names a URL reaches no other host by
    it. Close the client in `Env.teardown`.

    Args:
        env: the environment whose phase counts.
        base_url: stands before relative URLs.
        headers: are sent with every request to the host of ``base_url``, such as
            ``{"Authorization": f"Bearer {self.secret('KEY')}"}``. No other host gets them.
        timeout_s: longest wait for a connection, and for each part of an answer, in seconds.

    Returns:
        A client whose requests raise, beside what ``httpx2`` says: `UsageError`, in a turn, for a host that
        is not allowed or what is no URL: an agent's mistake. `ContractError`, the same in another phase, or
        a wrong entry of `Env.hosts`. `SandboxError`, no answer.

    Raises:
        ContractError: there are headers, and no ``base_url``.
    """
    if headers and not base_url:
        raise ContractError("open_http has headers and no base_url; name the host that they are for")
    return _Http(env, base_url, headers or {}, timeout_s)

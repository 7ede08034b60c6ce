"""The SQL desk's SQLite database, which runs in a sandbox; `sqlite_worker` is the program inside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, final

from envkit.environments.sql_desk.database import COMPARED_ROWS, ENDED, SHOWN_ROWS, Result
from envkit.errors import SandboxError
from envkit.sandbox import PYTHON_OPTIONS, Limits, Peer, PeerGone, Sandbox, guest_source

#: Limits for all statements of one database together. Wall time is long, because it runs while the agent
#: thinks.
LIMITS: Final = Limits(cpu_s=20.0, wall_s=3600.0, memory_bytes=256 * 2**20, processes=4, output_bytes=2**22)
#: Wall seconds to wait for one request's answer.
_REQUEST_TIMEOUT_S: Final = 20.0


@final
class SqliteDatabase:
    """An SQLite database in a sandbox; implements `envkit.environments.sql_desk.database.Database`.

    Args:
        sandbox: the process runs in it; the caller closes it.
        script: creates tables and rows.
        limits: for all statements together.
    """

    def __init__(self, sandbox: Sandbox, script: str, *, limits: Limits = LIMITS) -> None:
        self._sandbox, self._script, self._limits = sandbox, script, limits
        self._peer: Peer | None = None
        #: True if no statement has run since the script.
        self._pristine = False

    def run(self, sql: str, *, write: bool, rows: int = SHOWN_ROWS) -> Result:
        return self._results({"sql": sql, "write": write, "rows": rows})[0]

    def run_on_each(
        self, scripts: Sequence[str], sql: str, tables: Mapping[str, Sequence[str]] | None
    ) -> list[Result]:
        request: dict[str, Any] = {"sql": sql, "write": tables is not None, "rows": COMPARED_ROWS}
        if tables is not None:
            request["state"] = tables
        first, *others = scripts
        # A new process loads `_script` when it starts; a pristine one has loaded it already.
        loaded = self._peer is None or (self._pristine and first == self._script)
        self._script = first
        requests = [request if loaded else {"load": first, **request}]
        requests += [{"load": script, **request} for script in others]
        return self._results(*requests)

    def load(self, script: str) -> None:
        self._script = script
        if self._peer is not None:  # a new process will load it
            try:
                self._ask({"load": script})
            except PeerGone as gone:
                raise SandboxError(f"the database could not be loaded: {gone.reason}") from gone

    def close(self) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            peer.close()

    def _results(self, *requests: Mapping[str, Any]) -> list[Result]:
        try:
            return [Result(**answer) for answer in self._ask(*requests)]
        except PeerGone as gone:
            self.close()  # the next statement gets a new process
            return [Result(error=f"{ENDED}: {gone.reason}", transient=True)]

    def _ask(self, *requests: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Send requests; return one answer each, up to the first error.

        Raises:
            PeerGone: the process has ended.
            SandboxError: the process could not start, or the script fails.
        """
        if self._peer is None:
            worker = guest_source("envkit.environments.sql_desk", "sqlite_worker.py")
            argv = [self._sandbox.python, *PYTHON_OPTIONS, "-c", worker]
            self._peer = self._sandbox.open(argv, limits=self._limits)
            self.load(self._script)
        timeout_s = _REQUEST_TIMEOUT_S * len(requests)
        answers = json.loads(self._peer.ask(json.dumps(requests).encode(), timeout_s))
        self._pristine = requests == ({"load": self._script},)
        if fault := answers[-1].get("fault"):
            self.close()
            raise SandboxError(f"the database could not be loaded: {fault}")
        return answers

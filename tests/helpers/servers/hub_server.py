"""A local stand-in for the model hub: the part of its HTTP interface that uploads a folder."""

from __future__ import annotations

import base64
import json
import socket
import threading
from types import TracebackType
from typing import Any, Self, final

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


@final
class Hub:
    """Takes commits to repositories; runs in a thread until the ``with`` block ends.

    Args:
        token: requests with another one are refused.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        #: Repository -> its files by name, and whether it is private.
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        repo = "/api/models/{owner}/{name}"
        routes = [
            Route("/api/repos/create", self._create, methods=["POST"]),
            Route("/api/validate-yaml", self._validate, methods=["POST"]),
            Route(repo, self._info),
            Route(repo + "/tree/main", self._tree),
            Route(repo + "/preupload/main", self._preupload, methods=["POST"]),
            Route(repo + "/commit/main", self._commit, methods=["POST"]),
        ]
        config = uvicorn.Config(Starlette(routes=routes), log_level="critical", lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    async def _create(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {self._token}":
            return JSONResponse({"error": "Invalid username or password."}, 401)
        asked: dict[str, Any] = await request.json()
        repo = f"{asked['organization']}/{asked['name']}"
        url = f"{self.url}/{repo}"
        if repo in self.files:
            return JSONResponse({"error": "You already created this model repo", "url": url}, 409)
        self.files[repo], self.private[repo] = {}, asked.get("visibility") == "private"
        return JSONResponse({"url": url})

    async def _validate(self, request: Request) -> Response:
        content = str((await request.json())["content"])
        header = yaml.safe_load(content.split("---\n")[1])
        assert isinstance(header, dict)
        return JSONResponse({"errors": [], "warnings": []})

    async def _info(self, request: Request) -> Response:
        if (repo := _repo(request)) not in self.files:
            return JSONResponse({"error": "Repository not found"}, 404)
        return JSONResponse({"id": repo, "private": self.private[repo]})

    async def _tree(self, request: Request) -> Response:
        found = self.files[_repo(request)].items()
        return JSONResponse([{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in found])

    async def _preupload(self, request: Request) -> Response:
        asked = (await request.json())["files"]
        modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
        return JSONResponse({"files": modes})

    async def _commit(self, request: Request) -> Response:
        files = self.files[_repo(request)]
        for line in (await request.body()).splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        url = f"{self.url}/{_repo(request)}/commit/{40 * '0'}"
        return JSONResponse({"commitUrl": url, "commitOid": 40 * "0", "pullRequestUrl": None})


def _repo(request: Request) -> str:
    return f"{request.path_params['owner']}/{request.path_params['name']}"

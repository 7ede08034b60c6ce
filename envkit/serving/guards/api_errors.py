"""Errors in OpenAI's form."""

import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from envkit.openai_api.errors import error_object, field_error


class ApiError(Exception):
    """An error for the client, in OpenAI's form."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        wait_s: float = 0,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.wait_s = status, code, param, wait_s


class ClientGone(Exception):
    """The client has left before its answer. Nobody reads the response; its status, 499, is counted."""


def error_response(error: ApiError) -> Response:
    """Make the response that tells an error."""
    headers = {"Retry-After": str(math.ceil(error.wait_s))} if error.wait_s else None
    content = error_object(error.status, str(error), error.code, error.param)
    return JSONResponse(content, error.status, headers)


def handle_errors(app: FastAPI) -> None:
    """Answer every error in OpenAI's form."""

    @app.exception_handler(ClientGone)
    async def client_gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return error_response(ApiError(400, f"the body is no JSON: {first['ctx']['error']}"))
        if first["loc"] == ("body",):  # no validator of the schemas is of a whole body
            message = "expected a JSON object as the body, with the header Content-Type: application/json"
            return error_response(ApiError(400, message))
        given = {"body": error.body, "path": request.path_params}
        place, message = field_error(error.errors(), given)
        field = place.partition(".")[2]
        return error_response(ApiError(400, f"{field}: {message}", param=field))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return JSONResponse(
            error_object(error.status_code, str(error.detail)), error.status_code, error.headers
        )

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return error_response(ApiError(500, "a fault in the server; its log has the reason"))

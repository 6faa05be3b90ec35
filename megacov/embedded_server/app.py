"""HTTP routes: the part of SGLang's contract that a trainer uses."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from megacov.embedded_server.bodies import (
    AbortBody,
    ContinueBody,
    DiskUpdateBody,
    GenerateBody,
    PauseBody,
    RequestError,
    VersionBody,
    invalid_body,
)
from megacov.embedded_server.generation import EngineRequest
from megacov.embedded_server.replies import CONTRACT_VERSION, completions_of
from megacov.embedded_server.requests import is_single
from megacov.embedded_server.service import Service
from megacov.json_text import JsonError, parse_json

_FLUSHED = (
    "Cache flushed.\nPlease check backend logs for more details. "
    "(When there are running or waiting requests, the operation will not be performed.)\n"
)


def create_app(service: Service, *, server_info: dict[str, Any]) -> FastAPI:
    """Make the web application; `server_info` holds settings that /server_info shows."""
    app = FastAPI(openapi_url=None)
    app.router.route_class = _BoundedJsonRoute
    app.add_exception_handler(RequestError, _answer_request_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid_body)
    _add_state_routes(app, service, server_info)
    _add_generate_routes(app, service)
    _add_control_routes(app, service)
    return app


class _BoundedJsonRequest(Request):
    async def json(self) -> Any:
        """The body. FastAPI answers a JSONDecodeError with a validation error."""
        try:
            return parse_json(await self.body())
        except JsonError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None


class _BoundedJsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            return await handle(_BoundedJsonRequest(request.scope, request.receive))

        return handle_bounded


def _json(content: Any, status_code: int = 200) -> Response:
    return Response(json.dumps(content), status_code, media_type="application/json")


async def _answer_request_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _json(error.body, error.status_code)


async def _answer_invalid_body(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _json(invalid_body(list(error.errors()), f"{request.method} {request.url.path}"), 400)


def _add_state_routes(app: FastAPI, service: Service, server_info: dict[str, Any]) -> None:
    config = service.served.model.config
    folder = str(service.served.folder)

    @app.get("/ping")
    @app.get("/ready")
    async def ready() -> Response:
        return Response()

    @app.get("/health")
    @app.get("/health_generate")
    async def health() -> Response:
        return Response(status_code=200 if await service.is_healthy() else 503)

    @app.get("/model_info")
    @app.get("/get_model_info")
    async def model_info() -> Response:
        return _json(
            {
                "model_path": service.model_path,
                "served_model_name": service.model_path,
                "tokenizer_path": folder,
                "is_generation": True,
                "preferred_sampling_params": None,
                "weight_version": service.weight_version,
                "load_format": "auto",
                "has_image_understanding": False,
                "has_audio_understanding": False,
                "model_type": config.model_type,
                "architectures": config.architectures,
            }
        )

    @app.get("/server_info")
    @app.get("/get_server_info")
    async def show_server_info() -> Response:
        paths = {"model_path": service.model_path, "tokenizer_path": folder}
        # SGLang reports this flag where it follows the seeds of requests.
        fixed = {"internal_states": [], "version": CONTRACT_VERSION, "enable_deterministic_inference": True}
        return _json({**server_info, **paths, **fixed})


def _add_generate_routes(app: FastAPI, service: Service) -> None:
    @app.post("/generate")
    async def generate(body: GenerateBody, http: Request) -> Response:
        requests = await service.generate(body, http.is_disconnected)
        failure = _failure_of(requests)
        if failure is not None:
            return failure
        completions = [completion for request in requests for completion in completions_of(request, service.served)]
        return _json(completions[0] if is_single(body) and len(completions) == 1 else completions)

    @app.post("/abort_request")
    async def abort_request(body: AbortBody) -> Response:
        if body.abort_all or body.rid is not None:
            await service.abort(None if body.abort_all else body.rid)
        return Response()


def _failure_of(requests: list[EngineRequest]) -> Response | None:
    """The HTTP error of the first completion that the server itself aborted, or None."""
    for request in requests:
        for generation in request.generations:
            finish = generation.finish
            if finish is not None and finish.status_code is not None:
                return _json({"error": {"message": finish.message}}, finish.status_code)
    return None


def _add_control_routes(app: FastAPI, service: Service) -> None:
    @app.post("/pause_generation")
    async def pause_generation(body: PauseBody) -> Response:
        await service.pause(body.mode)
        return _json({"message": "Generation paused successfully.", "status": "ok"})

    @app.post("/continue_generation")
    async def continue_generation(_body: ContinueBody) -> Response:
        await service.resume()
        return _json({"message": "Generation continued successfully.", "status": "ok"})

    @app.api_route("/flush_cache", methods=["GET", "POST"])
    async def flush_cache() -> Response:
        if await service.flush_cache():
            return Response(_FLUSHED)
        return Response("Flush cache failed.\n", status_code=400)

    @app.post("/update_weights_from_disk")
    async def update_weights_from_disk(body: DiskUpdateBody) -> Response:
        success, message = await service.update_weights(body)
        content = {"success": success, "message": message, "num_paused_requests": 0}
        return _json(content, 200 if success else 400)

    @app.post("/update_weight_version")
    async def update_weight_version(body: VersionBody) -> Response:
        await service.set_version(body.new_version, aborts_requests=body.abort_all_requests)
        message = f"Weight version updated to {body.new_version}"
        return _json({"success": True, "message": message, "new_version": body.new_version})

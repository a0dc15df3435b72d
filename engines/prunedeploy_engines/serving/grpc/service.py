"""The Open Inference Protocol over gRPC: ``inference.GRPCInferenceService``."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from prunedeploy_engines.serving.core.errors import (
    InvalidRequestError,
    ModelUnavailableError,
    ServingError,
    SlowClientError,
    UnauthorisedError,
    drop_frames,
)
from prunedeploy_engines.serving.core.service import Service, refuse_content
from prunedeploy_engines.serving.grpc.messages import METHODS, SERVICE, message_type
from prunedeploy_engines.serving.grpc.tensors import announced_images, read_request, write_answer
from prunedeploy_engines.serving.telemetry.request_notes import RequestNotes, request_id

_OPEN = {"ServerLive", "ServerReady"}
_log = logging.getLogger(__name__)

Context = Any  # grpc.aio.ServicerContext, which has no types


def add_grpc(server: grpc.aio.Server, service: Service) -> None:
    """Add the service to a server that was not started yet.

    Args:
        server: Its options bound the size of messages.
        service: Answers the requests.
    """
    methods = _Methods(service)
    # Bytes go in, so that a message which is none is refused in words and not by the library. On the wire a stream of
    # one message is that message, but of a stream the library reads nothing before it is asked to.
    handlers = {
        name: grpc.stream_unary_rpc_method_handler(partial(methods.answer, name), None, _serialised) for name in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _serialised(message: Any) -> bytes:
    return message.SerializeToString()


class _Methods:
    """The methods, by their names in the protocol, and what stands around each: token, limits, errors, notes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def answer(self, name: str, messages: Any, context: Context) -> Any:
        """Answer one request; whatever is raised inside becomes a status."""
        metadata = dict(context.invocation_metadata() or ())
        notes = RequestNotes(
            request_id(_text(metadata, "x-request-id")), "grpc", name, trace_parent=_text(metadata, "traceparent")
        )
        status, line = "CANCELLED", ""
        message = None
        try:
            await context.send_initial_metadata((("x-request-id", notes.request_id),))
            if name not in _OPEN and not self._service.token.opens(metadata.get("authorization")):
                raise UnauthorisedError("the token is missing or wrong", "authorization", "send Bearer TOKEN")
            if self._service.repository.stopping:
                # HTTP can say with an answer that it was the last one; here only a refusal sends a client elsewhere.
                raise ModelUnavailableError("the server is stopping")
            if name == "ModelInfer":
                self._service.check_by_head(notes, context.time_remaining())
            data = await self._read(name, context)
            with self._service.budget.held() as take:
                take(len(data))
                try:
                    message = message_type(f"{name}Request").FromString(data)
                except DecodeError:
                    raise InvalidRequestError(f"the message is not a {name}Request") from None
                del data  # its many bytes are in the message now
                answer = await getattr(self, name)(message, notes, context)
            status = "OK"
            return answer
        except ServingError as error:
            notes.error, status, line = error.kind, error.grpc_status, str(error)
            if error.kind == "internal":
                _log.error("request %s failed: %s", notes.request_id, error)
            drop_frames(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            notes.error, status = "internal", "INTERNAL"
            line = f"the server failed; its log says more about request {notes.request_id}"
            _log.exception("request %s failed", notes.request_id)
            drop_frames(error)
        finally:
            if status == "CANCELLED":
                notes.error = "client-gone"
            self._service.telemetry.answered(notes, status)
        # The library keeps the error that this raises, which keeps this frame, until the garbage collector comes.
        message = None
        await context.abort(grpc.StatusCode[status], line)

    async def _read(self, name: str, context: Context) -> bytes:
        seconds = self._service.settings.body_timeout_s
        try:
            data = await asyncio.wait_for(context.read(), seconds)
        except asyncio.TimeoutError:
            raise SlowClientError(f"the message did not arrive within {seconds:g} s") from None
        if data is grpc.aio.EOF:
            raise InvalidRequestError(f"there is no {name}Request")
        return data

    async def ServerLive(self, message: Any, notes: RequestNotes, context: Context) -> Any:  # noqa: N802
        return _answer("ServerLive", live=True)

    async def ServerReady(self, message: Any, notes: RequestNotes, context: Context) -> Any:  # noqa: N802
        return _answer("ServerReady", ready=self._service.repository.ready())

    async def ModelReady(self, message: Any, notes: RequestNotes, context: Context) -> Any:  # noqa: N802
        try:
            self._service.get(message.name, message.version or None)
        except ModelUnavailableError:  # this question has an answer of its own for it
            return _answer("ModelReady", ready=False)
        return _answer("ModelReady", ready=True)

    async def ServerMetadata(self, message: Any, notes: RequestNotes, context: Context) -> Any:  # noqa: N802
        return _answer("ServerMetadata", **self._service.about())

    async def ModelMetadata(self, message: Any, notes: RequestNotes, context: Context) -> Any:  # noqa: N802
        return _answer("ModelMetadata", **self._service.metadata(message.name, message.version or None))

    async def ModelInfer(self, message: Any, notes: RequestNotes, context: Context) -> Any:  # noqa: N802
        service, left = self._service, context.time_remaining()
        with service.visit(message.model_name, message.model_version or None, notes) as visit:
            visit.whole()
            asked = read_request(message)
            # What it has left was told now, and counts from the request's head on.
            timeout = None if left is None else time.monotonic() - notes.begun + left
            service.know(visit, notes, asked.parameters, announced_images(asked.inputs), timeout)
            outputs = await service.infer(asked, notes, visit)
            with notes.encoding():
                return write_answer(asked, outputs)

    async def RepositoryIndex(self, message: Any, notes: RequestNotes, context: Context) -> Any:  # noqa: N802
        return _answer("RepositoryIndex", models=[asdict(state) for state in self._service.index(message.ready)])

    async def RepositoryModelLoad(self, message: Any, notes: RequestNotes, context: Context) -> Any:  # noqa: N802
        refuse_content(message.parameters)
        await self._service.load(message.model_name)
        return _answer("RepositoryModelLoad")

    async def RepositoryModelUnload(self, message: Any, notes: RequestNotes, context: Context) -> Any:  # noqa: N802
        refuse_content(message.parameters)
        await self._service.unload(message.model_name)
        return _answer("RepositoryModelUnload")

    async def SystemSharedMemoryStatus(self, message: Any, notes: RequestNotes, context: Context) -> Any:  # noqa: N802
        regions = {one["name"]: one for one in self._service.regions.status(message.name)}
        return _answer("SystemSharedMemoryStatus", regions=regions)

    async def SystemSharedMemoryRegister(  # noqa: N802
        self, message: Any, notes: RequestNotes, context: Context
    ) -> Any:
        self._service.regions.register(message.name, message.key, message.offset, message.byte_size)
        return _answer("SystemSharedMemoryRegister")

    async def SystemSharedMemoryUnregister(  # noqa: N802
        self, message: Any, notes: RequestNotes, context: Context
    ) -> Any:
        self._service.regions.unregister(message.name)
        return _answer("SystemSharedMemoryUnregister")


def _answer(method: str, **fields: Any) -> Any:
    return message_type(f"{method}Response")(**fields)


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key)
    return value if isinstance(value, str) else ""

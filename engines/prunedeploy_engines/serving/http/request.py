"""What every HTTP handler needs of its request: its body, within limits, and its notes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from prunedeploy_engines.serving.core.limits import BodyBudget, HeldBody, read_body

if TYPE_CHECKING:
    from starlette.requests import Request

    from prunedeploy_engines.serving.core.settings import ServingSettings
    from prunedeploy_engines.serving.telemetry.request_notes import RequestNotes

NOTES = "prunedeploy.notes"
"""Key in the ASGI scope."""


def notes_of(request: Request) -> RequestNotes:
    """The request's notes."""
    return request.scope[NOTES]


@asynccontextmanager
async def body_of(request: Request, settings: ServingSettings, budget: BodyBudget) -> AsyncIterator[bytes]:
    """The body of a request, counted as held until the ``with`` ends; see `read_body`."""
    with HeldBody(budget) as held:
        yield await read_body(request, settings, held)

"""Who may ask, and what a browser may do with the answer."""

from __future__ import annotations

import hmac

OPEN = frozenset({"/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready"})
"""Answered without a token: probes carry none, and a browser cannot send one for a page. They tell nothing."""

_OPEN_BELOW = "/static/"

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
"""Headers of every answer that does not set its own."""


class Token:
    """The bearer token of a server (RFC 6750).

    Args:
        token: None lets everybody in.
    """

    def __init__(self, token: str | None) -> None:
        self._expected = None if token is None else token.encode()

    def opens(self, authorization: str | bytes | None) -> bool:
        """Whether a header ``Authorization`` carries it; compared in a time that tells nothing of it."""
        if self._expected is None:
            return True
        given = authorization or b""
        raw = given.encode("utf-8", "surrogateescape") if isinstance(given, str) else given
        scheme, _, rest = raw.partition(b" ")
        return hmac.compare_digest(rest.strip(), self._expected) and scheme.lower() == b"bearer"


def is_open(path: str) -> bool:
    """Whether an address is answered without a token."""
    return path in OPEN or path.startswith(_OPEN_BELOW)

"""``/docs``: the OpenAPI document as a page for people, made once, without scripts and without the internet."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

CSP = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def docs_page(document: Mapping[str, Any]) -> str:
    """Write the page.

    Args:
        document: OpenAPI.
    """
    info = document["info"]
    sections = []
    for address, item in document["paths"].items():
        for method, operation in item.items():
            if method in ("get", "post"):
                sections.append(_section(method.upper(), address, operation))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(info["title"])}: addresses</title><link rel="stylesheet" href="static/page.css"></head>'
        f"<body><main><h1>{escape(info['title'])}</h1><p>{escape(info['description'])}</p>"
        '<p>For programs: <a href="openapi.json">openapi.json</a>. To try it: <a href="./">the page</a>.</p>'
        f"{''.join(sections)}</main></body></html>"
    )


def _section(method: str, address: str, operation: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(one["name"])}</code></th><td>{escape(one["in"])}</td>'
        f"<td>{escape(one.get('description', ''))}</td></tr>"
        for one in operation.get("parameters", ())
    )
    head = "<thead><tr><th>Parameter</th><th>Where</th><th>Meaning</th></tr></thead>"
    parameters = f"<table>{head}<tbody>{rows}</tbody></table>" if rows else ""
    kinds = ", ".join(operation.get("requestBody", {}).get("content", {}))
    body = f"<p>Body: {escape(kinds)}</p>" if kinds else ""
    answers = "; ".join(f"{code}: {one['description']}" for code, one in operation["responses"].items())
    return (
        f"<section><h2><code>{method} {escape(address)}</code></h2><p>{escape(operation['summary'])}</p>"
        f"{parameters}{body}<p>Answers: {escape(answers)}</p></section>"
    )

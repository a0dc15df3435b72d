"""The folder that is copied to the device.

`bundle` opens and verifies it, `manifest` is its `bundle.json`, `files` puts files into it, `source` tells what a MODEL
on a command line is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunedeploy_engines.bundle.bundle import Bundle, BundleFile, load_bundle, write_bundle

__all__ = ["Bundle", "BundleFile", "load_bundle", "write_bundle"]


def __getattr__(name: str) -> Any:
    """At first use, so that `source` loads nothing but JSON."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from prunedeploy_engines.bundle import bundle

    return getattr(bundle, name)

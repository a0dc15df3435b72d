"""The folder that is copied to the device.

`bundle` opens and verifies it, `manifest` is its `bundle.json`, `files` puts files into it, `source` tells what a MODEL
on a command line is.
"""

from prunedeploy_engines.bundle.bundle import Bundle, BundleFile, load_bundle, write_bundle

__all__ = ["Bundle", "BundleFile", "load_bundle", "write_bundle"]

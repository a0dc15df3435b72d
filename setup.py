"""Which folder becomes which package; everything else about the distribution is in ``pyproject.toml``.

``configs/`` stands at the top of the checkout, where a reader looks for it, and travels in
the wheel as ``prunedeploy/configs``. That mapping cannot be combined with automatic
discovery in ``pyproject.toml``, and a list of packages written by hand goes stale.
"""

from setuptools import find_packages, setup

PACKAGE_FOLDERS = {"prunedeploy": ".", "prunedeploy_export": "export", "prunedeploy_engines": "engines"}

packages = [
    package
    for name, folder in PACKAGE_FOLDERS.items()
    for package in [name, *find_packages(folder, include=[f"{name}.*"])]
]

setup(
    packages=[*packages, "prunedeploy.configs"],
    package_dir={
        "prunedeploy_export": "export/prunedeploy_export",
        "prunedeploy_engines": "engines/prunedeploy_engines",
        "prunedeploy.configs": "configs",
    },
    package_data={
        "": ["py.typed"],
        "prunedeploy": ["assets/**"],
        "prunedeploy_engines": ["serving/http/page/*", "bundle/shipped/**"],
        "prunedeploy.configs": ["*.yaml", "darknet/*.cfg"],
    },
)

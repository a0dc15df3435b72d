"""Dockerfiles of the two servers, for those who have none: run without root, on a read-only root file system."""

from __future__ import annotations

from prunedeploy_engines.version import __version__

BUNDLE_FOLDER = "/bundle"
USER_ID = 10001
TRITON_USER_ID = 1000
"""``triton-server`` in NVIDIA's images."""

_PRUNEDEPLOY = """\
# syntax=docker/dockerfile:1
# Written by prunedeploy {version}: the image of `prunedeploy serve`. In a folder with the wheel in dist/{and_bundle}:
#   docker build -t IMAGE -f {name} .
ARG PYTHON_IMAGE=python:3.12-slim
FROM ${{PYTHON_IMAGE}}
COPY dist/prunedeploy-{version}-py3-none-any.whl /tmp/
RUN pip install --no-cache-dir '/tmp/prunedeploy-{version}-py3-none-any.whl[{extras}]' \\
    && rm /tmp/*.whl \\
    && useradd --uid {user} --no-create-home --shell /usr/sbin/nologin prunedeploy
{bundle}# Nothing is written at run time but to /tmp.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER {user}:{user}
EXPOSE 8000 8001
ENTRYPOINT ["prunedeploy"]
CMD ["serve", "detector={folder}", "--host", "0.0.0.0"]
"""

_TRITON = """\
# syntax=docker/dockerfile:1
# Written by prunedeploy {version}: Triton with Pillow, which decodes images before the detector.
# The image is NVIDIA's Triton Inference Server, one that ends in -py3:
#   docker build -t IMAGE -f {name} --build-arg TRITON_IMAGE=... .
ARG TRITON_IMAGE
FROM ${{TRITON_IMAGE}}
# Pillow alone: the Python backend was built for the NumPy that is there.
RUN pip install --no-cache-dir --no-deps 'pillow>=10.1'
ENV PYTHONDONTWRITEBYTECODE=1
USER {user}:{user}
"""


def dockerfile(server: str, *, with_bundle: bool = False, runtime: str = "cpu", name: str = "Dockerfile") -> str:
    """The text of a Dockerfile.

    Args:
        server: ``"prunedeploy"`` or ``"triton"``.
        with_bundle: prunedeploy only: the folder ``bundle`` becomes part of the image.
        runtime: prunedeploy only: the extra with the runtime, ``"cpu"``, ``"gpu"`` or ``"rtx"``.
        name: Name of the file, for the command in its head.
    """
    if server == "triton":
        return _TRITON.format(version=__version__, user=TRITON_USER_ID, name=name)
    return _PRUNEDEPLOY.format(
        version=__version__,
        and_bundle=" and the bundle in bundle/" if with_bundle else "",
        name=name,
        extras=f"{runtime},serve",
        user=USER_ID,
        bundle=f"COPY --chown=root:root bundle {BUNDLE_FOLDER}\n" if with_bundle else "",
        folder=BUNDLE_FOLDER if with_bundle else "/mnt/models",
    )

"""Which TensorRT is here, and how to touch it without the process dying.

Two libraries share one Python surface. Full TensorRT (``tensorrt``, 10 or later) builds and runs on the GPU
it finds; TensorRT-RTX (``tensorrt_rtx``) also builds on a machine without a GPU, for compute capabilities
that are chosen.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from prunedeploy_engines.errors import RuntimeUnavailableError
from prunedeploy_engines.runtimes.tensorrt.log import library_logger

LibraryName = Literal["tensorrt", "tensorrt_rtx"]
LIBRARIES: tuple[LibraryName, ...] = get_args(LibraryName)
EXTRAS: dict[str, str] = {"tensorrt": "gpu", "tensorrt_rtx": "rtx"}
OLDEST: dict[str, tuple[int, int]] = {"tensorrt": (10, 0), "tensorrt_rtx": (1, 1)}

# RTX has kernels for these and no others. Lists differ by version; this one serves where the library is not
# installed.
RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120")

_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute, cuda.h


@dataclass(frozen=True)
class CudaDevice:
    """The GPU that CUDA counts as the first, which is the one engines are built for and run on here.

    Attributes:
        name: As the driver states it.
        target: ``"sm"`` + compute capability without the dot, e.g. ``"sm87"``.
    """

    name: str
    target: str


@dataclass(frozen=True)
class TensorRTLibrary:
    """An imported library that is safe to use.

    Attributes:
        name: ``"tensorrt"`` or ``"tensorrt_rtx"``.
        version: Its own version, all parts: plans only load into the very version that made them.
        trt: The module.
        logger: The one `CollectingLogger` of the process for this library.
    """

    name: LibraryName
    version: str
    trt: Any
    logger: Any


def installed_version(name: str) -> str | None:
    """Version of an installed library without importing it; None if it cannot be imported at all.

    A package index that only holds placeholders installs metadata without a module: that is None as well.
    """
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        return None
    try:
        return _own_version(importlib.metadata.version(name.replace("_", "-")))
    except importlib.metadata.PackageNotFoundError:  # a wheel of another name, e.g. tensorrt-cu12
        pass
    try:
        return _own_version(str(getattr(importlib.import_module(name), "__version__", "unknown")))
    except (ImportError, OSError):
        return None


def _own_version(version: str) -> str:
    """Without the ``.post1`` of a wheel that was packed again: the library itself does not state it."""
    return version.partition(".post")[0]


def version_problem(name: str, version: str) -> str | None:
    """Why this version cannot be used, or None.

    TensorRT 8 and 9 have another API (implicit batch, bindings by index); we do not pretend to support them.
    """
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        return f"{name} states no readable version ({version!r})"
    if (major, minor) < OLDEST[name]:
        return f"{name} {version} is too old: {'.'.join(map(str, OLDEST[name]))} or later is needed"
    return None


@lru_cache(maxsize=1)
def _cuda_driver() -> tuple[Any, str | None]:
    """The driver library after ``cuInit``, or None and the reason."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError as error:
        return None, f"no CUDA driver ({error})"
    code = driver.cuInit(0)
    if code != 0:
        return None, f"the CUDA driver does not start (cuInit: {_driver_error(driver, code)})"
    count = ctypes.c_int(0)
    code = driver.cuDeviceGetCount(ctypes.byref(count))
    if code != 0 or count.value == 0:
        return None, "the CUDA driver finds no GPU"
    return driver, None


def _driver_error(driver: Any, code: int) -> str:
    text = ctypes.c_char_p()
    if driver.cuGetErrorString(code, ctypes.byref(text)) == 0 and text.value:
        return f"{text.value.decode()}, code {code}"
    return f"code {code}"


def cuda_driver_problem() -> str | None:
    """Why nothing can run on a GPU here, or None.

    Loads the driver and calls ``cuInit``, which must precede the first object of full TensorRT.
    """
    return _cuda_driver()[1]


def cuda_device() -> CudaDevice | None:
    """The first GPU, or None where there is none."""
    driver, problem = _cuda_driver()
    if problem is not None:
        return None
    handle, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(0), ctypes.c_int(0)
    codes = (
        driver.cuDeviceGet(ctypes.byref(handle), 0),
        driver.cuDeviceGetName(name, len(name), handle),
        driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, handle),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, handle),
    )
    for code in codes:
        if code != 0:
            reason = _driver_error(driver, code)
            raise RuntimeUnavailableError(f"the CUDA driver does not describe its GPU ({reason})")
    return CudaDevice(name.value.decode(errors="replace"), f"sm{major.value}{minor.value}")


def load_library(name: LibraryName) -> TensorRTLibrary:
    """Import a library and make it safe to use.

    Args:
        name: ``"tensorrt"`` or ``"tensorrt_rtx"``.

    Raises:
        RuntimeUnavailableError: Not installed, broken or too old; for full TensorRT also: no driver or no
            GPU, since some of its calls abort the process then.
    """
    if name not in LIBRARIES:
        raise ValueError(f"library must be one of {LIBRARIES}, got {name!r}")
    version = installed_version(name)
    install = f"install prunedeploy[{EXTRAS[name]}]"
    if version is None:
        raise RuntimeUnavailableError(f"{name} is not installed", fix=install)
    problem = version_problem(name, version)
    if problem is not None:
        raise RuntimeUnavailableError(problem, fix=install)
    if name == "tensorrt":
        problem = cuda_driver_problem()
        if problem is not None:
            raise RuntimeUnavailableError(f"tensorrt needs a GPU: {problem}", fix="use a device with one")
    try:
        trt = importlib.import_module(name)
    except (ImportError, OSError) as error:  # a missing shared library is an OSError from ctypes
        raise RuntimeUnavailableError(f"{name} {version} cannot be imported ({error})", fix=install) from error
    version = _own_version(str(getattr(trt, "__version__", version)))
    problem = version_problem(name, version)
    if problem is not None:
        raise RuntimeUnavailableError(problem, fix=install)
    return TensorRTLibrary(name, version, trt, library_logger(name))


def rtx_targets() -> tuple[str, ...]:
    """Targets that the installed TensorRT-RTX builds for, ascending; the usual ones without it."""
    if installed_version("tensorrt_rtx") is None:
        return RTX_TARGETS
    try:
        capabilities = load_library("tensorrt_rtx").trt.ComputeCapability.__members__
    except (RuntimeUnavailableError, AttributeError):
        return RTX_TARGETS
    numbers = sorted(int(name[2:]) for name in capabilities if name.startswith("SM") and name[2:].isdigit())
    return tuple(f"sm{number}" for number in numbers)

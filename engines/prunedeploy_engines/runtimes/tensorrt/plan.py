"""Whether a plan can run here, found out before a library sees it: some of their calls abort the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunedeploy_engines.errors import EngineError, RuntimeUnavailableError
from prunedeploy_engines.runtimes.tensorrt.cuda import cudart
from prunedeploy_engines.runtimes.tensorrt.engine_file import EngineFile
from prunedeploy_engines.runtimes.tensorrt.library import (
    EXTRAS,
    LIBRARIES,
    LibraryName,
    TensorRTLibrary,
    cuda_driver_problem,
    installed_version,
    version_problem,
)
from prunedeploy_engines.runtimes.tensorrt.log import summarise

REBUILD_HERE = "build it again on this device with `prunedeploy engine`"


def tensorrt_unavailable_reason(library: LibraryName | None = None) -> str | None:
    """Why no plan can run here, or None if one can.

    Nothing of TensorRT is called to find out, so the answer is safe where its calls would abort.

    Args:
        library: The library that the plan needs; None if either will do.
    """
    wanted = LIBRARIES if library is None else (library,)
    versions = {name: installed_version(name) for name in wanted}
    if all(version is None for version in versions.values()):
        return f"{' and '.join(wanted)} {'is' if len(wanted) == 1 else 'are'} not installed"
    problems = [version_problem(name, version) for name, version in versions.items() if version is not None]
    if None not in problems:
        return " and ".join(str(problem) for problem in problems)
    problem = cuda_driver_problem()
    if problem is not None:
        return problem
    if cudart() is None:
        return "cuda-python is not installed"
    return None


def check_batch(batch: int, engine: EngineFile, input_name: str) -> None:
    """Refuse a batch that the engine was not built for.

    Raises:
        EngineError: It names the profile's smallest and largest batch.
    """
    smallest, _, largest = (shape[0] for shape in engine.profile[input_name])
    if not smallest <= batch <= largest:
        raise EngineError(
            f"batch {batch} is outside the engine's profile: {input_name} takes {smallest} to {largest}",
            where=engine.path,
            fix="send other batches, or build the engine with another batch profile",
        )


def check_plan(engine: EngineFile) -> None:
    """Refuse a plan that this library, in this version, cannot load; needs no GPU.

    Raises:
        EngineError: The plan is of an unknown library, or of another version than the installed one.
        RuntimeUnavailableError: The plan's library is not installed.
    """
    if engine.library not in LIBRARIES:
        raise EngineError(f"is a plan of unknown library {engine.library!r}", where=engine.path, fix=REBUILD_HERE)
    version = installed_version(engine.library)
    if version is None:
        raise RuntimeUnavailableError(
            f"{engine.library} is not installed",
            where=engine.path,
            fix=f"install prunedeploy[{EXTRAS[engine.library]}]",
        )
    if version != engine.version:
        raise EngineError(
            f"was built with {engine.library} {engine.version}, installed is {version}",
            where=engine.path,
            fix=REBUILD_HERE,
        )


def deserialise(library: TensorRTLibrary, plan: bytes, where: Path) -> tuple[Any, Any]:
    """A plan's bytes to a runtime and its engine; the runtime must outlive the engine.

    Args:
        library: The library that made the plan, from `load_library`.
        plan: All of it.
        where: The file, for the error.

    Raises:
        EngineError: The library gives no engine; the message holds what it logged.
    """
    with library.logger.collect() as messages:
        runtime = library.trt.Runtime(library.logger)
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        name = f"{library.name} {library.version}"
        raise EngineError(f"{name} cannot load it: {summarise(messages)}", where=where, fix=REBUILD_HERE)
    return runtime, engine

"""Every attribute of TensorRT that our code uses exists, in the library that is here and in the real bindings.

Full TensorRT cannot be installed everywhere, and nothing of it runs without a GPU; but the wheel with its Python
bindings is small, and its module can be imported once the libraries that it wants to link to are there by name.
What is used is read from our source. A receiver that this file cannot place fails a test, so that the list
cannot fall behind the code.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import prunedeploy_engines
from prunedeploy_engines.runtimes.tensorrt.library import installed_version

PACKAGE = Path(inspect.getfile(prunedeploy_engines)).parent
WHEELS = Path(sys.prefix) / "share" / "tensorrt-bindings"

# What a receiver of an attribute is, by the last part of its name; "()" is what a method returns.
CLASSES = {
    "Builder": "_builder",
    "IBuilderConfig": "config _config",
    "INetworkDefinition": "network",
    "IOptimizationProfile": "profile@build",
    "OnnxParser": "parser",
    "ParserError": "error@build",
    "ILayer": "layer@build layer@precision maker",
    "ITensor": "tensor data@precision get_input() get_output()",
    "Runtime": "runtime@build runtime@plan",
    "ICudaEngine": "engine@build engine@execution engine@profile engine@tensors",
    "IExecutionContext": "context",
    "EngineInspector": "inspector",
    "ITimingCache": "get_timing_cache()",
    "DataType": "dtype@precision",
    "LayerType": "type@build kind@precision",
}
# Attributes that only TensorRT-RTX has; the code asks which library it is before it uses them.
RTX_ONLY = {"ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"}
# Not TensorRT's; those that could be taken for its objects with the module where they are not.
OURS = set(
    """
    data@build engine@from_onnx engine@plan error@from_onnx
    error@execution
    _about _buffers _BY_TYPE _cuda _graph _library _messages about buffer build chosen contextlib count
    Counter() ctypes datetime device dict driver dtypes dumps() fewer first graph hashlib header
    images importlib json known layers library logger major makers members message metadata minor monitor name
    note_path now() np npt onnx_path others out_folder path profiler re second self settings sha256() shapes sink
    super() sys target tensors text threading times timezone timing_cache util value version versions warnings
    """.split()
)


def modules() -> list[Path]:
    """Our modules that touch a library's objects: all that name one."""
    named = re.compile(r"\btrt\b|_timing_cache\(|execution_context")
    return [path for path in sorted(PACKAGE.rglob("*.py")) if named.search(path.read_text(encoding="utf-8"))]


def receiver(node: ast.expr) -> str:
    """Last part of an expression's name; ``""`` for what has none, such as a literal."""
    if isinstance(node, ast.Call):
        inner = receiver(node.func)
        return f"{inner}()" if inner else ""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def chain(node: ast.expr) -> list[str] | None:
    """``["BuilderFlag", "TF32"]`` of ``trt.BuilderFlag.TF32``, whatever holds the module; else None."""
    parts = []
    while isinstance(node, ast.Attribute):
        if node.attr in ("trt", "_trt"):
            return parts[::-1]
        parts.append(node.attr)
        node = node.value
    return parts[::-1] if isinstance(node, ast.Name) and node.id == "trt" else None


def used() -> tuple[set[str], set[str], set[str]]:
    """Read our source.

    Returns:
        Dotted names below the library's module that it uses; receivers that nobody placed, with module and
        attribute; and entries of the tables above that are no receiver any more.
    """
    places = {place: name for name, listed in CLASSES.items() for place in listed.split()}
    names, unplaced, seen = set(), set(), set()
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                names |= overridden(node)
            if not isinstance(node, ast.Attribute):
                continue
            dotted, from_ = chain(node), receiver(node.value)
            here = f"{from_}@{path.stem}"
            seen |= {from_, here}
            place = places.get(here, places.get(from_))
            if dotted is not None:
                names.add(".".join(dotted))
            elif place is not None:
                names.add(f"{place}.{node.attr}")
            elif from_ and chain(node.value) is None and not {from_, here} & OURS:
                unplaced.add(f"{here}.{node.attr}")
    used_names = {name for name in names if name and not name.endswith("__members__")}
    return used_names, unplaced, {*places, *OURS} - seen


def overridden(node: ast.ClassDef) -> set[str]:
    """Public methods of a class that derives from one of the library's: it calls them by these names."""
    bases = [dotted[0] for base in node.bases if (dotted := chain(base))]
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    plain = [item.name for item in methods if not item.decorator_list and not item.name.startswith("_")]
    return {f"{base}.{name}" for base in bases for name in plain}


CHECK = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
missing = []
for name in json.load(sys.stdin):
    value = module
    try:
        for part in name.split("."):
            value = getattr(value, part)
    except AttributeError:
        missing.append(name)
print(json.dumps([module.__version__, missing]))
"""


def missing_from(module: str, names: set[str], **environment: str) -> tuple[str, set[str]]:
    """Version of a module, and which names it lacks; in a process of its own, which may crash."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECK, module],
        input=json.dumps(sorted(names)), capture_output=True, text=True, env=environment or None, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    version, missing = json.loads(done.stdout)
    return version, set(missing)


def stub_libraries(extension: Path, folder: Path) -> None:
    """Libraries of the names that the bindings want to link to, with the functions that they look for.

    None of the functions is ever called: only the names of the module's classes are looked at.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler, to make stubs of the libraries that TensorRT's bindings link to")
    content = extension.read_bytes()
    wanted = rb"(?<=\0)(?:create|get|init)\w*(?:_INTERNAL|Registry|ParserVersion|Plugins)(?=\0)"
    functions = sorted(set(re.findall(wanted, content)))
    source = "\n".join(f"void {name.decode()}(void) {{}}" for name in functions)
    for name in set(re.findall(rb"(?<=\0)libnv\w+\.so\.\d+(?=\0)", content)):
        command = [compiler, "-shared", "-fPIC", "-x", "c", "-o", str(folder / name.decode()), "-"]
        subprocess.run(command, input=source, text=True, check=True, capture_output=True)


def bindings() -> list[Path]:
    """Wheels with the bindings, as `make` fetches them."""
    return sorted(WHEELS.glob("tensorrt_cu*_bindings-*.whl"))


def test_every_receiver_in_our_source_is_placed():
    names, unplaced, idle = used()
    assert unplaced == set(), "say in CLASSES what TensorRT calls it, or in OURS that it is none of TensorRT's"
    assert idle == set(), "take out of CLASSES and OURS"
    # Some that must be among them: the list is not empty by accident.
    assert {
        "Builder.build_serialized_network",
        "BuilderFlag.TF32",
        "IExecutionContext.execute_async_v3",
        "ILogger.Severity.WARNING",
        "IProfiler.report_layer_time",
        "IProgressMonitor.step_complete",
        "ITimingCache.serialize",
        "LayerType.DEQUANTIZE",
        "OnnxParser.num_errors",
        "ParserError.node_operator",
    } <= names
    assert len(names) > 60


@pytest.mark.skipif(installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx")
def test_tensorrt_rtx_has_all_of_it():
    _, missing = missing_from("tensorrt_rtx", used()[0])
    assert missing == set()


@pytest.mark.skipif(installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx")
def test_name_that_does_not_exist_is_noticed():
    _, missing = missing_from("tensorrt_rtx", {"Builder.build_engine", "BuilderFlag.FP16", "Builder.reset"})
    assert missing == {"Builder.build_engine", "BuilderFlag.FP16"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="TensorRT's bindings are looked at on Linux")
@pytest.mark.parametrize("wheel", bindings() or [None], ids=lambda wheel: wheel and wheel.name.split("-")[1])
def test_full_tensorrt_has_all_of_it(wheel, tmp_path):
    if wheel is None:
        pytest.skip(f"no wheel of TensorRT's bindings in {WHEELS}; `make bindings` fetches them")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    stub_libraries(tmp_path / "tensorrt_bindings" / "tensorrt.so", tmp_path)
    names = used()[0]
    version, missing = missing_from("tensorrt_bindings", names, PYTHONPATH=str(tmp_path), LD_LIBRARY_PATH=str(tmp_path))
    assert version == wheel.name.split("-")[1]
    assert int(version.split(".")[0]) >= 10
    assert missing == {name for name in names if name in RTX_ONLY or name.split(".")[0] in RTX_ONLY}


def test_cuda_python_has_every_call_that_we_make():
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python 12.6 or later")
    names = cuda_names()
    assert {"cudaGraphInstantiate", "cudaMemcpyKind.cudaMemcpyHostToDevice", "cudaStreamBeginCapture"} <= names
    for name in names:
        value = cudart
        for part in name.split("."):
            assert hasattr(value, part), name
            value = getattr(value, part)


def cuda_names() -> set[str]:
    """Functions and enumerators of the CUDA runtime that our source names, as text or as an attribute."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) else getattr(node, "attr", "")
            if isinstance(text, str) and re.fullmatch(r"cuda[A-Z]\w+", text):
                owner = receiver(node.value) if isinstance(node, ast.Attribute) else ""
                names.add(f"{owner}.{text}" if re.fullmatch(r"cuda[A-Z]\w+", owner) else text)
    return names

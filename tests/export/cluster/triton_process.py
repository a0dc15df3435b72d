"""Runs one of the generated Python models as Triton's Python backend does, in a process that has little else.

    python -I triton_process.py MODEL_FOLDER VERSION WORK_FOLDER

The module `triton_python_backend_utils` exists only inside Triton; the classes here stand in for what the models use of
it. Requests are read from WORK_FOLDER/requests.npz, responses written to WORK_FOLDER/responses.npz. Nothing but the
standard library, NumPy, Pillow and what lies in the model's folder can be imported.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType

ALLOWED = {"numpy", "PIL", "prunedeploy_engines", "prunedeploy_export"}


class Blocker:
    """Refuses what Triton's image does not have, and our packages where they are installed."""

    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in ALLOWED and top not in sys.stdlib_module_names and not top.isdecimal():
            raise ModuleNotFoundError(f"{name} is not in Triton's image", name=name)


class Tensor:
    def __init__(self, name, value):
        self._name, self._value = name, value

    def name(self):
        return self._name

    def as_numpy(self):
        return self._value


class TritonError:
    INVALID_ARG = 6

    def __init__(self, message, code=0):
        self.message, self.code = message, code


class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        self.outputs, self.error = list(output_tensors), error


class InferenceRequest:
    def __init__(self, tensors, parameters):
        self.tensors, self._parameters = tensors, parameters

    def parameters(self):
        return self._parameters


def stand_in():
    module = ModuleType("triton_python_backend_utils")
    for kind in (Tensor, TritonError, InferenceResponse):
        setattr(module, kind.__name__, kind)
    module.get_input_tensor_by_name = lambda request, name: request.tensors.get(name)
    return module


def read_requests(folder):
    """Keys are ``request/name``; BYTES are ``request/name/number``, one array of bytes each."""
    import numpy as np

    requests = {}
    with np.load(folder / "requests.npz") as stored:
        for key in stored.files:
            number, name, *element = key.split("/")
            tensors = requests.setdefault(int(number), {})
            if element:
                tensors.setdefault(name, []).append(stored[key].tobytes())
            else:
                tensors[name] = stored[key]
    given = json.loads((folder / "parameters.json").read_text())
    return [
        InferenceRequest(
            {
                name: Tensor(name, np.array(value, dtype=object) if isinstance(value, list) else value)
                for name, value in requests[number].items()
            },
            parameters,
        )
        for number, parameters in enumerate(given)
    ]


def main(model_folder, version, folder):
    sys.meta_path.insert(0, Blocker())
    sys.modules["triton_python_backend_utils"] = stand_in()
    sys.path += [str(model_folder / version), str(model_folder)]  # in this order, behind all others
    loaded = importlib.import_module(f"{version}.model")
    for name, module in list(sys.modules.items()):
        if re.match("prunedeploy", name):
            assert model_folder in Path(module.__file__).resolve().parents, f"{name} is the installed one"
    import numpy as np

    model = loaded.TritonPythonModel()
    model.initialize({"model_config": (folder / "config.json").read_text(), "model_version": version})
    written, errors = {}, {}
    for number, response in enumerate(model.execute(read_requests(folder))):
        if response.error is not None:
            errors[number] = [response.error.code, response.error.message]
        for tensor in response.outputs:
            written[f"{number}/{tensor.name()}"] = tensor.as_numpy()
    np.savez(folder / "responses.npz", **written)
    (folder / "errors.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2], Path(sys.argv[3]))

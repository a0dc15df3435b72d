"""Reading a configuration, once and at the edge, into `prunedeploy.config.blocks`.

Values come from, later ones winning: the defaults of the blocks, a YAML file, what that file says under ``by_method``
of the method in use, ``--set key=value``, and the options of the command line. A key that nobody knows, a wrong type or
a value out of range is a `ConfigError` of one line that names the key and where it was given. Paths are relative to the
current folder.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from prunedeploy.config.blocks import Block, BuildConfig, Method, method_by_its_granularity
from prunedeploy.resources import config_path
from prunedeploy_engines.errors import ConfigError

CHANGES_NO_RESULT = frozenset({"workers", "cache_mb", "checkpoint_every"})
OPTIONS = {
    "ratio": "ratio",
    "method": "method",
    "scores": "scores.name",
    "allocation": "allocation",
    "cfg": "model.cfg",
    "weights": "model.weights",
    "input_size": "model.input_size",
    "anchors": "model.anchors",
    "letterbox": "model.letterbox",
    "data": "data.path",
    "precision": "export.precisions",
    "qat": "export.int8.qat.steps",
    "uint8_input": "export.uint8_input",
    "nms": "export.nms",
    "target": "targets",
    "operating_point": "operating_point.rule",
    "seed": "seed",
}
"""The key that each option of ``prunedeploy build`` sets."""

KeyPath = tuple[str, ...]
AnyBlock = TypeVar("AnyBlock", bound=Block)


def load_config(
    source: str | Path = "demo", sets: Sequence[str] = (), options: Mapping[str, object] | None = None
) -> BuildConfig:
    """Read a configuration.

    ``--cfg`` or ``--weights`` replace the network, so a configuration that starts from the bundled robust
    weights then pre-trains the given ones, unless ``--set pretrain.from=...`` says something else.

    Args:
        source: Path of a YAML file, or the name of one that ships, e.g. ``demo``.
        sets: ``key=value`` each, key dotted, value in YAML; a block as value is merged into what is there.
        options: Values of the command line's options by name, see `OPTIONS`; None means: not given.

    Raises:
        ConfigError: Names the key, the file and line or the option, and what to write instead.
    """
    data, origins = read_yaml(source)
    if "base" in data and "configurations" in data:
        raise ConfigError("is the configuration of a sweep", source, "give it to `prunedeploy sweep --config`")
    given = {name: value for name, value in (options or {}).items() if value is not None}
    assignments = [(*_parse_set(assignment), f"--set {assignment}") for assignment in sets]
    chosen = [value for names, value, _ in assignments if names == ["method"]]
    data, origins = for_method(data, origins, given.get("method", chosen[-1] if chosen else None))
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    assignments += [(OPTIONS[name].split("."), value, f"--{name.replace('_', '-')}") for name, value in plain.items()]
    for names, value, where in assignments:
        _set(data, origins, names, value, where)
    _start_from_given_network(data, origins, given)
    return validated(BuildConfig, data, origins, str(source))


def for_method(
    data: Mapping[str, Any], origins: Mapping[KeyPath, str], method: object = None
) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Put what a file says under ``by_method`` of a method in the place of its general values.

    Args:
        data: Values of the file.
        origins: Where each key was given.
        method: Pruning method, if something but the file chose it; empty for what the file says of all methods.

    Returns:
        Values without ``by_method``, and their places; ``data`` and ``origins`` are not changed.

    Raises:
        ConfigError: ``by_method`` is not a mapping from methods to blocks, or a block chooses another method.
    """
    values = _unshared(data)
    of_methods = values.pop("by_method", None) or {}
    places = {path: place for path, place in origins.items() if path[0] != "by_method"}
    known = get_args(Method)
    for name in of_methods if isinstance(of_methods, dict) else ("by_method",):
        if name not in known or not isinstance(of_methods[name], dict):
            where = origins.get(("by_method", str(name)), origins[("by_method",)])
            raise ConfigError(f"{_shown(name)} is not a method with a block", where, f"known here: {', '.join(known)}")
        if "method" in of_methods[name]:
            where = origins["by_method", str(name), "method"]
            raise ConfigError(f"the block of {name} chooses a method itself", where, "leave it out")
    chosen = method_by_its_granularity(values.get("method", "structured") if method is None else method)
    for path, value in _leaves(of_methods.get(chosen, {}) if isinstance(chosen, str) else {}):
        _set(values, places, path, value, origins[("by_method", str(chosen), *path)])
    return values, places


def _leaves(block: Mapping[Any, Any]) -> Iterator[tuple[KeyPath, Any]]:
    """Every value in a block and the blocks in it, with its path."""
    for key, value in block.items():
        if isinstance(value, Mapping) and value:
            yield from (((str(key), *path), inner) for path, inner in _leaves(value))
        else:
            yield (str(key),), value


def _unshared(value: Any) -> Any:
    """A copy in which no two keys share a block, as they do after a YAML alias: setting one must not set the other."""
    return {key: _unshared(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def validated(kind: type[AnyBlock], data: Mapping[str, Any], origins: Mapping[KeyPath, str], source: str) -> AnyBlock:
    """Make a block of values.

    Args:
        kind: Kind of the block.
        data: Its values.
        origins: Where each key was given.
        source: Named in an error that has no key.

    Raises:
        ConfigError: Names the first wrong key, and where it was given.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        _raise_first(error, origins, source, kind)


def as_dict(block: BaseModel) -> dict[str, Any]:
    """Return a block as plain JSON values, with the keys of the YAML file."""
    return block.model_dump(mode="json", by_alias=True)


def result_settings(block: BaseModel) -> dict[str, Any]:
    """Return a block as `as_dict`, without the keys that change no result: what belongs in a stage's key."""
    return _without(as_dict(block), CHANGES_NO_RESULT)


def config_hash(config: BuildConfig) -> str:
    """Return the SHA-256 of a configuration's values, as 64 hexadecimal digits."""
    text = json.dumps(as_dict(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def default_out(config: BuildConfig) -> Path:
    """Return the folder a build writes into by default: ``runs/<name>-<method>-<scores>-<ratio>-s<seed>``."""
    name = f"{config.name}-{config.method}-{config.scores.name}-{config.ratio:g}-s{config.seed}"
    return Path("runs") / name


def _without(values: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    kept = {name: value for name, value in values.items() if name not in names}
    return {key: _without(value, names) if isinstance(value, dict) else value for key, value in kept.items()}


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-3`` is a number, as in YAML 1.2 and unlike PyYAML's default."""


# add_implicit_resolver copies the parent's table first, so PyYAML itself is left as it is.
_EXPONENT = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def _parse_yaml(text: str, where: object) -> tuple[Any, dict[KeyPath, int]]:
    """Return the document and the line of every key in it, 1-based."""
    try:
        lines = dict(_lines(yaml.compose(text, _Loader), (), where))
        return yaml.load(text, _Loader), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{mark.line + 1}" if mark and isinstance(where, Path) else where
        raise ConfigError(f"is not YAML: {error.problem or error.context}", place) from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"is not YAML: {error.reason} (at character {error.position})", where) from None
    except (ValueError, RecursionError) as error:  # a date such as 2024-99-99; a block that contains itself
        raise ConfigError(f"is not YAML: {error}", where) from None


def _lines(node: yaml.Node | None, path: KeyPath, where: object) -> Iterator[tuple[KeyPath, int]]:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        here = (*path, key.value)
        if key.value in seen:
            place = f"{where}:{line}" if isinstance(where, Path) else where
            raise ConfigError(f"{_dotted(here)} stands here and in line {seen[key.value]}", place, "keep one")
        seen[key.value] = line
        yield here, line
        yield from _lines(value, here, where)


def read_yaml(source: str | Path) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Read a YAML file: its values, and where each key stands, ``path:line``.

    Raises:
        ConfigError: It cannot be read, or is not a mapping.
    """
    path = Path(source)
    bare = isinstance(source, str) and path.name == source
    if bare and not (path.suffix in {".yaml", ".yml"} and path.exists()):
        path = config_path(path.name)
    fix = "give a YAML file or a shipped name"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", path, fix) from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", path, fix) from None
    data, lines = _parse_yaml(text, path)
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise ConfigError("is not a mapping of keys to values", path, "write lines such as `ratio: 0.75`")
    return data, {key: f"{path}:{line}" for key, line in lines.items()}


def _parse_set(assignment: str) -> tuple[list[str], Any]:
    key, equals, text = assignment.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not equals or not all(names):
        where, fix = f"--set {assignment}", "write e.g. --set finetune.lr=0.01"
        raise ConfigError("is not of the form key=value", where, fix)
    value, _ = _parse_yaml(text, f"--set {assignment}")
    return names, value


def _set(data: dict[str, Any], origins: dict[KeyPath, str], names: Sequence[str], value: Any, where: str) -> None:
    """Put a value at a dotted key; blocks on the way are made, a mapping is merged."""
    for depth, name in enumerate(names[:-1]):
        if data.get(name) is None:
            data[name] = {}
        if not isinstance(data[name], dict):
            raise ConfigError(f"{_dotted(names[: depth + 1])} is a value, it has no keys in it", where)
        data = data[name]
    if isinstance(value, dict) and isinstance(data.get(names[-1]), dict):
        for name, inner in value.items():
            _set(data, {}, [*names[-1:], str(name)], inner, where)
    else:
        data[names[-1]] = value
    below = [key for key in origins if key[: len(names)] == tuple(names)]
    origins.update(dict.fromkeys([tuple(names), *below], where))


def _start_from_given_network(data: dict[str, Any], origins: dict[KeyPath, str], given: Mapping[str, object]) -> None:
    for name in ("cfg", "weights"):
        if (Path(str(given.get(name, ""))) / "bundle.json").is_file():
            what = "is a bundle, which holds exported files: they are measured and deployed, not trained"
            raise ConfigError(what, f"--{name}", "give the model.cfg and model.weights that its build left beside it")
    pretrain = data.get("pretrain")
    start = pretrain.get("from") if isinstance(pretrain, dict) else None
    has_weights = "weights" in given or origins.get(("model", "weights"), "").startswith("--set")
    has_weights |= str(given.get("cfg", "")).lower().endswith(".onnx")  # which has its own
    if "cfg" in given and not has_weights and start != "scratch":
        fix = "add --weights, or --set pretrain.from=scratch"
        raise ConfigError("needs the weights of that network", "--cfg", fix)
    own_words = origins.get(("pretrain", "from"), "").startswith("--set")
    if start == "bundled" and not own_words and given.keys() & {"cfg", "weights"}:
        _set(data, origins, ["pretrain", "from"], "given", "--weights")


def _raise_first(
    error: ValidationError, origins: Mapping[KeyPath, str], source: str, kind: type[BaseModel]
) -> NoReturn:
    # An inherited attack repeats its errors in every training block: what was really written comes first.
    errors = error.errors()
    written = [item for item in errors if tuple(map(str, item["loc"])) in origins] or errors
    first, more = written[0], len(written) - 1
    location: KeyPath = tuple(map(str, first["loc"]))
    below = [origin for key, origin in origins.items() if key[: len(location)] == location]
    above = [origins[location[:n]] for n in range(len(location), 0, -1) if location[:n] in origins]
    where = next(iter(above), below[0] if location and below else source)
    rest = f" ({more} more problem{'s' * (more > 1)} in it)" if more else ""
    if first["type"] in {"extra_forbidden", "invalid_key"}:
        near = _nearest(location, kind)
        fix = f"did you mean {near}?" if near else f"known here: {', '.join(_keys(location[:-1], kind))}"
        raise ConfigError(f"unknown key {_dotted(location)}{rest}", where, fix) from None
    if first["type"] == "value_error":
        what = str(first["ctx"]["error"])
        where = _typed(what, location, origins) or where
        raise ConfigError((f"{_dotted(location)}: {what}" if location else what) + rest, where) from None
    if first["type"] == "model_type":
        what = f"is a block with keys, got {_shown(first['input'])}"
        fix = f"its keys: {', '.join(_keys(location, kind))}"
        raise ConfigError(f"{_dotted(location)} {what}{rest}", where, fix) from None
    what = first["msg"].removeprefix("Input ").removeprefix("String ")
    what = what.replace("a valid ", "a ").replace("a integer", "an integer")
    if first["type"] == "string_pattern_mismatch":
        what = f"is not of the form {first['ctx']['pattern']}"
    raise ConfigError(f"{_dotted(location)} {what}, got {_shown(first['input'])}{rest}", where) from None


def _typed(what: str, location: KeyPath, origins: Mapping[KeyPath, str]) -> str | None:
    """Where the command line gives a key that an error of its block names, the first such; None: it gives none."""
    keys = [(*location, *name.split(".")) for name in re.findall(r"\w+(?:\.\w+)*", what)]
    return next((origins[key] for key in keys if origins.get(key, "").startswith("--")), None)


def _nearest(location: KeyPath, kind: type[BaseModel]) -> str | None:
    wrong = str(location[-1])
    close = difflib.get_close_matches(wrong, _keys(location[:-1], kind), n=1, cutoff=0.6)
    if close:
        return _dotted((*location[:-1], close[0]))
    # Whoever writes in a block does not mean one within another block.
    there = [key for key in known_keys(kind) if len(location) == 1 or key.count(".") < len(location)]
    names = {key.rpartition(".")[2]: key for key in reversed(there)}
    if wrong in names:
        return " or ".join([key for key in there if key.rpartition(".")[2] == wrong][:3])
    return next((names[name] for name in difflib.get_close_matches(wrong, names, n=1, cutoff=0.85)), None)


def known_keys(kind: type[BaseModel] = BuildConfig, path: KeyPath = ()) -> list[str]:
    """Every dotted key of the block at ``path``, blocks included, in the order of the classes."""
    below = [(*path, name) for name in _keys(path, kind)]
    return [key for inner in below for key in (_dotted(inner), *known_keys(kind, inner))]


def _keys(path: KeyPath, kind: type[BaseModel]) -> list[str]:
    """Return the names of the keys of the block at ``path``, none if that is a value."""
    fields = {field.alias or key: field for key, field in kind.model_fields.items()}
    if not path:
        return list(fields)
    annotation = fields[path[0]].annotation if path[0] in fields else None
    parts = [annotation, *get_args(annotation)]
    block = next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)
    return [] if block is None else _keys(path[1:], block)


def _dotted(path: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in path) or "the configuration"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

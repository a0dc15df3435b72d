"""The manifest has fields that KServe knows, values that it takes, and what was asked for."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prunedeploy_engines.bundle import Bundle, BundleFile, write_bundle
from prunedeploy_engines.errors import BundleError, ConfigError
from prunedeploy_engines.files import file_sha256
from prunedeploy_engines.version import __version__
from prunedeploy_export.cluster.kserve_manifest import inference_service, to_yaml
from prunedeploy_export.cluster.kserve_settings import KServeSettings
from prunedeploy_export.cluster.serving_image import TRITON_USER_ID, USER_ID, dockerfile

SCHEMA = json.loads(Path(__file__).with_name("inference_service.schema.json").read_text(encoding="utf-8"))
OWN = {"image": "registry.example/detector:1"}
TRITON = {"server": "triton", "storage_uri": "s3://models/detector"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Any bundle: the manifest looks at no model."""
    folder = tmp_path_factory.mktemp("kserve") / "bundle"
    files = {"model.onnx": BundleFile(b"no network", "onnx", "fp32")}
    return write_bundle(folder, files, class_names=["red"], input={"height": 32, "width": 48})


def manifest_of(bundle: Bundle, **settings: Any) -> dict[str, Any]:
    """As `kubectl` reads it."""
    loaded: dict[str, Any] = yaml.safe_load(
        to_yaml(inference_service(bundle, KServeSettings(**{"name": "detector", **settings})))
    )
    return loaded


def check_schema(manifest: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema to check the manifest")
    jsonschema.validate(manifest, SCHEMA, cls=jsonschema.Draft202012Validator)


def container_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The container's fields, wherever they stand."""
    predictor = manifest["spec"]["predictor"]
    part: dict[str, Any] = predictor["model"] if "model" in predictor else predictor["containers"][0]
    return part


VARIANTS: dict[str, dict[str, Any]] = {
    "own, in the image": OWN,
    "own, fetched": {
        **OWN,
        "storage_uri": "pvc://claim/detector",
        "namespace": "vision",
        "token_secret": "detector-token",
    },
    "own, by cpu": {**OWN, "scale_metric": "cpu", "cpu": "500m", "memory": "768Mi"},
    "own, asleep": {**OWN, "min_replicas": 0, "scale_metric": "rps", "scale_target": 40, "concurrency": 16},
    "triton": TRITON,
    "triton on GPUs": {**TRITON, "gpus": 2, "image": "registry.example/triton:1", "service_account": "reader"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_manifest_fits_the_schema(bundle: Bundle, variant: str) -> None:
    check_schema(manifest_of(bundle, **VARIANTS[variant]))


@given(
    name=st.from_regex(r"[a-z]([a-z0-9-]{0,51}[a-z0-9])?", fullmatch=True),
    replicas=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    metric=st.sampled_from(["concurrency", "rps"]),
    target=st.integers(1, 10_000),
    concurrency=st.none() | st.integers(1, 1000),
    gpus=st.integers(0, 8),
    image=st.from_regex(r"[a-z]+(/[a-z]+)*:[\w.]+", fullmatch=True),
    server=st.sampled_from(["prunedeploy", "triton"]),
    uri=st.from_regex(r"(gs|s3|pvc)://[\w./-]+", fullmatch=True),
)
def test_every_setting_that_is_let_in_fits_the_schema(
    bundle: Bundle,
    name: str,
    replicas: tuple[int, int],
    metric: str,
    target: int,
    concurrency: int | None,
    gpus: int,
    image: str,
    server: str,
    uri: str,
) -> None:
    manifest = manifest_of(
        bundle,
        name=name,
        min_replicas=min(replicas),
        max_replicas=max(1, *replicas),
        scale_metric=metric,
        scale_target=target,
        concurrency=concurrency,
        gpus=gpus if server == "triton" else 0,
        image=image,
        server=server,
        storage_uri=uri,
    )
    check_schema(manifest)
    assert (manifest["metadata"]["name"], container_of(manifest)["image"]) == (name, image)


def test_schema_refuses_what_it_should() -> None:
    """A check that cannot fail would check nothing."""
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema to check the manifest")
    right = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "a"},
        "spec": {"predictor": {"minReplicas": 1, "containers": [{"name": "kserve-container", "image": "x"}]}},
    }
    check_schema(right)
    for changed in (
        {**right, "kind": "Service"},
        {**right, "spec": {"predictor": {**right["spec"]["predictor"], "minReplicas": "1"}}},
        {**right, "spec": {"predictor": {**right["spec"]["predictor"], "replicas": 1}}},
        {**right, "spec": {"predictor": {}}},
        {**right, "metadata": {"name": "A"}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            check_schema(changed)


def test_schema_is_a_part_of_kserves_own() -> None:
    """Every name and type in the reduced schema is one of the models that KServe generates from its definition."""
    pytest.importorskip("kserve", reason="needs kserve, whose models are compared with the schema")
    kserve_models, kubernetes = importlib.import_module("kserve"), importlib.import_module("kubernetes.client")
    kinds = {"string": "str", "integer": "int", "boolean": "bool"}
    seen = set()
    for title, part in [(SCHEMA["title"], SCHEMA), *SCHEMA["$defs"].items()]:
        if "properties" not in part:
            continue
        model = getattr(kserve_models, title, None) or getattr(kubernetes, title)
        types = {json_name: model.openapi_types[name] for name, json_name in model.attribute_map.items()}
        for name, value in part["properties"].items():
            assert name in types, f"{title} has no {name}"
            inner = re.sub(r"^(list\[|dict\(str, |dict\[str, )(.*)[\])]$", r"\2", types[name], flags=re.IGNORECASE)
            inner = {"ResourceQuantity": "str", "object": "int"}.get(inner, inner)  # a port is a number or a name
            of = value.get("items", value.get("additionalProperties", value))
            of = of if isinstance(of, dict) else value
            wanted = of["$ref"].rpartition("/")[2] if "$ref" in of else kinds.get(of.get("type", "string"))
            assert inner == {"quantity": "str"}.get(str(wanted), wanted), f"{title}.{name} is {types[name]}"
            seen.add((title, name))
    assert len(seen) > 50


def test_own_server_in_its_image(bundle: Bundle) -> None:
    manifest = manifest_of(bundle, **OWN)
    container = container_of(manifest)
    assert container["name"] == "kserve-container"
    assert container["args"][:6] == ["serve", "detector=/bundle", "--host", "0.0.0.0", "--port", "8000"]
    assert container["args"][6:] == ["--no-grpc", "--precision", "fp32"]
    assert container["ports"] == [{"containerPort": 8000, "protocol": "TCP"}]
    assert "env" not in container
    assert container["securityContext"]["runAsUser"] == USER_ID
    assert {probe["httpGet"]["port"] for probe in (container["readinessProbe"], container["livenessProbe"])} == {8000}


def test_own_server_with_a_fetched_bundle_and_a_token(bundle: Bundle) -> None:
    settings = {"storage_uri": "gs://models/detector", "token_secret": "for-clients", "name": "tiny"}
    container = container_of(manifest_of(bundle, **OWN, **settings))
    assert container["args"][:2] == ["serve", "tiny=/mnt/models"]
    assert container["env"] == [
        {"name": "STORAGE_URI", "value": "gs://models/detector"},
        {"name": "PRUNEDEPLOY_TOKEN", "valueFrom": {"secretKeyRef": {"name": "for-clients", "key": "token"}}},
    ]


def test_arguments_are_ones_that_the_server_takes(bundle: Bundle, tmp_path: Path) -> None:
    """The real command parses them, all but that there is no such folder here."""
    from prunedeploy.cli.serve import command

    arguments = container_of(manifest_of(bundle, **OWN, storage_uri="gs://a/b"))["args"]
    assert arguments[0] == command.name
    parsed = command.make_context("serve", arguments[1:]).params
    assert (parsed["host"], parsed["port"], parsed["no_grpc"]) == ("0.0.0.0", 8000, True)
    assert (parsed["bundles"], parsed["precision"]) == (("detector=/mnt/models",), "fp32")


def test_precision_must_be_in_the_bundle_and_a_plan_for_gpus(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="has no onnx of precision int8"):
        inference_service(bundle, KServeSettings("detector", **OWN, precision="int8"))
    with pytest.raises(BundleError, match="has no TensorRT plan in fp32, which prunedeploy's server needs"):
        inference_service(bundle, KServeSettings("detector", **OWN, gpus=1))


def test_triton_is_the_clusters_runtime(bundle: Bundle) -> None:
    model = container_of(manifest_of(bundle, **TRITON))
    assert (model["modelFormat"], model["runtime"], model["protocolVersion"]) == (
        {"name": "triton"},
        "kserve-tritonserver",
        "v2",
    )
    assert model["storageUri"] == "s3://models/detector"
    assert "image" not in model
    assert {probe["httpGet"]["port"] for probe in (model["readinessProbe"], model["livenessProbe"])} == {8080}
    assert model["securityContext"]["runAsUser"] == TRITON_USER_ID


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_rights_and_no_writing_but_where_it_must(bundle: Bundle, variant: str) -> None:
    manifest = manifest_of(bundle, **VARIANTS[variant])
    container = container_of(manifest)
    context = container["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] >= 1000
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    volumes = {volume["name"]: volume["emptyDir"] for volume in manifest["spec"]["predictor"]["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(volumes) == set(mounts)
    assert mounts == ({"tmp": "/tmp", "shm": "/dev/shm"} if "triton" in variant else {"tmp": "/tmp"})
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"


def test_resources_and_gpus_only_where_asked(bundle: Bundle) -> None:
    plain = container_of(manifest_of(bundle, **OWN, cpu="1500m", memory="3Gi"))["resources"]
    assert plain == {"requests": {"cpu": "1500m", "memory": "3Gi"}, "limits": {"cpu": "1500m", "memory": "3Gi"}}
    gpus = container_of(manifest_of(bundle, **TRITON, gpus=2))["resources"]
    assert gpus["limits"]["nvidia.com/gpu"] == gpus["requests"]["nvidia.com/gpu"] == "2"


def test_scaling_and_the_mode_that_it_needs(bundle: Bundle) -> None:
    by_load = manifest_of(bundle, **OWN, min_replicas=0, max_replicas=9, concurrency=16, timeout_s=5, startup_s=240)
    predictor = by_load["spec"]["predictor"]
    assert {key: predictor[key] for key in ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "timeout")} == {
        "minReplicas": 0,
        "maxReplicas": 9,
        "scaleMetric": "concurrency",
        "scaleTarget": 8,
        "timeout": 5,
    }
    assert predictor["containerConcurrency"] == 16
    assert by_load["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Knative"
    assert container_of(by_load)["livenessProbe"]["initialDelaySeconds"] == 240
    by_cpu = manifest_of(bundle, **OWN, scale_metric="cpu")
    assert by_cpu["spec"]["predictor"]["scaleTarget"] == 80
    annotations = by_cpu["metadata"]["annotations"]
    assert annotations["serving.kserve.io/deploymentMode"] == "Standard"
    assert annotations["serving.kserve.io/autoscalerClass"] == "hpa"


def test_manifest_says_which_bundle_it_is_for(bundle: Bundle) -> None:
    annotations = manifest_of(bundle, **OWN)["metadata"]["annotations"]
    assert annotations["prunedeploy/bundle-sha256"] == file_sha256(bundle.path / "bundle.json")
    assert annotations["prunedeploy/version"] == __version__


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "Detector"}, "--name: 'Detector' is not a service name .* [(]RFC 1123[)]"),
        ({"name": "7up"}, "--name: '7up'"),
        ({"name": "a_b"}, "--name: 'a_b'"),
        ({"name": "a-"}, "--name: 'a-'"),
        ({"name": ""}, "--name: ''"),
        ({"name": "a" * 54}, "--name: .* at most 53 characters"),
        ({"name": "a\n"}, "--name: "),
        ({"namespace": "My space"}, "--namespace: 'My space' is not a valid namespace"),
        ({"image": None}, "--image: is needed for prunedeploy's server"),
        ({"image": "a b"}, "--image: 'a b' is not the name of an image"),
        ({"server": "triton"}, "--storage-uri: is needed for Triton"),
        ({**TRITON, "token_secret": "a"}, "--token-secret: is for prunedeploy's server"),
        ({"token_secret": "a/b"}, "--token-secret: 'a/b' is not the name of a Secret"),
        ({"storage_uri": "/models"}, "--storage-uri: '/models' is not an address that KServe fetches from"),
        ({"storage_uri": "ftp://models"}, "--storage-uri: 'ftp://models' is not an address"),
        ({"storage_uri": "s3://"}, "--storage-uri: 's3://' is not an address"),
        ({"storage_uri": "s3://a b"}, "--storage-uri: "),
        ({"min_replicas": -1}, "--min-replicas: -1 is negative"),
        ({"max_replicas": 0, "min_replicas": 0}, "--max-replicas: 0 is less than one"),
        ({"min_replicas": 4, "max_replicas": 3}, "--max-replicas: 3 is less than --min-replicas 4"),
        ({"scale_metric": "cpu", "min_replicas": 0}, "--min-replicas: 0 needs Knative"),
        ({"scale_metric": "cpu", "concurrency": 4}, "--concurrency: is kept by Knative"),
        ({"scale_metric": "cpu", "scale_target": 101}, "--scale-target: 101 is not a target for cpu"),
        ({"scale_metric": "rps"}, "--scale-target: is needed for rps"),
        ({"scale_target": 0}, "--scale-target: 0 is not a target"),
        ({"concurrency": 0}, "--concurrency: 0 is not"),
        ({"cpu": "much"}, "--cpu: 'much' is not a valid amount"),
        ({"cpu": "0"}, "--cpu: '0' is not a valid amount"),
        ({"memory": "-1Gi"}, "--memory: '-1Gi' is not a valid amount"),
        ({"memory": "2GB"}, "--memory: '2GB' is not a valid amount"),
        ({"gpus": -1}, "--gpus: -1 is not a number of GPUs"),
        ({"timeout_s": 0}, "--timeout-s: 0 is not"),
        ({"startup_s": 0}, "--startup-s: 0 is not"),
    ],
)
def test_what_the_cluster_would_refuse_is_one_line_here(bundle: Bundle, settings: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        inference_service(bundle, KServeSettings(**{"name": "detector", **OWN, **settings}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("with_bundle", [False, True])
@pytest.mark.parametrize("runtime", ["cpu", "gpu", "rtx"])
def test_image_of_the_own_server_runs_without_root(with_bundle: bool, runtime: str) -> None:
    text = dockerfile("prunedeploy", with_bundle=with_bundle, runtime=runtime)
    instructions = [line.split(maxsplit=1) for line in text.splitlines() if re.match("[A-Z]+ ", line)]
    assert [name for name, _ in instructions if name == "FROM"] == ["FROM"]
    assert dict(instructions)["USER"] == f"{USER_ID}:{USER_ID}"
    assert f"--uid {USER_ID}" in text
    assert json.loads(dict(instructions)["ENTRYPOINT"]) == ["prunedeploy"]
    assert json.loads(dict(instructions)["CMD"])[:2] == [
        "serve",
        "detector=/bundle" if with_bundle else "detector=/mnt/models",
    ]
    assert ("COPY --chown=root:root bundle /bundle" in text) is with_bundle
    assert f"prunedeploy-{__version__}-py3-none-any.whl[{runtime},serve]" in text
    last = [name for name, _ in instructions]
    assert last.index("USER") > max(number for number, name in enumerate(last) if name in ("RUN", "COPY"))


def test_image_of_triton_adds_pillow_and_drops_root() -> None:
    text = dockerfile("triton")
    assert re.search(r"^RUN pip install .*--no-deps .*pillow", text, re.MULTILINE)
    assert text.rstrip().endswith(f"USER {TRITON_USER_ID}:{TRITON_USER_ID}")
    assert "FROM ${TRITON_IMAGE}" in text

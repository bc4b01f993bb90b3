"""The manifests of docker/kubernetes, as kubectl renders them. No cluster is asked."""

import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from service.http.routes import create_app, endpoints_of
from service.http.state import State
from service.launch import _GRACE_SECONDS
from service.settings import PREFIX, Settings, SettingsError
from service.telemetry import metrics
from tests.serving import ROOT

DOCKER = ROOT / "docker"
KUBERNETES = DOCKER / "kubernetes"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
OVERLAYS = ("cpu", "gpu")
COMPONENTS = sorted(folder.name for folder in (KUBERNETES / "components").iterdir())
DOCUMENTED = yaml.safe_load(
    re.findall(r"```yaml\n(resources:.*?)```", (ROOT / "docs" / "deployment.md").read_text(), re.DOTALL)[0]
)
COMBINATIONS = [(), *((name,) for name in COMPONENTS), tuple(Path(path).name for path in DOCUMENTED["components"])]
MINIMUM_VERSION = "1.27"  # as base/deployment.yaml and docs/deployment.md say

# What is used of custom resources, as the Prometheus operator 0.80 and KEDA 2.16 define it. Of a PrometheusRule all has
# to be as in docker/prometheus, and KEDA's `behavior` as the HorizontalPodAutoscaler's.
CUSTOM_FIELDS = {
    "ServiceMonitor": {
        "jobLabel",
        "selector.matchLabels.app.kubernetes.io/name",
        "endpoints.port",
        "endpoints.path",
        "endpoints.interval",
        "endpoints.relabelings.action",
        "endpoints.relabelings.regex",
    },
    "ScaledObject": {
        "scaleTargetRef.name",
        "minReplicaCount",
        "maxReplicaCount",
        "pollingInterval",
        "triggers.type",
        "triggers.metricType",
        *(f"triggers.metadata.{name}" for name in ("serverAddress", "query", "threshold", "ignoreNullValues")),
        *(
            f"advanced.horizontalPodAutoscalerConfig.behavior.{way}.{name}"
            for way in ("scaleUp", "scaleDown")
            for name in (
                "stabilizationWindowSeconds",
                *(f"policies.{name}" for name in ("type", "value", "periodSeconds")),
            )
        ),
    },
}
VERSIONS_OF_CUSTOM = {
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "ScaledObject": "keda.sh/v1alpha1",
}
# Labels that the Prometheus operator gives whatever a ServiceMonitor finds.
OPERATORS_LABELS = {"job", "instance", "namespace", "service", "pod", "container", "endpoint"}
SERIES = {value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)}
SERIES_NAMES = {metric.name for series in SERIES for metric in series.describe()}


def _tool(name: str) -> str:
    package = {"kubectl": "kubernetes-client (of Debian 13; kubectl 1.27 or later)", "promtool": "prometheus"}[name]
    return shutil.which(name) or pytest.fail(f"{name} is missing; Debian: apt-get install {package}")


def _kustomization(overlay: str, components: tuple[str, ...]) -> dict[str, Any]:
    there = "../convserve/docker/kubernetes"
    return {
        "resources": [f"{there}/overlays/{overlay}"],
        "components": [f"{there}/components/{name}" for name in components],
    }


def _built(kustomization: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """In a folder beside a checkout of docker/kubernetes alone, as docs/deployment.md has it."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(KUBERNETES, Path(folder, "convserve", "docker", "kubernetes"))
        own = Path(folder, "own")
        own.mkdir()
        (own / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        command = [_tool("kubectl"), "kustomize", str(own)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@dataclass(frozen=True)
class Manifests:
    documents: list[dict[str, Any]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [document for document in self.documents if document["kind"] == kind]

    def one(self, kind: str) -> dict[str, Any]:
        (document,) = self.of(kind)
        return document

    @property
    def pod(self) -> dict[str, Any]:
        return dict(self.one("Deployment")["spec"]["template"]["spec"])

    @property
    def container(self) -> dict[str, Any]:
        (container,) = self.pod["containers"]
        return dict(container)

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.one("Deployment")["spec"]["template"]["metadata"]["labels"])

    @property
    def environment(self) -> dict[str, str]:
        return {variable["name"]: variable["value"] for variable in self.container["env"]}


def _manifests(done: subprocess.CompletedProcess[str]) -> Manifests:
    assert done.returncode == 0, done.stderr
    return Manifests(list(yaml.safe_load_all(done.stdout)))


@functools.cache
def _rendered(overlay: str, components: tuple[str, ...] = ()) -> Manifests:
    return _manifests(_built(_kustomization(overlay, components)))


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=COMBINATIONS, ids=lambda names: "+".join(names) or "alone")
def manifests(request: pytest.FixtureRequest, overlay: str) -> Manifests:
    return _rendered(overlay, request.param)


# --- each combination ---


def test_each_object_has_only_fields_that_the_api_knows(manifests: Manifests) -> None:
    for document in manifests.documents:
        kind = document["kind"]
        if kind in VERSIONS_OF_CUSTOM:
            assert document["apiVersion"] == VERSIONS_OF_CUSTOM[kind]
            assert kind not in CUSTOM_FIELDS or set(_fields(document["spec"])) <= CUSTOM_FIELDS[kind]
            continue
        for version in (MINIMUM_VERSION, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(document, version, strict=True)


def _fields(value: Any, path: str = "") -> Iterator[str]:
    """The paths of all that is no mapping or list."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _fields(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for inner in value:
            yield from _fields(inner, path)
    else:
        yield path


def test_pods_are_allowed_where_pod_security_is_restricted(manifests: Manifests) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, control by control."""
    pod = manifests.pod
    security = pod["securityContext"]
    assert not any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
    assert not {"sysctls", "seLinuxOptions", "appArmorProfile", "windowsOptions"} & set(security)
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"])
    for container in [*pod["containers"], *pod.get("initContainers", []), *pod.get("ephemeralContainers", [])]:
        own = container["securityContext"]
        effective = {**security, **own}
        assert effective["runAsNonRoot"] is True and effective["runAsUser"] > 0
        assert effective["seccompProfile"]["type"] in {"RuntimeDefault", "Localhost"}
        assert own["allowPrivilegeEscalation"] is False and not own.get("privileged")
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert "procMount" not in own and not any("hostPort" in port for port in container["ports"])


def test_pods_get_no_more_than_the_image_needs(manifests: Manifests) -> None:
    security, container = manifests.pod["securityContext"], manifests.container
    user, group = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)[0]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (int(user), int(group), int(group))
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert manifests.pod["automountServiceAccountToken"] is False
    writable = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert set(writable) == {"/tmp"} and "HOME=/tmp" in DOCKERFILE
    (tmp,) = (volume["emptyDir"] for volume in manifests.pod["volumes"] if volume["name"] == writable["/tmp"])
    assert tmp["medium"] == "Memory" and _bytes(tmp["sizeLimit"]) >= _bytes("64Mi")


def test_every_selector_finds_the_pods(manifests: Manifests) -> None:
    spec = manifests.one("Deployment")["spec"]
    selectors = [
        spec["selector"]["matchLabels"],
        manifests.one("Service")["spec"]["selector"],
        manifests.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        manifests.one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in manifests.pod["topologySpreadConstraints"]),
    ]
    assert len(selectors) == 6
    assert all(selector and selector.items() <= manifests.labels.items() for selector in selectors)


def test_ports_are_found_by_name_and_probes_ask_for_paths_that_exist(manifests: Manifests) -> None:
    container = manifests.container
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"http": 3000}
    assert re.search(r"\bPORT=3000\b", DOCKERFILE)
    (port,) = manifests.one("Service")["spec"]["ports"]
    assert (port["name"], port["port"], port["targetPort"]) == ("http", 80, "http")
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": "/livez",
    }
    endpoint_of = endpoints_of(create_app(State(Settings())))
    assert all(endpoint_of(probe["path"]) == probe["path"] for probe in probes.values())


def test_the_service_takes_every_setting(manifests: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(name.startswith(PREFIX) for name in manifests.environment)
    for name, value in manifests.environment.items():
        monkeypatch.setenv(name, value)
    Settings.read()


def test_what_kubernetes_says_of_services_stays_out_of_the_settings(
    manifests: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Service's name is ours, so its variables look like settings."""
    name = manifests.one("Service")["metadata"]["name"].upper()
    monkeypatch.setenv(f"{name}_PORT", "tcp://10.0.0.1:80")
    with pytest.raises(SettingsError):
        Settings.read()
    assert manifests.pod["enableServiceLinks"] is False


def test_a_pod_is_not_killed_before_it_has_answered_all(manifests: Manifests) -> None:
    drain_seconds = float(manifests.environment["CONVSERVE_DRAIN_SECONDS"])
    assert drain_seconds >= 5  # docs/settings.md: behind a load balancer
    command = manifests.container["lifecycle"]["preStop"]["exec"]["command"]
    found = re.search(r"time\.sleep\((\d+)\)", command[-1])
    assert command[0] == "python" and found  # as the image's entry point is called
    hook_seconds = int(found[1])
    assert manifests.pod["terminationGracePeriodSeconds"] >= hook_seconds + drain_seconds + _GRACE_SECONDS


def test_there_is_always_a_pod(manifests: Manifests) -> None:
    deployment = manifests.one("Deployment")["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert manifests.one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    scaled = [
        scaler["spec"].get("minReplicas", scaler["spec"].get("minReplicaCount")) for scaler in _scalers(manifests)
    ]
    assert (scaled or [deployment["replicas"]])[0] >= 2


def test_anybody_may_ask_and_nobody_is_called(manifests: Manifests) -> None:
    policy = manifests.one("NetworkPolicy")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"} and not policy.get("egress")
    assert policy["ingress"] == [{"ports": [{"port": "http"}]}]


# --- overlays ---


def test_the_overlays_differ_in_image_device_and_resources(overlay: str) -> None:
    manifests = _rendered(overlay)
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    assert manifests.container["image"] == f"convserve:{overlay}"
    assert f"convserve:{overlay}" in {service["image"] for service in compose.values()}
    assert manifests.environment["CONVSERVE_DEVICE"] == {"cpu": "cpu", "gpu": "cuda"}[overlay]
    gpus = manifests.container["resources"]["limits"].get("nvidia.com/gpu")
    assert gpus == {"cpu": None, "gpu": 1}[overlay]  # at most one: convserve uses the first


def test_memory_is_enough_for_the_workers_that_the_cores_make(overlay: str) -> None:
    resources = _rendered(overlay).container["resources"]
    cores = int(resources["limits"]["cpu"])
    assert resources["requests"]["cpu"] == str(cores)  # whole ones, and all of them surely
    assert _bytes(resources["requests"]["memory"]) >= cores * 350e6 + _bytes("128Mi")
    assert _bytes(resources["limits"]["memory"]) >= _bytes(resources["requests"]["memory"])


def _bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": 1024**2, "Gi": 1024**3}[unit]


# --- components ---


def test_own_models_are_read_from_the_claim(overlay: str) -> None:
    manifests = _rendered(overlay, ("models",))
    folder = manifests.environment["CONVSERVE_REPOSITORY"]
    assert f"VOLUME {folder}\n" in DOCKERFILE
    (mount,) = (mount for mount in manifests.container["volumeMounts"] if mount["mountPath"] == folder)
    (volume,) = (volume for volume in manifests.pod["volumes"] if volume["name"] == mount["name"])
    claim = manifests.one("PersistentVolumeClaim")
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"] and mount["readOnly"]


def test_prometheus_finds_the_service_under_the_name_that_alerts_ask_for() -> None:
    manifests = _rendered("cpu", ("prometheus",))
    service, monitor = manifests.one("Service"), manifests.one("ServiceMonitor")["spec"]
    (scraped,) = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert service["metadata"]["labels"][monitor["jobLabel"]] == scraped["job_name"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"


def test_no_label_of_ours_is_renamed_by_prometheus() -> None:
    """It would be where the operator's is called the same, and every rule that uses it would find nothing."""
    (endpoint,) = _rendered("cpu", ("prometheus",)).one("ServiceMonitor")["spec"]["endpoints"]
    dropped = {rule["regex"] for rule in endpoint["relabelings"] if rule["action"] == "labeldrop"}
    ours = {label for series in SERIES for label in series._labelnames} | {"gpu"}
    assert "endpoint" in ours and not ours & (OPERATORS_LABELS - dropped)


@pytest.mark.parametrize("name", ["rules", "alerts"])
def test_prometheus_gets_the_rules_of_docker_prometheus(name: str) -> None:
    (document,) = (
        document
        for document in _rendered("cpu", ("prometheus",)).of("PrometheusRule")
        if document["metadata"]["name"] == f"convserve-{name}"
    )
    source = yaml.safe_load((DOCKER / "prometheus" / f"{name}.yml").read_text())
    assert document["spec"] == source, "`make rules` was forgotten"


def _scalers(manifests: Manifests) -> list[dict[str, Any]]:
    return manifests.of("HorizontalPodAutoscaler") + manifests.of("ScaledObject")


@pytest.mark.parametrize("component", ["hpa", "keda"])
def test_what_scales_the_deployment_is_alone_in_it(component: str) -> None:
    manifests = _rendered("cpu", (component,))
    (scaler,) = _scalers(manifests)
    deployment, target = manifests.one("Deployment"), scaler["spec"]["scaleTargetRef"]
    assert target["name"] == deployment["metadata"]["name"]
    assert target.get("kind", "Deployment") == "Deployment" and target.get("apiVersion", "apps/v1") == "apps/v1"
    assert "replicas" not in deployment["spec"]


@pytest.mark.parametrize("components", [("hpa", "keda"), ("keda", "hpa")], ids="+".join)
def test_two_that_scale_are_refused(components: tuple[str, ...]) -> None:
    done = _built(_kustomization("cpu", components))
    assert done.returncode != 0 and "nonexistent key: replicas" in done.stderr


def test_keda_scales_as_the_autoscaler_does() -> None:
    ours = _rendered("cpu", ("hpa",)).one("HorizontalPodAutoscaler")["spec"]
    kedas = _rendered("cpu", ("keda",)).one("ScaledObject")["spec"]
    (trigger,), (metric,) = kedas["triggers"], ours["metrics"]
    assert (kedas["minReplicaCount"], kedas["maxReplicaCount"]) == (ours["minReplicas"], ours["maxReplicas"])
    assert kedas["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == ours["behavior"]
    assert (
        trigger["type"] == "prometheus" and trigger["metricType"] == metric["pods"]["target"]["type"] == "AverageValue"
    )
    assert trigger["metadata"]["threshold"] == metric["pods"]["target"]["averageValue"]
    assert all(isinstance(value, str) for value in trigger["metadata"].values())  # KEDA takes nothing else


def test_scaling_goes_by_what_waits_in_a_pod(tmp_path: Path) -> None:
    """The adapter's query and KEDA's, asked of Prometheus' own engine: 8 samples wait in one pod, 4 in the other."""
    (metric,) = _rendered("cpu", ("hpa",)).one("HorizontalPodAutoscaler")["spec"]["metrics"]
    adapter = yaml.safe_load((KUBERNETES / "components" / "hpa" / "adapter-values.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    series, _, matchers = rule["seriesQuery"].partition("{")
    assert series == metric["pods"]["metric"]["name"] and series in SERIES_NAMES
    assert matchers == 'namespace!="",pod!=""}' and set(rule["resources"]["overrides"]) == {"namespace", "pod"}
    # As the adapter fills in its template for the pods of a Deployment.
    template = {"Series": series, "LabelMatchers": 'namespace="ours",pod=~"a|b"', "GroupBy": "pod"}
    per_pod = re.sub(r"<<\.(\w+)>>", lambda name: template[name[1]], rule["metricsQuery"])
    (trigger,) = _rendered("cpu", ("keda",)).one("ScaledObject")["spec"]["triggers"]

    def waiting(pod: str, model: str, namespace: str, count: int) -> dict[str, str]:
        labels = f'job="convserve",namespace="{namespace}",pod="{pod}",model="{model}"'
        return {"series": f"convserve_queue_depth{{{labels}}}", "values": f"{count - 1} {count} {count + 1} {count}"}

    test = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    waiting("a", "cifar10:3", "ours", 2),
                    waiting("a", "camvid:2", "ours", 6),
                    waiting("b", "cifar10:3", "ours", 4),
                ],
                "promql_expr_test": [
                    {
                        "expr": per_pod,
                        "eval_time": "45s",
                        "exp_samples": [{"labels": '{pod="a"}', "value": 8}, {"labels": '{pod="b"}', "value": 4}],
                    },
                    {
                        "expr": trigger["metadata"]["query"],
                        "eval_time": "45s",
                        "exp_samples": [{"labels": "{}", "value": 12}],
                    },
                ],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(test))
    command = [_tool("promtool"), "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- the documentation ---


def test_the_documented_kustomization_builds() -> None:
    manifests = _manifests(_built(DOCUMENTED))
    (image,) = DOCUMENTED["images"]
    assert manifests.container["image"] == f"{image['newName']}:{image['newTag']}"
    assert {document["metadata"]["namespace"] for document in manifests.documents} == {DOCUMENTED["namespace"]}
    kubernetes_validate.validate(manifests.one("Deployment"), MINIMUM_VERSION, strict=True)

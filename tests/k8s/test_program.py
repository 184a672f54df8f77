"""What the manifests name exists in the program: commands, settings, variables, ports, paths."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import ray
import yaml
from built import K8S, NO_KUBECTL, OVERLAYS, Manifest, amount, build, objects, pods
from ray._private import ray_constants
from ray.dashboard.modules.job import job_supervisor

from launch.submit import MODULES
from pmg.config import Config, load_config

pytestmark = NO_KUBECTL

JOBS = ("ingest", "train", "tune", "translate", "evaluate")


def job(overlay: str, name: str) -> Manifest:
    made = objects(build(f"overlays/{overlay}/jobs"), "RayJob")
    return next(one["spec"] for one in made if one["metadata"]["name"] == f"pmg-{name}")


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    return next(one for one in objects(manifests, kind) if one["metadata"]["name"] == name)


def run_config(overlay: str) -> Config:
    return load_config(K8S / "overlays" / overlay / "run.yaml")


def group(spec: Manifest, name: str) -> Manifest:
    return next(g for g in spec["rayClusterSpec"]["workerGroupSpecs"] if g["groupName"] == name)


def capacity(spec: Manifest, name: str, resource: str) -> float:
    """Of one node of the group."""
    limits = group(spec, name)["template"]["spec"]["containers"][0]["resources"]["limits"]
    return float(limits.get(resource, 0))


def parsed(overlay: str, name: str, tmp_path: Path) -> dict[str, Any]:
    """The entrypoint's arguments, read by its own parser, on paths that exist here."""
    python, dash_m, module, *arguments = shlex.split(job(overlay, name)["entrypoint"])
    assert (python, dash_m, module) == ("python", "-m", MODULES[name])
    command = importlib.import_module(module).main
    assert isinstance(command, click.Command)
    here = [_local(argument, overlay, tmp_path) for argument in arguments]
    return dict(command.make_context(module, here).params)


def _local(argument: str, overlay: str, tmp_path: Path) -> str:
    if argument.startswith("/etc/pmg/"):
        return str(K8S / "overlays" / overlay / argument.removeprefix("/etc/pmg/"))
    if not argument.startswith("/"):
        return argument
    path = tmp_path / argument.lstrip("/")
    if path.suffix or path.name == "key":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    else:
        path.mkdir(parents=True, exist_ok=True)
    return str(path)


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_commands_own_parser_takes_the_entrypoint(
    overlay: str, name: str, tmp_path: Path
) -> None:
    if importlib.util.find_spec(MODULES[name]) is None:
        pytest.skip(f"NOT CHECKED: this version has no {MODULES[name]}")
    assert parsed(overlay, name, tmp_path)


def test_a_misspelt_option_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = job("laptop", "train")
    spec["entrypoint"] += " --runs /runs/demo"
    monkeypatch.setattr("test_program.job", lambda *_: spec)
    with pytest.raises(click.NoSuchOption):
        parsed("laptop", "train", tmp_path)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_load_and_fit_the_jobs_nodes(overlay: str) -> None:
    launch, spec = run_config(overlay).launch, job(overlay, "train")
    workers = "gpu" if launch.gpus_per_worker else "cpu"
    nodes = group(spec, workers)["replicas"]
    spare = spec["entrypointNumCpus"] if workers == "cpu" else 0
    cpus = (capacity(spec, workers, "cpu") - spare) // launch.cpus_per_worker
    assert launch.workers <= cpus * nodes
    if launch.gpus_per_worker:
        assert launch.workers == capacity(spec, workers, "nvidia.com/gpu") * nodes


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_search_loads_and_one_trial_fits_its_nodes(overlay: str, tmp_path: Path) -> None:
    config = pytest.importorskip("tune.config", reason="NOT CHECKED: this version has no search")
    written = (K8S / "overlays" / overlay / "tune.yaml").read_text()
    local = written.replace("/etc/pmg/run.yaml", str(K8S / "overlays" / overlay / "run.yaml"))
    (tmp_path / "tune.yaml").write_text(local)
    search = config.load_search(tmp_path / "tune.yaml")
    assert search.searched()
    resources, spec = search.resources, job(overlay, "tune")
    workers = "gpu" if resources.gpus_per_worker else "cpu"
    assert resources.cpus_per_worker <= capacity(spec, workers, "cpu") - 1
    assert resources.gpus_per_worker <= capacity(spec, workers, "nvidia.com/gpu")
    environment = named(build(f"overlays/{overlay}"), "ConfigMap", "pmg-environment")["data"]
    assert search.storage == "postgresql://{PGUSER}@{PGHOST}:{PGPORT}/{PGDATABASE}".format(
        **environment
    )


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_path_of_an_entrypoint_lies_on_a_volume_of_the_drivers_node(
    overlay: str, name: str
) -> None:
    spec = job(overlay, name)
    assert spec["entrypointNumCpus"] >= 1, "the driver would run on the head"
    assert group(spec, "cpu")["replicas"] >= 1
    mounts = group(spec, "cpu")["template"]["spec"]["containers"][0]["volumeMounts"]
    writable = {m["mountPath"]: not m.get("readOnly") for m in mounts}
    words = shlex.split(spec["entrypoint"])
    paths = [(words[n - 1], word) for n, word in enumerate(words) if word.startswith("/")]
    assert paths
    for option, path in paths:
        (mount,) = [m for m in writable if path.startswith(f"{m}/")]
        if option in ("--out", "--run") and name not in ("translate", "evaluate"):
            assert writable[mount], path
    if "--out" in words:
        assert writable["/" + words[words.index("--out") + 1].split("/")[1]]


def test_the_settings_that_are_named_are_in_the_map_and_the_key_in_its_secret() -> None:
    for overlay in OVERLAYS:
        settings = named(build(f"overlays/{overlay}"), "ConfigMap", "pmg-settings")["data"]
        for name in JOBS:
            for path in re.findall(r"/etc/pmg/(\S+)", job(overlay, name)["entrypoint"]):
                assert path in settings
    script = (K8S / "make-secrets").read_text()
    for manifests in (build("overlays/gpu-cluster"), build("overlays/gpu-cluster/jobs")):
        for pod in pods(manifests):
            for secret, key in _references(pod.spec):
                assert re.search(rf"secret_?\w* {secret}\b", script), secret
                assert key is None or re.search(rf"--from-(file|literal)={key}=", script), key
    assert "--from-file=key=" in script


def _references(spec: Manifest) -> list[tuple[str, str | None]]:
    found = []
    for container in spec["containers"]:
        for variable in container.get("env", ()):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                found.append((reference["name"], reference["key"]))
    volumes = [v["secret"]["secretName"] for v in spec.get("volumes", ()) if "secret" in v]
    return [*found, *((name, None) for name in volumes)]


def test_ports_are_those_that_ray_listens_on() -> None:
    spec = named(build("overlays/gpu-cluster"), "RayCluster", "pmg")["spec"]
    head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    assert ports["gcs-server"] == ray_constants.DEFAULT_PORT
    assert ports["dashboard"] == ray_constants.DEFAULT_DASHBOARD_PORT
    assert ports["agent"] == ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    for part in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert part["rayStartParams"]["dashboard-agent-listen-port"] == str(ports["agent"])


def test_what_a_node_tells_ray_is_an_option_of_ray_start() -> None:
    from ray.scripts.scripts import start  # noqa: PLC0415

    known = {option for parameter in start.params for option in parameter.opts}
    for overlay in OVERLAYS:
        spec = named(build(f"overlays/{overlay}"), "RayCluster", "pmg")["spec"]
        for part in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            assert {f"--{name}" for name in part["rayStartParams"]} <= known


def test_the_store_of_the_jobs_is_the_one_of_the_settings_and_has_a_bucket() -> None:
    for overlay in OVERLAYS:
        store = run_config(overlay).data.store
        assert f"--store {store} " in job(overlay, "ingest")["entrypoint"]
        assert f"--targets {store} " in job(overlay, "evaluate")["entrypoint"]
        server = named(build(f"overlays/{overlay}"), "StatefulSet", "pmg-object-store")
        (made,) = server["spec"]["template"]["spec"]["initContainers"][0]["command"][2:]
        assert made == f"/data/{str(store).removeprefix('s3://').partition('/')[0]}"
    services = [one for one in build("overlays/laptop") if one["kind"] == "Service"]
    environment = named(build("overlays/laptop"), "ConfigMap", "pmg-environment")["data"]
    addresses = {
        f"{s['metadata']['name']}:{port['port']}" for s in services for port in s["spec"]["ports"]
    }
    assert environment["AWS_ENDPOINT_URL"].removeprefix("http://") in addresses
    assert f"{environment['PGHOST']}:{environment['PGPORT']}" in addresses


# Read by a library that this machine lacks, or by code that is not Python: where it is described.
DOCUMENTED = {
    "NCCL_DEBUG": "NCCL, environment variables",
    "NCCL_SOCKET_IFNAME": "NCCL, environment variables",
    "NCCL_SHM_DISABLE": "NCCL, environment variables",
    "PGHOST": "libpq, environment variables",
    "PGPORT": "libpq, environment variables",
    "PGUSER": "libpq, environment variables",
    "PGDATABASE": "libpq, environment variables",
    "PGPASSWORD": "libpq, environment variables",
    "AWS_ACCESS_KEY_ID": "obstore, S3Config",
    "AWS_SECRET_ACCESS_KEY": "obstore, S3Config",
    "AWS_REGION": "obstore, S3Config",
    "MLFLOW_TRACKING_TOKEN": "MLflow, logging to a tracking server",
    "HOME": "POSIX",
}


def test_every_variable_is_read_by_somebody() -> None:
    """The program's, Ray's, torch's and matplotlib's own text has it, or it is documented."""
    manifests = build("overlays/gpu-cluster")
    given = {
        *named(manifests, "ConfigMap", "pmg-environment")["data"],
        *named(manifests, "ConfigMap", "pmg-nccl")["data"],
    }
    for pod in pods(manifests):
        if pod.ray:
            given |= {one["name"] for one in pod.containers[0].get("env", ())}
    unknown = given - DOCUMENTED.keys()
    torch = Path(importlib.util.find_spec("torch").origin).parent  # type: ignore[union-attr,arg-type]
    matplotlib = Path(importlib.util.find_spec("matplotlib").origin)  # type: ignore[union-attr,arg-type]
    texts = [
        Path(job_supervisor.__file__),
        Path(ray.__file__).parent / "_common" / "usage" / "usage_constants.py",
        K8S.parent / "storage" / "s3.py",
        torch / "utils" / "cpp_extension.py",
        torch / "_inductor" / "runtime" / "cache_dir_utils.py",
        torch / "include" / "torch" / "csrc" / "distributed" / "c10d" / "ProcessGroupNCCL.hpp",
        matplotlib,
    ]
    read = "\n".join(path.read_text() for path in texts)
    assert {name for name in unknown if name not in read} == set()


def test_a_job_is_given_less_time_to_stop_than_its_pod() -> None:
    environment = named(build("overlays/laptop"), "ConfigMap", "pmg-environment")["data"]
    stop = float(environment["RAY_JOB_STOP_WAIT_TIME_S"])
    for pod in pods(build("overlays/laptop/jobs")):
        if pod.ray:
            hook = pod.containers[0]["lifecycle"]["preStop"]["exec"]["command"]
            assert stop < float(hook[2]) < pod.spec["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_ingest_worker_fits_its_node(overlay: str, tmp_path: Path) -> None:
    spec = job(overlay, "ingest")
    limits = group(spec, "cpu")["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert amount("memory", limits["memory"]) >= parsed(overlay, "ingest", tmp_path)["memory"]


@pytest.mark.parametrize("name", JOBS)
def test_the_quota_of_the_queue_holds_all_of_a_job(name: str) -> None:
    """Kueue takes a pod's resources from one flavour: the one with GPUs if it asks for one."""
    (queue,) = objects(build("overlays/gpu-cluster"), "ClusterQueue")
    (resources,) = queue["spec"]["resourceGroups"]
    held = {
        (flavour["name"], one["name"]): amount(one["name"], one["nominalQuota"])
        for flavour in resources["flavors"]
        for one in flavour["resources"]
    }
    ray = job("gpu-cluster", name)["rayClusterSpec"]
    templates = [job("gpu-cluster", name)["submitterPodTemplate"]]
    templates.append(ray["headGroupSpec"]["template"])
    for one in ray["workerGroupSpecs"]:
        templates += [one["template"]] * one["replicas"]
    for template in templates:
        (container,) = template["spec"]["containers"]
        requests = container["resources"]["requests"]
        flavour = "pmg-gpu" if "nvidia.com/gpu" in requests else "pmg-cpu"
        for resource, quantity in requests.items():
            held[flavour, resource] -= amount(resource, quantity)
    assert min(held.values()) >= 0
    labels = named(build("overlays/gpu-cluster/jobs"), "RayJob", f"pmg-{name}")["metadata"][
        "labels"
    ]
    assert "kueue.x-k8s.io/queue-name" in labels


def test_a_job_of_kueue_has_a_fixed_size() -> None:
    """Kueue admits no RayJob whose cluster scales itself, and gangs need their size beforehand."""
    for overlay in OVERLAYS:
        for name in JOBS:
            spec = job(overlay, name)["rayClusterSpec"]
            assert not spec.get("enableInTreeAutoscaling")
            for one in spec["workerGroupSpecs"]:
                assert one["minReplicas"] == one["replicas"] <= one["maxReplicas"]


def test_the_phantoms_command_and_paths_fit_the_ingest() -> None:
    demo = named(build("overlays/laptop"), "Job", "pmg-phantom")["spec"]["template"]["spec"]
    program, *arguments = demo["containers"][0]["command"]
    from pmg.cli.phantom import command  # noqa: PLC0415

    assert (program, arguments[0]) == ("pmg", "phantom")
    out = command.make_context("phantom", arguments[1:]).params["out"]
    assert f"--manifest {out}/manifest.csv " in job("laptop", "ingest")["entrypoint"]
    assert f"--cases {out}/test " in job("laptop", "evaluate")["entrypoint"]
    assert f"--in {out}/domain1 " in job("laptop", "translate")["entrypoint"]


def test_every_manifest_is_plain_yaml() -> None:
    for path in K8S.rglob("*.yaml"):
        assert list(yaml.safe_load_all(path.read_text())), path

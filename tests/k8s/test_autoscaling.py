"""A trial that needs a GPU brings its group up from nothing, and idleness brings it down.

Ray's own autoscaler v2 and its fake provider, whose nodes are raylets on this machine, with the
groups, limits and minima of the built manifest; the idle time-out is shorter. What is left out is
KubeRay: there the autoscaler asks the operator for pods through the RayCluster, here this provider
for nodes. (`ray.cluster_utils.AutoscalingCluster` would do the same, but ends every Ray of the
machine, and reads a file that Ray's wheel does not have.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from built import K8S, NO_KUBECTL, Manifest, build, objects
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray_nodes import RAY, free_port

pytestmark = [NO_KUBECTL, pytest.mark.long]

_WATCH = """
import json, sys, time
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")

def gpus():
    return [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU")]

def until(ready, limit_s):
    end = time.monotonic() + limit_s
    while not ready() and time.monotonic() < end:
        time.sleep(0.5)

before = len(gpus())
@ray.remote(num_cpus=6, num_gpus=1)
def trial():
    return ray.get_runtime_context().get_node_id()

where = ray.get(trial.remote(), timeout=180)
during = gpus()
until(lambda: not gpus(), 120)
print(json.dumps({"before": before, "during": during, "where": where, "after": len(gpus())}))
"""


def config(spec: Manifest, gcs: int) -> Manifest:
    """The autoscaler's configuration as KubeRay derives it from a RayCluster."""
    types: Manifest = {}
    for group in spec["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        types[group["groupName"]] = {
            "resources": {
                "CPU": int(limits["cpu"]),
                "GPU": int(limits.get("nvidia.com/gpu", 0)),
                "object_store_memory": 90_000_000,
            },
            "node_config": {},
            "min_workers": group["minReplicas"],
            "max_workers": group["maxReplicas"],
        }
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "pmg",
        "max_workers": sum(one["max_workers"] for one in types.values()),
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": f"127.0.0.1:{gcs}",
        },
        "available_node_types": types | {"ray.head.default": head},
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


@pytest.fixture
def address() -> Iterator[tuple[str, dict[str, str]]]:
    (cluster,) = objects(build("overlays/gpu-cluster"), "RayCluster")
    folder, gcs = Path(tempfile.mkdtemp(prefix="pmg-k8s-")), free_port()
    (folder / "autoscaler.json").write_text(json.dumps(config(cluster["spec"], gcs)))
    variables = {name: value for name, value in os.environ.items() if "RAY_" not in name} | {
        "PYTHONPATH": str(K8S.parent),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_raylet_start_wait_time_s": "120",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
    }
    start = [*RAY, "start", "--head", "--block", "--num-cpus=0", "--num-gpus=0"]
    start += [f"--port={gcs}", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
    start += [f"--autoscaling-config={folder / 'autoscaler.json'}", "--include-dashboard=false"]
    start += ["--object-store-memory=90000000", f"--ray-client-server-port={free_port()}"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(start, env=variables, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 120
        while "Ray runtime started" not in (folder / "head.log").read_text():
            assert head.poll() is None, (folder / "head.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.5)
        yield f"127.0.0.1:{gcs}", variables
    finally:
        for one in [*psutil.Process(head.pid).children(recursive=True), head]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        head.wait()
        # The provider's raylets are sessions of their own; they end when their head is gone.


def test_a_trial_brings_its_group_up_from_nothing_and_idleness_brings_it_down(
    address: tuple[str, dict[str, str]],
) -> None:
    gcs, variables = address
    watched = subprocess.run(
        [sys.executable, "-c", _WATCH, gcs],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert watched.returncode == 0, watched.stdout + watched.stderr
    seen = json.loads(watched.stdout.strip().splitlines()[-1])
    assert seen["before"] == 0
    assert seen["during"] == [seen["where"]]
    assert seen["after"] == 0

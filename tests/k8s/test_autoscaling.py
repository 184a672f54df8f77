"""Work that needs a group brings it up from nothing, and idleness takes it down again.

Ray's autoscaler v2 runs with the configuration that Ray itself derives from the built RayCluster,
and with Ray's fake provider, whose nodes are raylets on this machine. Left out is KubeRay: there
the autoscaler changes the RayCluster's replicas, here it asks this provider. Times are shorter and
object stores smaller, all else is the manifest's.

(`ray.cluster_utils.AutoscalingCluster` would start the same, but ends every Ray of the machine and
reads a file that Ray 2.60's wheel lacks.)
"""

from __future__ import annotations

import json
import secrets
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from built import K8S, NO_KUBECTL, Manifest, build, objects
from fake_nodes import HEAD, FakeNodes
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_TYPE
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray_nodes import ray_cluster

pytestmark = [NO_KUBECTL, pytest.mark.long, pytest.mark.ray]

_IDLE_S = 15
_HERE = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "PYTHONPATH": f"{K8S.parent}:{K8S.parent / 'tests' / 'k8s'}",
}


def autoscaling(cluster: Manifest) -> Manifest:
    """The configuration of the autoscaler in the head's pod, with other nodes and less patience."""
    config: Manifest = _derive_autoscaling_config_from_ray_cr(cluster)
    types = config["available_node_types"]
    types[FAKE_HEAD_NODE_TYPE] = types.pop(config["head_node_type"])
    for name, one in types.items():
        if name != FAKE_HEAD_NODE_TYPE:
            one["resources"]["object_store_memory"] = 90_000_000
            one["labels"] = {"group": name}
    return config | {
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "idle_timeout_minutes": _IDLE_S / 60,
        "provider": {
            **config["provider"],
            "type": "external",
            "module": f"{FakeNodes.__module__}.{FakeNodes.__name__}",
            "head_node_id": HEAD,
            "launch_multiple": True,
        },
    }


@pytest.fixture(scope="module")
def told() -> Any:
    """What the job saw while it ran."""
    manifests = build("overlays/gpu-cluster")
    (made,) = objects(manifests, "RayCluster")
    maps = {one["metadata"]["name"]: one["data"] for one in objects(manifests, "ConfigMap")}
    held = {f"pmg-object-store/{key}": "none" for key in ("access-key", "secret-key")}
    took = yaml.safe_load(maps["pmg-settings"]["tune.yaml"])["resources"] | {"most_at_once": 2}
    with (
        tempfile.TemporaryDirectory() as folder,
        ray_cluster(
            made["spec"], [], maps, held, secrets.token_hex(32), _HERE, autoscaling(made)
        ) as cluster,
    ):
        script = Path(__file__).with_name("work_from_nothing.py")
        command = shlex.join([sys.executable, str(script), json.dumps(took), folder])
        log = cluster.submit("work", {"entrypointNumCpus": 0}, command)
        assert cluster.status("work") == "SUCCEEDED", log
        return json.loads(log.rpartition("TOLD ")[2].splitlines()[0])


def test_nothing_but_the_head_is_there_before_work(told: Any) -> None:
    assert told["before"] == []


def test_an_ingest_brings_the_cpu_group_up_alone(told: Any) -> None:
    assert told["ingest"] == {"results": [1, 2, 3], "groups": ["cpu"]}


def test_a_trial_brings_the_gpu_group_up_and_runs_there(told: Any) -> None:
    """Two at once were asked for; the second node never comes, and is not waited for for ever."""
    assert told["trial"]["ran_on"] == "gpu"
    assert told["trial"]["at_once"] == 1
    assert told["trial"]["groups"].count("gpu") == 1


def test_what_no_node_of_a_group_can_have_is_refused_and_starts_nothing(told: Any) -> None:
    assert "a worker needs 1 core and 1125899906842624 bytes" in told["too_much"]["refused"]
    assert "a trial takes 1000 x" in told["too_many"]["refused"]


def test_idleness_takes_both_groups_down(told: Any) -> None:
    assert told["left"] == []

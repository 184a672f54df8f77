"""Dashboard, alerts and monitors name metrics that exist, and alert when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from built import K8S, NO_KUBECTL, build, objects, pods
from network import matches

from launch.gauges import GAUGES, LOSS, SKIPPED

DASHBOARD: dict[str, Any] = json.loads((K8S / "components/metrics/pmg.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((K8S / "components/metrics/alerts.yaml").read_text())
RULES = [rule for group in ALERTS["spec"]["groups"] for rule in group["rules"]]

# Ray's definitions of its own metrics: those of its nodes, and those that its dashboards show.
_RAY = Path(ray.__file__).parent / "dashboard" / "modules"
_RAY_TEXT = (_RAY / "reporter" / "reporter_agent.py").read_text() + (
    _RAY / "metrics" / "dashboards" / "default_dashboard_panels.py"
).read_text()

# `make test` takes it out of Debian's package prometheus.
PROMTOOL = shutil.which("promtool") or Path(sys.prefix) / "bin" / "promtool"
NO_PROMTOOL = pytest.mark.skipif(
    not Path(PROMTOOL).is_file(), reason=f"THE ALERTS WERE NOT RUN: there is no {PROMTOOL}"
)


def expressions() -> list[str]:
    shown = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [*shown, *(rule["expr"] for rule in RULES)]


def names(expression: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", expression))


def test_every_metric_is_defined_by_the_program_or_by_ray() -> None:
    own = {f"ray_{name}" for name in (*GAUGES, LOSS)} | {f"ray_{SKIPPED}_total"}
    for expression in expressions():
        assert names(expression)
        for name in names(expression) - own:
            assert not name.startswith("ray_pmg_"), name
            bare = name.removeprefix("ray_")
            assert f'"{bare}"' in _RAY_TEXT or f"ray_{bare}{{" in _RAY_TEXT, name


def test_the_dashboard_shows_what_it_is_for() -> None:
    shown = set().union(*(names(expression) for expression in expressions()))
    assert {f"ray_{name}" for name in (*GAUGES, LOSS)} <= shown
    assert "ray_node_gpus_utilization" in shown
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    (source, run) = DASHBOARD["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    assert names(run["query"]["query"]) == {"ray_pmg_step"}


def test_a_stalled_run_and_an_old_checkpoint_are_alerted() -> None:
    assert {"PmgRunStalled", "PmgCheckpointOld"} <= {rule["alert"] for rule in RULES}


@NO_KUBECTL
def test_the_monitor_selects_the_ports_of_all_ray_nodes_and_the_dashboard_is_delivered() -> None:
    manifests = build("overlays/gpu-cluster")
    (monitor,) = objects(manifests, "PodMonitor")
    found = set()
    for pod in pods(manifests):
        if matches(monitor["spec"]["selector"], pod.labels):
            found.add(pod.role)
            ports = [port["name"] for port in pod.containers[0]["ports"]]
            assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in ports
    assert found == {"head", "cpu", "gpu"}
    delivered = next(
        one for one in objects(manifests, "ConfigMap") if one["metadata"]["name"] == "pmg-dashboard"
    )
    assert json.loads(delivered["data"]["pmg.json"]) == DASHBOARD


@NO_PROMTOOL
def test_promtool_reads_every_expression(tmp_path: Path) -> None:
    queries = [re.sub(r"\$run", ".*", expression) for expression in expressions()]
    rules = [{"record": f"q:{n}", "expr": query} for n, query in enumerate(queries)]
    _write(tmp_path, {"groups": [{"name": "all", "rules": rules}]})
    assert _promtool("check", "rules", tmp_path / "alerts.yaml") == ""


@NO_PROMTOOL
def test_alerts_are_raised_when_they_should_and_else_not(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("alerts.test.yaml"), tmp_path)
    _write(tmp_path, ALERTS["spec"])
    assert _promtool("test", "rules", tmp_path / "alerts.test.yaml") == ""


@NO_PROMTOOL
def test_an_alert_that_never_comes_is_noticed(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("alerts.test.yaml"), tmp_path)
    late = yaml.safe_dump(ALERTS["spec"]).replace("[15m:1m]", "[3h:1m]")
    _write(tmp_path, yaml.safe_load(late))
    assert "PmgRunStalled" in _promtool("test", "rules", tmp_path / "alerts.test.yaml")


def _write(folder: Path, rules: dict[str, Any]) -> None:
    (folder / "alerts.yaml").write_text(yaml.safe_dump(rules))


def _promtool(*arguments: str | Path) -> str:
    """What it says where it is not content."""
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr

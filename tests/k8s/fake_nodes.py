"""Ray's fake provider of nodes, raylets on this machine: with memory, and with one GPU in stock.

The autoscaler imports this in its own process.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ray._private.ray_constants import RESOURCES_ENVIRONMENT_VARIABLE
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FakeMultiNodeProvider,
)

__all__ = ["HEAD", "FakeNodes"]

HEAD = FAKE_HEAD_NODE_ID


class FakeNodes(FakeMultiNodeProvider):  # type: ignore[misc]
    """Ray's own refuses the resource `memory`; a node takes it from the environment instead.

    A second node with a GPU never comes, and nobody says so, as when a cloud is out of them.
    """

    _gpus = 1

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        others = dict(resources)
        os.environ[RESOURCES_ENVIRONMENT_VARIABLE] = json.dumps({"memory": others.pop("memory")})
        if others.get("GPU"):
            count = min(count, self._gpus)
            self._gpus -= count
        super().create_node_with_resources_and_labels(node_config, tags, count, others, labels)

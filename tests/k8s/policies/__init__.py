"""What a cluster administrator demands: one function a rule, which yields its violations.

By default the answer is no: kinds, fields, rights, connections, and who sees which secret or volume
are lists of what is allowed, so that what nobody thought of is noticed too. A file is a theme, and
its rules count once it is imported here.
"""

from __future__ import annotations

from policies import (
    access,
    clusters,
    connections,
    namespace,
    pod_security,
    references,
    resources,
    secrets,
)
from policies.rule import RULES

__all__ = [
    "RULES",
    "access",
    "clusters",
    "connections",
    "namespace",
    "pod_security",
    "references",
    "resources",
    "secrets",
]

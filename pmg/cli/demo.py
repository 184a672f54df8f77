"""`pmg demo`"""

from __future__ import annotations

import click

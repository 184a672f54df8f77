"""What a run's folder tells somebody who was not there: README.md at its start, report.html at its
end.
"""

from __future__ import annotations

import base64
import io
import json
import time
from typing import TYPE_CHECKING

import jinja2

from pmg.figures import draw_losses

if TYPE_CHECKING:
    from launch.run_folder import RunFolder
    from pmg.config import Config

__all__ = ["write_guide", "write_run_report"]

_GUIDE = """\
# Training run {name}

{model}

Store: {store}. {steps} steps of {batch} patch pairs, seed {seed}; {workers} workers, ZeRO stage
{zero}.

| here | what it is |
|---|---|
| `{config}` | every setting of the run, defaults too |
| `{environment}` | each start of the run: its first step, versions, hardware, code |
| `{metrics}` | one JSON object a line: step, time, rates, every loss term. After a resume \
the steps since the checkpoint come again, and the later line holds |
| `{panels}/` | every {panel_every} steps some patches: source, translation, cycle, tissue classes |
| `{checkpoints}/` | to go on from: weights, optimisers, position in the stream, with digests |
| `{model_folder}/` | the averaged translator of the newest checkpoint; safe to share |
| `{report}` | loss curves and the last panel, once the run has ended |
| `{logs}/` | what each rank logged |
| `{failure}` | why the run could not go on, if it could not |

Go on with it:  `pmg train --run {name} --config {name}/{config}`
Use it:         `pmg translate --model {name} SERIES --out OUT`
"""

_PAGE = """\
<!doctype html>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font: 15px system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; }
img { max-width: 100%; } pre { background: #f4f4f4; padding: 1em; overflow: auto; }
th { text-align: left; padding-right: 1em; font-weight: normal; color: #555; }
</style>
<h1>{{ title }}</h1>
<table>
{% for name, value in facts.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
<h2>Losses</h2>
<img alt="losses over the steps" src="data:image/png;base64,{{ losses }}">
{% if panel %}<h2>Patches at step {{ panel_step }}</h2>
<img alt="source, translation, cycle, responsibilities" src="data:image/png;base64,{{ panel }}">
{% endif %}<h2>Starts</h2>
<pre>{{ starts }}</pre>
<h2>Configuration</h2>
<pre>{{ config }}</pre>
"""


def write_guide(folder: RunFolder, config: Config, model: str) -> None:
    """README.md of the run's folder. model: the architecture and its size, in words."""
    folder.guide.write_text(
        _GUIDE.format(
            name=folder.root.name,
            model=model,
            store=config.data.store,
            steps=config.train.steps,
            batch=config.train.batch,
            seed=config.train.seed,
            workers=config.launch.workers,
            zero=config.launch.zero_stage,
            panel_every=config.track.panel_every,
            config=folder.config.name,
            environment=folder.environment.name,
            metrics=folder.metrics.name,
            panels=folder.panel(0).parent.name,
            checkpoints=folder.checkpoints.name,
            model_folder=folder.model.name,
            report=folder.report.name,
            logs=folder.log(0).parent.name,
            failure=folder.failure.name,
        ),
        encoding="utf-8",
    )


def write_run_report(folder: RunFolder, config: Config) -> None:
    """report.html of a run that has records, in one file."""
    history = list(folder.read_metrics())
    if not history:
        return
    last = history[-1]
    panels = sorted(folder.panel(0).parent.glob("step_*.png"))
    starts = folder.starts()
    facts = {
        "steps": f"{last['step']} of {config.train.steps}",
        "started": _date(starts[0]["started_unix_s"]) if starts else "not known",
        "last record": _date(last["unix_s"]),
        "starts": len(starts),
        "images a second": f"{last['images_per_s']:.1f}",
        "waiting for data": f"{last['data_wait']:.0%}",
        "memory of the worker that needs most": f"{last['memory_bytes'] / 2**30:.2f} GiB",
        "effective components": f"{last.get('prior.effective_components', 1.0):.2f}",
        "store": config.data.store,
    }
    buffer = io.BytesIO()
    draw_losses(history).savefig(buffer, format="png", dpi=110)
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    folder.report.write_text(
        page.render(
            title=f"pmg: training run {folder.root.name}",
            facts=facts,
            losses=base64.b64encode(buffer.getvalue()).decode(),
            panel=base64.b64encode(panels[-1].read_bytes()).decode() if panels else None,
            panel_step=int(panels[-1].stem.removeprefix("step_")) if panels else 0,
            starts=json.dumps(starts, indent=1),
            config=config.to_yaml(),
        ),
        encoding="utf-8",
    )


def _date(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_s))

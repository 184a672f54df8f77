"""How training scales: bytes a step by ZeRO stage, measured; a cost model; what it predicts.

    python -m benchmarks.scaling measure [--width 24] [--out measured.json]
    python -m benchmarks.scaling predict [--mfu 0.2]

`measure` trains on 2 workers of this machine by every stage, counts the bytes of every collective
against the formula, times gloo for the model's two constants, and holds the model against 1 and 2
workers. `predict` prints the tables of docs/scaling.md: efficiency for 8 to 512 GPUs, memory a GPU,
and what the stream must deliver, for 2D and 3D patches.

The model, for a step on N workers:

    seconds = FLOP / (peak * mfu) + calls * latency + bytes / bandwidth
    efficiency = seconds on one worker / seconds on N

The batch a worker is fixed, collectives are not overlapped with computation (our engine's setting
at stages 0 to 2), and stragglers are not modelled: it is an upper bound.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.cohort import make_cohort
from benchmarks.overhead import config_of
from pmg.config import Config, load_config
from pmg.cost import activation_bytes, cost_of
from pmg.training import build_modules

STAGES = (0, 1, 2, 3)

# What a rank of a ring sends in a step, in bytes of parameters times (N - 1) / N, of the
# translator and of the critic; counted, see `measure`. 0 all-reduces gradients (2). 1 does so too
# and gathers the updated parameters (1), where its paper scatters gradients (1). 2 as well:
# DeepSpeed 0.19 all-reduces its buckets, of which every rank keeps its part. 3 scatters (1) and
# gathers twice (2): the translator for its pass and for its average, the critic for either loss.
# Below a billion parameters none is released between forward and backward and gathered again.
SENT = {0: (2.0, 2.0), 1: (3.0, 3.0), 2: (3.0, 3.0), 3: (3.0, 3.0)}


@dataclass(frozen=True)
class Link:
    """A cluster: bytes/s of a GPU within its node, and of a whole node's network; seconds a call.

    What links reach beside what they are sold with: `share`.
    """

    name: str
    within: float
    between: float
    call_within_s: float
    call_between_s: float
    share: float = 0.8
    node: int = 8

    def seconds(self, sent: float, calls: float, gpus: int) -> float:
        """A ring through all GPUs crosses every node's network once, on all its adapters."""
        if gpus <= self.node:
            return calls * self.call_within_s + sent / (self.share * self.within)
        slower = min(self.within, self.between)
        return calls * self.call_between_s + sent / (self.share * slower)


# NVLink 4: 900 GB/s both ways together, 450 each. A DGX H100 has 8 adapters of 400 Gb/s; a usual
# cloud node one of 100 Gb/s. Seconds a call: nccl-tests on one node, on two with InfiniBand, and on
# two nodes with Ethernet. Sources in docs/scaling.md.
LINKS = (
    Link("DGX H100, 8 x 400 Gb/s InfiniBand", 450e9, 400e9, 20e-6, 40e-6),
    Link("8 H100, 100 Gb/s Ethernet", 450e9, 12.5e9, 20e-6, 165e-6),
)
PEAK_FLOPS = 989e12  # H100 SXM, bf16, dense
GPUS = (8, 16, 32, 64, 128, 256, 512)
PRESETS: dict[str, Callable[[], Config]] = {
    "2D, recommended, 128 x 128": lambda: load_config("recommended"),
    "3D, recommended, 32 x 128 x 128": lambda: load_config(
        "recommended",
        [
            "data.patch=[32, 128, 128]",
            "translate.tile=[32, 256, 256]",
            "train.batch=2",
            "discriminator.layers=2",
        ],
    ),
}
# Of int16 HU by the stores' codec; measured, see benchmarks/results/stream.md.
_COMPRESSION = 1.9


@dataclass(frozen=True)
class Load:
    """What a step of one worker is: parameters of both modules, and how many tensors; FLOP."""

    translator: int
    critic: int
    flops: float
    tensors: int

    def sent(self, stage: int, gpus: int) -> float:
        """Bytes that a rank sends, in float32."""
        translator, critic = SENT[stage]
        share = (gpus - 1) / gpus
        return 4 * share * (translator * self.translator + critic * self.critic)

    def calls(self, stage: int) -> float:
        """Collectives of a step, as counted: buckets of 500 MB, but at ZeRO 3 layer by layer."""
        return 1.4 * self.tensors if stage == 3 else 6


def load_of(config: Config) -> Load:
    cost = cost_of(config)
    critic = cost.parameters["D"]
    translator = sum(cost.parameters.values()) - critic
    tensors = sum(len(list(module.parameters())) for module in build_modules(config))
    return Load(translator, critic, cost.step_flops * config.train.batch, tensors)


def memory_bytes(load: Load, stage: int, gpus: int) -> float:
    """Of a GPU, without activations: parameters, gradients and Adam's two moments in float32, and
    the average of the translator, which every rank keeps whole."""
    parameters = 4.0 * (load.translator + load.critic)
    whole = {0: 4, 1: 2, 2: 1, 3: 0}[stage]
    average = 4.0 * load.translator
    return whole * parameters + (4 - whole) * parameters / gpus + average


def efficiency(load: Load, stage: int, gpus: int, link: Link, mfu: float) -> float:
    alone = load.flops / (PEAK_FLOPS * mfu)
    return alone / (alone + link.seconds(load.sent(stage, gpus), load.calls(stage), gpus))


def predict(mfu: float) -> None:
    for name, make in PRESETS.items():
        config = make()
        load = load_of(config)
        seconds = load.flops / (PEAK_FLOPS * mfu)
        images = 2 * config.train.batch / seconds
        print(f"\n## {name}, {config.train.batch} pairs a GPU\n")
        print(
            f"{(load.translator + load.critic) / 1e6:.1f} M parameters, "
            f"{load.flops / 1e12:.2f} TFLOP a step: {1000 * seconds:.1f} ms at {mfu:.0%} of the "
            f"peak, {images:.0f} images/s a GPU\n"
        )
        print("| link | ZeRO | " + " | ".join(f"{n} GPUs" for n in GPUS) + " |")
        print("|---|---|" + "---|" * len(GPUS))
        for link in LINKS:
            for stage in STAGES:
                cells = (f"{efficiency(load, stage, n, link, mfu):.1%}" for n in GPUS)
                print(f"| {link.name} | {stage} | " + " | ".join(cells) + " |")
        print("\n| memory a GPU, MB | 8 GPUs | 64 GPUs | 512 GPUs |\n|---|---|---|---|")
        for stage in STAGES:
            cells = (f"{memory_bytes(load, stage, n) / 1e6:.0f}" for n in (8, 64, 512))
            print(f"| ZeRO {stage} | " + " | ".join(cells) + " |")
        saved = activation_bytes(config)
        print(f"\nactivations: {saved * config.train.batch / 1e9:.2f} GB in float32")
        voxels = math.prod(config.data.patch) * config.data.slices
        decoded = images * voxels * config.data.amplification
        print(
            f"stream, a GPU: {images:.0f} patches/s, {decoded * 2 / 1e6:.0f} MB/s decoded, "
            f"{decoded * 2 / _COMPRESSION / 1e6:.0f} MB/s read"
        )


def measure(width: int, steps: int, out: Path | None) -> None:
    """Every stage on 2 workers: bytes against the formula; then times against the model."""
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[str, Any] = {"stages": {}}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_cohort(work, 4, (48, 160, 160))

        def ranks(stage: int, workers: int, batch: int, *options: str) -> dict[str, Any]:
            config = config_of(work / "store", width, stage, steps)
            train = config.train.model_copy(update={"batch": batch})
            source = work / "run.yaml"
            launch = config.launch.model_copy(update={"workers": workers})
            source.write_text(
                config.model_copy(update={"train": train, "launch": launch}).to_yaml(),
                encoding="utf-8",
            )
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc-per-node", str(workers), "-m", "benchmarks.ranks"]
            command += ["--engine", "deepspeed", "--config", str(source), "--count"]
            command += ["--steps", str(steps), "--skip", str(steps // 3)]
            command += ["--out", str(work / "figures.json"), *options]
            subprocess.run(command, check=True, capture_output=True)
            figures: dict[str, Any] = json.loads(
                (work / "figures.json").read_text(encoding="utf-8")
            )
            return figures

        load = load_of(config_of(work / "store", width, 0, steps))
        print(f"{load.translator} parameters of the translator, {load.critic} of the critic\n")
        print("| ZeRO | collectives | bytes sent | formula | measured / formula | RSS a rank, MB |")
        print("|---|---|---|---|---|---|")
        for stage in STAGES:
            # As in large models, whose layers are all sharded; those here are too small to be.
            figures = ranks(stage, 2, 4, *(["--shard-all"] if stage == 3 else []))
            found["stages"][stage] = figures
            sent = sum(figures["sent_bytes"].values())
            formula = load.sent(stage, 2)
            kinds = ", ".join(f"{n} {k}" for k, n in figures["calls"].items())
            print(
                f"| {stage} | {kinds} | {sent:.0f} | {formula:.0f} | {sent / formula:.3f} | "
                f"{figures['rss_bytes'] / 1e6:.0f} |"
            )
        latency, bandwidth = _gloo(work)
        found |= {"gloo_call_s": latency, "gloo_bytes_per_s": bandwidth}
        print(f"\ngloo, 2 ranks: {1e6 * latency:.0f} us a call, {bandwidth / 1e9:.2f} GB/s")
        alone = ranks(1, 1, 2)
        pair = found["stages"][1]
        # CPU seconds: what a rank computes, whatever else this machine does meanwhile.
        for label, figures, workers in (("1 worker", alone, 1), ("2 workers", pair, 2)):
            sent = sum(figures["sent_bytes"].values())
            calls = sum(figures["calls"].values())
            step = 2 * 2 * workers / figures["images_per_s"]
            predicted = 2 * 2 / alone["images_per_s"] + (
                calls * latency + sent / bandwidth if workers > 1 else 0
            )
            found[label] = {"measured_s": step, "predicted_s": predicted}
            print(
                f"{label}: {step:.3f} s a step, the model says {predicted:.3f} s; "
                f"{figures['cpu_s_per_step'] / workers:.3f} CPU s a rank"
            )
    if out:
        out.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _gloo(work: Path) -> tuple[float, float]:
    """(seconds a call, bytes/s that a rank sends) of all-reduces on this machine."""
    torch.multiprocessing.spawn(_time_gloo, (str(work),), nprocs=2)
    small, large = json.loads((work / "gloo.json").read_text(encoding="utf-8"))
    return small, _LARGE / (large - small)


_LARGE = 16 << 20


def _time_gloo(rank: int, work: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{work}/rendezvous", world_size=2, rank=rank)
    times = []
    for size in (1024, _LARGE):
        tensor = torch.zeros(size // 4)
        taken = []
        for _ in range(12):
            dist.barrier()
            started = time.monotonic()
            dist.all_reduce(tensor)
            taken.append(time.monotonic() - started)
        times.append(statistics.median(taken))
    if rank == 0:
        Path(work, "gloo.json").write_text(json.dumps(times), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("measure")
    one.add_argument("--width", type=int, default=24)
    one.add_argument("--steps", type=int, default=18)
    one.add_argument("--out", type=Path)
    other = kinds.add_parser("predict")
    other.add_argument("--mfu", type=float, default=0.2)
    given = parser.parse_args(arguments)
    if given.kind == "measure":
        measure(given.width, given.steps, given.out)
    else:
        predict(given.mfu)


if __name__ == "__main__":
    main()

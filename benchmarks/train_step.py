"""Patch pairs per second of a training step beside the same step written the obvious way.

    python -m benchmarks.train_step [--presets recommended unit] [--batch 2] [--rounds 3]
                                    [--steps 3] [--set section.field=value ...]

The plain loop trains the same networks in eager float32: every term of the objective makes the
passes that its equation has (VAE_i encodes and decodes x_i, GAN_i translates x_j, CC_i translates
x_i and back), D's update translates once more, activations lie in torch's default layout, and Adam
is torch's default one. The step is `pmg.step.train_step`. Both take turns, each in a fresh process;
the median step of the best round counts.

Needs torch, numpy, pydantic and pyyaml alone: neither DeepSpeed nor Ray. Where a GPU is at hand the
step also runs in bf16, and compiled, and its share of the peak of a measured bf16 product of
matrices is printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pmg import networks
from pmg.config import Config, load_config
from pmg.cost import cost_of
from pmg.engine import parameter_groups
from pmg.losses import ADVERSARIAL, LIKELIHOODS, change, free_bits
from pmg.model import Critic, Domain, Translator, other
from pmg.networks import Posterior
from pmg.patches import to_pair
from pmg.prior import kl_estimator
from pmg.step import Pair, train_step
from pmg.training import build_modules, torch_engines
from pmg.window import window_of

DOMAINS: tuple[Domain, Domain] = (1, 2)
PLAIN = "plain"
# Settings of the step, beside what the preset says; the latter two where there is a GPU.
ON_CPU = {"step": ()}
ON_GPU = {
    "step": (),
    "step, bf16": ("train.precision=bf16",),
    "step, bf16, compiled": ("train.precision=bf16", "train.compile=true"),
}


@dataclass(frozen=True)
class Batch:
    """Soft tissue beside bone, as the stream would give it."""

    hu1: Any
    hu2: Any
    position_mm: Any
    samples: Any
    volume_ids: Any
    spacing_mm: tuple[float, float, float] = (3.0, 1.5, 1.5)


def batch_of(config: Config, first: int) -> Batch:
    rng = np.random.default_rng(first)
    size, patch = config.train.batch, config.data.patch
    shape = (size, *(() if len(patch) == 3 else (config.data.slices,)), *patch)
    return Batch(
        rng.normal(40, 60, shape).round().astype(np.int16),
        rng.normal(120, 90, shape).round().astype(np.int16),
        rng.uniform(-100, 100, (size, 2, 3)).astype(np.float32),
        np.arange(first, first + size),
        (("a", "b"),) * size,
    )


class Plain:
    """The step as the equations read, in float32 and torch's default layout."""

    def __init__(self, config: Config, translator: Translator, critic: Critic) -> None:
        for dims in networks._CHANNELS_LAST:
            networks._CHANNELS_LAST[dims] = torch.contiguous_format
        self.config, self.translator, self.critic = config, translator, critic
        optim = config.optim
        betas = (optim.beta1, optim.beta2)
        groups = [parameter_groups(module, optim) for module in (translator, critic)]
        self.of_g = torch.optim.Adam(groups[0], lr=optim.lr, betas=betas)
        self.of_d = torch.optim.Adam(groups[1], lr=optim.lr_discriminator, betas=betas)

    def step(self, pair: Pair, kl_scale: float) -> None:
        loss, optim = self.config.loss, self.config.optim
        window = window_of(self.config.data)
        E, G, D = self.translator.encode, self.translator.decode, self.critic.scores
        likelihood, game = LIKELIHOODS[loss.likelihood], ADVERSARIAL[loss.adversarial]
        prior = self.translator.prior.mixture()

        def sampled(q: Posterior, noise: Tensor) -> Tensor:
            return q.mean + torch.exp(0.5 * q.log_var) * noise

        def kl(q: Posterior) -> Tensor:
            estimator = kl_estimator(loss.kl, loss.kl_samples)
            return free_bits(estimator(q.mean, q.log_var, prior), loss.free_bits)

        total = torch.zeros((), device=pair.noise.device)
        for i in DOMAINS:
            j = other(i)
            x, where, noise = pair.x[i], pair.where[i], pair.noise[i - 1]
            q = E(i, x, where)  # VAE_i
            x_self = G(i, sampled(q, noise), where)
            total = total + kl_scale * loss.lambda_kl * kl(q)
            total = total + loss.lambda_reconstruction * likelihood(x_self, x, None)

            q = E(j, pair.x[j], pair.where[j])  # GAN_i
            x_ji = G(i, sampled(q, pair.noise[j - 1]), pair.where[j])
            total = total + loss.lambda_gan * game.generator(D(i, x_ji, pair.where[j]))

            q = E(i, x, where)  # CC_i
            x_ij = G(j, sampled(q, noise), where)
            q_ij = E(j, x_ij, where)
            x_cycle = G(i, sampled(q_ij, pair.noise[i + 1]), where)
            total = total + kl_scale * loss.lambda_cycle_kl * (kl(q) + kl(q_ij))
            total = total + loss.lambda_cycle * likelihood(x_cycle, x, None)
            if loss.lambda_change:
                total = total + loss.lambda_change * change(x_ij, x, window)
            if loss.lambda_identity:
                x_kept = G(i, E(j, x, where).mean, where)
                total = total + loss.lambda_identity * likelihood(x_kept, x, None)
        self.of_g.zero_grad()
        total.backward()

        total = torch.zeros((), device=pair.noise.device)
        for i in DOMAINS:
            j = other(i)
            with torch.no_grad():
                q = E(j, pair.x[j], pair.where[j])
                x_ji = G(i, sampled(q, pair.noise[j - 1]), pair.where[j])
            real, fake = D(i, pair.x[i], pair.where[i]), D(i, x_ji, pair.where[j])
            total = total + loss.lambda_gan * game.discriminator(real, fake)
        self.of_d.zero_grad()
        total.backward()
        if optim.clip:
            torch.nn.utils.clip_grad_norm_(self.translator.parameters(), optim.clip)
            torch.nn.utils.clip_grad_norm_(self.critic.parameters(), optim.clip)
        self.of_g.step()
        self.of_d.step()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=["recommended", "unit"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shared = [f"train.batch={options.batch}", "launch.workers=1", *options.set]
    if options.child is not None:
        (preset,) = options.presets
        config = load_config(preset, shared)
        print(json.dumps(measured(config, options.child, options.steps)))
        return
    gpu = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if gpu else f"{platform.machine()}, one thread"
    print(f"# {where}, torch {torch.__version__}\n")
    peak = bf16_peak() if gpu else 0.0
    if gpu:
        print(f"Measured peak in bf16: {peak / 1e12:.0f} TFLOP/s\n")
    for preset in options.presets:
        report(preset, shared, options.rounds, options.steps, ON_GPU if gpu else ON_CPU, peak)


def report(
    preset: str,
    shared: list[str],
    rounds: int,
    steps: int,
    variants: dict[str, tuple[str, ...]],
    peak: float,
) -> None:
    """The table of one preset."""
    config = load_config(preset, shared)
    best: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for how in (PLAIN, *variants):
            one = run_child(preset, [*shared, *variants.get(how, ())], how, steps)
            if how not in best or one["seconds"] < best[how]["seconds"]:
                best[how] = one
    pairs, flops = config.train.batch, cost_of(config).step_flops
    patch = " x ".join(map(str, config.data.patch))
    print(f"## `{preset}`, {pairs} pairs of {patch}, {flops / 1e9:.3g} GFLOP a step and pair\n")
    print(
        "| | pairs/s | CPU s/step | of plain | of plain, CPU | peak MB | gradients |"
        + " of peak |" * bool(peak)
    )
    print("|---|---|---|---|---|---|---|" + "---|" * bool(peak))
    plain = best[PLAIN]
    for how, one in best.items():
        print(
            f"| {how} | {pairs / one['seconds']:.3g} | {one['cpu']:.3g} | "
            f"{plain['seconds'] / one['seconds']:.2f} | {plain['cpu'] / one['cpu']:.2f} | "
            f"{one['bytes'] / 1e6:.0f} | {distance(one['gradients'], plain['gradients']):.1e} |"
            + (f" {flops * pairs / one['seconds'] / peak:.1%} |" if peak else "")
        )
    print(flush=True)


def distance(a: list[float], b: list[float]) -> float:
    """Largest difference of a parameter's gradient norm, of the norm of all."""
    x, y = np.array(a), np.array(b)
    return float(np.abs(x - y).max() / np.linalg.norm(y))


def run_child(preset: str, settings: list[str], how: str, steps: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.train_step", "--presets", preset]
    command += ["--child", how, "--steps", str(steps), "--batch", "1", "--set", *settings]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measured(config: Config, how: str, steps: int) -> dict[str, Any]:
    """Of one process: seconds of each step, peak memory, and the first update's gradients."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    translator, critic = (module.to(device) for module in build_modules(config))
    pairs = [to_pair(batch_of(config, n * config.train.batch), config, device) for n in range(2)]
    warmup = config.loss.kl_warmup_steps
    kl_scale = 1 / warmup if warmup else 1.0
    if how == PLAIN:
        plain = Plain(config, translator, critic)

        def advance(pair: Pair) -> None:
            plain.step(pair, kl_scale)
    else:
        engines = torch_engines(translator, critic, config)

        def advance(pair: Pair) -> None:
            train_step(*engines, pair, 0, config)

    def finished() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    modules, before = (translator, critic), peak_bytes()
    advance(pairs[0])
    gradients = [
        p.grad.double().norm().item() for m in modules for p in m.parameters() if p.grad is not None
    ]
    advance(pairs[1])
    finished()
    seconds, cpu = [], []
    for n in range(steps):
        wall, used = time.perf_counter(), time.process_time()
        advance(pairs[n % 2])
        finished()
        seconds.append(time.perf_counter() - wall)
        cpu.append(time.process_time() - used)
    on_gpu = device.type == "cuda"
    return {
        "seconds": statistics.median(seconds),
        "cpu": statistics.median(cpu),
        "bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_bytes() - before,
        "gradients": gradients,
    }


def peak_bytes() -> int:
    """Of this process alone; getrusage counts the parent's as well."""
    with open("/proc/self/status", encoding="utf-8") as file:
        lines = dict(line.split(":", 1) for line in file)
    return 1024 * int(lines["VmHWM"].split()[0])


def bf16_peak() -> float:
    """FLOP/s of a product of matrices in bf16 on the GPU."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    best = 0.0
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ a
        end.record()
        torch.cuda.synchronize()
        best = max(best, 2 * 8192**3 / (start.elapsed_time(end) / 1000))
    return best


if __name__ == "__main__":
    main()

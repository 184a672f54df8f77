"""The tree of all sections, and what one asks of another."""

from __future__ import annotations

import yaml
from pydantic import model_validator

from pmg.config.data import DataConfig
from pmg.config.discriminator import DiscriminatorConfig
from pmg.config.launch import LaunchConfig
from pmg.config.loss import LossConfig
from pmg.config.model import ModelConfig
from pmg.config.optim import OptimConfig
from pmg.config.prior import PriorConfig
from pmg.config.section import Section
from pmg.config.track import TrackConfig
from pmg.config.train import TrainConfig
from pmg.config.translate import TranslateConfig

__all__ = ["Config"]


class Config(Section):
    """All settings of a run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    prior: PriorConfig = PriorConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    launch: LaunchConfig = LaunchConfig()
    track: TrackConfig = TrackConfig()
    translate: TranslateConfig = TranslateConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        stride = 2**self.model.downsamplings
        for name, extent in (
            ("data.patch", self.data.patch),
            ("translate.tile", self.translate.tile),
        ):
            if any(n % stride for n in extent):
                raise ValueError(
                    f"{name} {list(extent)} must be multiples of {stride} "
                    f"(2 to the power of model.downsamplings)"
                )
        judged = 2 ** (self.discriminator.layers + self.discriminator.scales - 1)
        # Two more layers, 4 wide, lose two of CycleGAN's scores, and norm needs two at least.
        times = 3 if self.model.architecture == "cyclegan" else 1
        if min(self.data.patch) < times * judged:
            raise ValueError(
                f"data.patch {list(self.data.patch)} must be at least {times * judged} along each "
                f"axis ({times} times 2 to the power of "
                f"discriminator.layers + discriminator.scales - 1)"
            )
        if len(self.data.patch) != len(self.translate.tile):
            raise ValueError("data.patch and translate.tile must both be 2D or both 3D")
        if self.loss.r1 and self.launch.zero_stage == 3:
            # DeepSpeed 0.19 has let the shards go when the penalty's gradient asks for them.
            raise ValueError(
                f"loss.r1 {self.loss.r1} needs launch.zero_stage 0, 1 or 2: stage 3 can't take "
                f"the gradient of a gradient"
            )
        learns = self.prior.learned and (self.loss.lambda_kl or self.loss.lambda_cycle_kl)
        if self.translate.denoise and not learns:
            raise ValueError(
                "translate.denoise true needs a mixture that learns what tissue is: prior.learned "
                "true, and loss.lambda_kl or loss.lambda_cycle_kl above 0"
            )
        return self

    @model_validator(mode="after")
    def _every_worker_gets_its_share(self) -> Config:
        launch, accumulate = self.launch, self.train.accumulate
        fewest = launch.workers if launch.min_workers is None else launch.min_workers
        if fewest > launch.workers:
            raise ValueError(
                f"launch.min_workers {fewest} must be at most launch.workers {launch.workers}"
            )
        for workers in range(fewest, launch.workers + 1):
            if self.train.batch % (workers * accumulate):
                raise ValueError(
                    f"train.batch {self.train.batch} must be a multiple of launch.workers {workers}"
                    + (f" times train.accumulate {accumulate}" if accumulate > 1 else "")
                    + (
                        " and of every number of workers from launch.min_workers on"
                        if fewest < launch.workers
                        else ""
                    )
                )
        return self

    @model_validator(mode="after")
    def _deepspeed_can(self) -> Config:
        launch = self.launch
        if self.train.compile and launch.zero_stage == 3:
            raise ValueError(
                "train.compile true needs launch.zero_stage 0, 1 or 2: at 3 the shards are "
                "gathered by hooks inside of the networks"
            )
        if self.optim.clip and self.train.precision == "fp16":
            raise ValueError(
                f"optim.clip {self.optim.clip} needs train.precision float32 or bf16: DeepSpeed "
                f"would clip gradients that are still scaled"
            )
        needed = {"none": 0, "optimizer": 1, "parameters": 3}[launch.offload]
        if launch.zero_stage < needed:
            raise ValueError(
                f"launch.offload {launch.offload} needs launch.zero_stage {needed} or more, "
                f"not {launch.zero_stage}"
            )
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

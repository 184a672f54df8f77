"""The section `loss`: the objective's terms, their forms and weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pmg.config.section import Count, NonNegative, Section, Weight

__all__ = ["LossConfig"]


class LossConfig(Section):
    """Weights and forms of the objective's terms."""

    adversarial: Literal["lsgan", "log", "hinge"] = "lsgan"
    likelihood: Literal["laplace", "gaussian"] = "laplace"
    kl: Literal["bound", "monte_carlo", "vade", "min"] = Field(
        "bound", description="estimator of KL(q, prior)"
    )
    kl_samples: Count = Field(
        1, description="samples of the posterior that monte_carlo and vade take at every position"
    )
    lambda_gan: Weight = Field(1.0, description="lambda0")
    lambda_kl: Weight = Field(0.01, description="lambda1")
    lambda_reconstruction: Weight = Field(10.0, description="lambda2")
    lambda_cycle_kl: Weight = Field(0.01, description="lambda3")
    lambda_cycle: Weight = Field(10.0, description="lambda4")
    lambda_identity: Weight = Field(
        0.0,
        description="weight of what the translator to a domain changes in patches of that domain; "
        "CycleGAN's, 0 in the paper",
    )
    lambda_change: Weight = Field(
        0.0,
        description="weight of the HU that translation changes: contrast agent alters few tissues; "
        "0 in the paper",
    )
    lambda_gradient: Weight = Field(
        0.0,
        description="weight of the changes of differences between neighbouring voxels, which "
        "smooth changes of contrast hardly touch; 0 in the paper",
    )
    calcium_weight: Annotated[float, Field(ge=1)] = Field(
        1.0, description="what a voxel above calcium_hu counts in the likelihood; 1 in the paper"
    )
    calcium_hu: float = Field(
        130.0, description="calcium by HU; with contrast agent also vessels and bone lie above"
    )
    r1: Weight = Field(
        0.0, description="weight of the squared gradient of D at real patches; 0: none"
    )
    r1_every: Count = Field(
        16, description="steps between R1's, which then count as often (StyleGAN2)"
    )
    cycle_kl_weight: Literal["lambda3", "lambda4"] = Field(
        "lambda3",
        description="weight of the translated patch's KL; lambda4 is the printed misprint",
    )
    kl_warmup_steps: NonNegative = Field(0, description="steps over which the KL weights rise")
    free_bits: Weight = Field(0.0, description="nats per latent channel that cost nothing")

"""The typed tree of every setting: defaults, ranges, errors that name the nearest right name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from storage.errors import StoreError
from storage.place import Place

__all__ = [
    "Config",
    "ConfigError",
    "DataConfig",
    "DiscriminatorConfig",
    "LaunchConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "PriorConfig",
    "Section",
    "TrackConfig",
    "TrainConfig",
    "TranslateConfig",
    "checked",
    "load_config",
    "parsed",
    "preset_names",
]

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]


class ConfigError(ValueError):
    """A setting that does not exist or is out of its range; the message names it."""


class Section(BaseModel):
    """Settings that are refused where they are unknown or out of range, never passed over."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


S = TypeVar("S", bound=Section)


def _address(value: object) -> object:
    """Of a place, checked."""
    if not isinstance(value, str | Path):
        return value
    try:
        return str(Place.of(value))
    except StoreError as error:  # which does not show the address: it may hold keys
        raise PydanticCustomError("store", "{message}", {"message": str(error)}) from error


class DataConfig(Section):
    """Which store, and how patches are drawn from it."""

    store: str | None = Field(None, description="the store: a folder or s3://bucket/prefix")
    contrast_domain: Literal[1, 2] = Field(
        2, description="the domain with contrast agent, by which evaluation tells calcium"
    )
    patch: tuple[Count, ...] = Field(
        (64, 64), min_length=2, max_length=3, description="voxels: h, w for 2D or d, h, w for 3D"
    )
    slices: Count = Field(
        1, description="2.5D: neighbouring slices in a 2D patch, its channels; odd; 1: plain 2D"
    )
    spacing_mm: tuple[Positive, Positive, Positive] | None = Field(
        None, description="z, y, x of the store's grid; filled in by training"
    )
    pairing: Literal["unpaired", "same_patient"] = Field(
        "unpaired", description="co-located patches of different patients, or of one in two phases"
    )
    balance: Literal["volumes", "patients"] = Field(
        "volumes", description="what is drawn evenly; patients: many volumes of one weigh as one"
    )
    jitter: NonNegative = Field(0, description="voxels the second patch may be displaced by")
    body_fraction: Fraction = Field(
        1.0, description="share of the patches that are centred in both bodies"
    )
    mask_fraction: Fraction = Field(
        0.0, description="share of the patches that are centred in a masked cell, such as calcium"
    )
    pool: Count | None = Field(
        None,
        description="visits open at once over all workers, rounded up to whole batches; "
        "none: four batches",
    )
    patches_per_visit: Count = Field(
        16, description="patches taken from each part of a volume that is read; more read less"
    )
    amplification: Annotated[float, Field(ge=0.1, le=100)] = Field(
        1.3, description="voxels decoded for each one delivered; more spread a visit's patches"
    )
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the patients that no training step sees"
    )
    validation_seed: NonNegative = Field(
        0, description="draws those patients, whatever train.seed: runs compare on the same ones"
    )
    memory_bytes: Annotated[int, Field(ge=0)] = Field(
        2 * 1024**3, description="per worker; a cohort below it is kept decoded in memory"
    )
    threads: Count = Field(2, description="threads per worker that read ahead")
    low_hu: float = Field(-1024.0, description="intensities below are clipped")
    high_hu: float = Field(3071.0, description="intensities above are clipped")
    centre_hu: float = Field(50.0, description="HU with the finest intensity resolution")
    scale_hu: Positive = Field(
        150.0, description="HU round the centre that are mapped nearly linearly"
    )

    @field_validator("store", mode="before")
    @classmethod
    def _is_a_place(cls, value: object) -> object:
        return _address(value)

    @model_validator(mode="after")
    def _slices_have_a_middle(self) -> DataConfig:
        if self.slices % 2 == 0:
            raise ValueError(f"slices {self.slices} must be odd: the middle one is translated")
        if self.slices > 1 and len(self.patch) == 3:
            raise ValueError(f"slices {self.slices} needs a 2D patch, not {list(self.patch)}")
        return self

    @model_validator(mode="after")
    def _window_is_a_range(self) -> DataConfig:
        if self.low_hu >= self.high_hu:
            raise ValueError(f"low_hu {self.low_hu} must be below high_hu {self.high_hu}")
        return self


class ModelConfig(Section):
    """Both VAEs: encoders E1, E2 and generators G1, G2."""

    architecture: Literal["pmg", "unit", "cyclegan"] = Field(
        "pmg", description="networks of E, G and D: of pmg.networks, or as UNIT or CycleGAN have"
    )
    width: Count = Field(64, description="channels at full resolution")
    downsamplings: Annotated[int, Field(ge=1, le=5)] = Field(
        2, description="halvings to the latent"
    )
    blocks: NonNegative = Field(4, description="residual blocks in each encoder and generator")
    shared_blocks: NonNegative = Field(
        1, description="last blocks of E1/E2 and first of G1/G2 that both domains share"
    )
    latent_channels: Count = Field(16, description="C, channels of z at every latent position")
    norm: Literal["none", "group", "instance"] = Field(
        "none", description="group and instance make a voxel depend on its tile's statistics"
    )
    posterior: Literal["learned", "unit", "none"] = Field(
        "learned",
        description="diagonal variance learned, or fixed at 1 as in UNIT's code; "
        "none: z is the mean",
    )
    skip: bool = Field(
        True, description="a fixed linear path through the latent: translation starts as identity"
    )
    position: bool = Field(
        True, description="tell the networks where in the body-centred frame a patch lies"
    )

    @model_validator(mode="after")
    def _shared_at_most_all(self) -> ModelConfig:
        if self.shared_blocks > self.blocks:
            raise ValueError(
                f"shared_blocks {self.shared_blocks} must be at most blocks {self.blocks}"
            )
        return self

    @model_validator(mode="after")
    def _baselines_are_as_published(self) -> ModelConfig:
        if self.architecture == "pmg":
            return self
        published = {
            "latent_channels": self.width * 2**self.downsamplings,  # the last block's
            "norm": "instance",
            "posterior": "unit",
            "skip": False,
            "position": False,
        }
        if self.architecture == "cyclegan":
            published |= {"posterior": "none", "shared_blocks": 0}
        for name, value in published.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name} {getattr(self, name)} must be {value} "
                    f"in architecture {self.architecture}"
                )
        return self


class DiscriminatorConfig(Section):
    """The multi-scale discriminators D1, D2."""

    width: Count = Field(64, description="channels of the first layer")
    layers: Annotated[int, Field(ge=1, le=6)] = Field(4, description="stride-2 layers per scale")
    scales: Annotated[int, Field(ge=1, le=4)] = Field(3, description="resolutions looked at")
    spectral_norm: bool = Field(
        False, description="divide every layer's weights by their largest singular value"
    )


class PriorConfig(Section):
    """The mixture of Gaussians over each latent position."""

    components: Annotated[int, Field(ge=1, le=256)] = Field(4, description="K")
    learned: bool = Field(True, description="false: fixed; with components 1 this is N(0, 1)")
    min_weight: Annotated[float, Field(ge=0, lt=1)] = Field(1e-3, description="floor of pi_k")
    min_std: Annotated[float, Field(gt=0, lt=1)] = Field(0.05, description="floor of sigma_k")
    fit_step: NonNegative = Field(
        100, description="step at which the mixture is fitted to encodings by EM; 0: never"
    )
    reseed_every: NonNegative = Field(
        500, description="steps between checks for dead components, which are re-seeded; 0: never"
    )

    @model_validator(mode="after")
    def _floors_leave_some_weight(self) -> PriorConfig:
        if self.components * self.min_weight >= 1:
            raise ValueError(
                f"min_weight {self.min_weight} times components {self.components} must be below 1"
            )
        return self


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


class OptimConfig(Section):
    """Adam for both sides."""

    lr: Positive = Field(1e-4, description="of E, G and the prior")
    lr_discriminator: Positive = Field(1e-4, description="of D")
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    weight_decay: Weight = 1e-4
    clip: Weight = Field(0.0, description="largest norm of a module's gradient; 0: no limit")
    schedule: Literal["halve", "cosine", "linear", "constant"] = Field(
        "halve",
        description="halve: every halve_every steps; cosine: to zero at the last step; "
        "linear: the same, straight, over the second half",
    )
    halve_every: Count = 100_000
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="decay of the averaged weights that translate; 0: none"
    )


class TrainConfig(Section):
    """Length, batch and records of a run."""

    steps: Count = 100_000
    batch: Count = Field(16, description="patch pairs per step over all workers")
    accumulate: Count = Field(
        1, description="micro-batches of a worker's share of a step, one after the other"
    )
    precision: Literal["float32", "bf16", "fp16"] = Field(
        "float32",
        description="of convolutions; weights, optimiser and prior are float32; fp16 scales losses",
    )
    compile: bool = Field(
        False,
        description="the networks by torch.compile, D only without loss.r1; for GPUs: on two CPU "
        "cores it took three minutes to start and made no step faster",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    log_every: Count = 10
    checkpoint_every: Count = 500
    keep: Count = Field(2, description="newest checkpoints kept")
    keep_best: str | None = Field(
        None,
        description="a logged term, such as total: the checkpoint where it is least is kept too",
    )
    checkpoints: str | None = Field(
        None,
        description="where checkpoints lie: a folder or s3://bucket/prefix that no other run uses; "
        "none: in the run's folder",
    )
    max_skipped: Count = Field(
        10, description="steps in a row without a finite loss after which the run ends"
    )

    @field_validator("checkpoints", mode="before")
    @classmethod
    def _is_a_place(cls, value: object) -> object:
        return _address(value)

    @model_validator(mode="after")
    def _saves_where_it_logs(self) -> TrainConfig:
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every {self.checkpoint_every} must be a multiple of "
                f"log_every {self.log_every}"
            )
        return self


class LaunchConfig(Section):
    """How many workers, with what, and how DeepSpeed shards."""

    workers: Count = Field(2, description="processes that train together; the most, if elastic")
    min_workers: Count | None = Field(
        None,
        description="elastic: go on with so few where nodes are lost, and with more as they come; "
        "none: exactly as many as workers",
    )
    cpus_per_worker: Positive = 1.0
    gpus_per_worker: Weight = Field(0.0, description="0 trains on CPUs with gloo")
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: Literal["none", "optimizer", "parameters"] = Field(
        "none",
        description="to the host's memory: optimizer from zero_stage 1, parameters (and optimizer) "
        "at 3",
    )
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="of the workers: on few nodes or on many, if possible or strictly"
    )
    max_failures: NonNegative = Field(2, description="restarts of the worker group")
    hang_s: Annotated[float, Field(ge=1)] = Field(
        120.0, description="seconds without a step after which a worker is restarted"
    )
    address: str | None = Field(
        None, description="of a Ray cluster, such as auto; none: a local one"
    )


class TrackConfig(Section):
    """What shows a run while it goes on, beside metrics.jsonl and Prometheus."""

    tensorboard: bool = Field(False, description="write the run's tensorboard folder")
    mlflow: str | None = Field(
        None, description="MLflow's server, such as https://mlflow:5000, or a folder file:/..."
    )
    experiment: str = Field("pmg", min_length=1, description="MLflow's experiment")
    panel_every: NonNegative = Field(
        500, description="steps between pictures of patches and their translations; 0: none"
    )

    @field_validator("mlflow")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        if value is not None and ("@" in value or "?" in value):
            # Without the value: it may hold a password, which a message must not repeat.
            raise PydanticCustomError(
                "store",
                "must not hold a user or password; MLflow reads MLFLOW_TRACKING_USERNAME, "
                "MLFLOW_TRACKING_PASSWORD and MLFLOW_TRACKING_TOKEN",
            )
        return value


class TranslateConfig(Section):
    """Tiles of whole-volume translation."""

    tile: tuple[Count, ...] = Field(
        (512, 512), min_length=2, max_length=3, description="voxels that one pass gives"
    )
    margin: NonNegative | None = Field(
        None,
        description="voxels around a tile that the network sees too; none: as far as it sees, "
        "whereby tiles of any size give the same",
    )
    overlap: Fraction = Field(
        0.25, description="share of a tile that is blended with its neighbour"
    )
    batch: Count = Field(4, description="tiles at once")


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


def preset_names() -> list[str]:
    """Names of the presets that come with pmg, each a YAML file to read."""
    folder = resources.files("pmg") / "presets"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load_config(
    source: Path | str | None = None, overrides: Sequence[str] = (), **sections: Mapping[str, Any]
) -> Config:
    """The tree from a preset's name or a YAML file, then `section.field=value` overrides.

    A file with `preset: NAME` is laid over that preset.

    Raises ConfigError naming the field, its value and what would be right.
    """
    tree = _read_tree(source)
    for name, fields in sections.items():
        tree[name] = _section(tree, name) | dict(fields)
    for override in overrides:
        path, equals, text = override.partition("=")
        section, dot, field = path.strip().partition(".")
        if not equals or not dot:
            raise ConfigError(f"override {override!r}: expected section.field=value")
        tree[section] = _section(tree, section) | {field: _scalar(text)}
    return checked(Config, tree)


def checked(root: type[S], tree: Mapping[str, Any]) -> S:
    """The tree's settings. Raises ConfigError with a line for each that was refused."""
    try:
        return root.model_validate(tree)
    except ValidationError as error:
        refused = "\n".join(_explain(one, root) for one in error.errors())
        raise ConfigError(refused) from None


def parsed(name: str, text: str) -> dict[str, Any]:
    """Settings by section, of YAML. name: of the text, as in `config run.yaml`.

    Raises ConfigError naming it.
    """
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: expected sections of settings, got {type(tree).__name__}")
    return tree


def _read_tree(source: Path | str | None) -> dict[str, Any]:
    if source is None:
        return {}
    if str(source) in preset_names():
        text = (resources.files("pmg") / "presets" / f"{source}.yaml").read_text()
    else:
        path = Path(source)
        if not path.is_file():
            raise ConfigError(
                f"config {path}: no such file, nor a preset ({', '.join(preset_names())})"
            )
        text = path.read_text(errors="replace")
    tree = parsed(f"config {source}", text)
    tree = {name: {} if section is None else section for name, section in tree.items()}
    return _over_preset(tree) if "preset" in tree else tree


def _over_preset(tree: dict[str, Any]) -> dict[str, Any]:
    name = tree.pop("preset")
    if name not in preset_names():
        raise ConfigError(f"config preset: {name!r} is none of {', '.join(preset_names())}")
    base = _read_tree(name)
    return base | {section: base.get(section, {}) | _section(tree, section) for section in tree}


def _section(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = tree.get(name, {})
    if not isinstance(section, dict):
        raise ConfigError(f"config {name}: {section!r} is not a section of settings")
    return section


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override value {text!r}: not YAML: {error}") from None


def _explain(error: Any, root: type[BaseModel]) -> str:
    location = [str(part) for part in error["loc"]]
    name = ".".join(location) or "config"
    if error["type"] == "extra_forbidden":
        known = _fields_beside(location, root)
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        prefix = "".join(f"{part}." for part in location[:-1])
        hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
        return f"config {name}: unknown field; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "store":
        return f"config {name}: {message}"
    shown = error["input"]
    if isinstance(shown, Mapping | BaseModel):
        return f"config {name}: {message}" if location else f"config {message}"
    return f"config {name}: {shown!r} is not allowed: {message[0].lower()}{message[1:]}"


def _fields_beside(location: Sequence[str], model: type[BaseModel]) -> list[str]:
    for part in location[:-1]:
        field = model.model_fields.get(part)
        annotation = None if field is None else field.annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)

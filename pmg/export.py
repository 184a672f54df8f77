"""A trained model for use without this program: one graph for each direction, HU in and HU out.

The window between HU and intensities is inside of the graph. What a user must bring stands in
`model.json` beside it: voxels of `spacing_mm` in the order z, y, x along the patient's axes (S, P,
L), extents that are multiples of `stride`, and the place of the first voxel in the body-centred
frame, if the model was told places. Voxels nearer to the border than `reach` are shown, not given.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pmg.config import Config
from pmg.model import Domain, Translator, other
from pmg.reach import reach
from pmg.weights import ModelError, load_translator, model_folder, save_translator
from pmg.where import Where
from pmg.window import window_of

__all__ = ["ModelFormat", "OneDirection", "export_model"]

ModelFormat = Literal["safetensors", "torch", "onnx"]

# Between the graph and the model, which add up in another order. Far from its centre the window
# makes 10,000 HU of an intensity's unit, hence also a share of the HU themselves.
_WITHIN_HU, _WITHIN_SHARE = 0.1, 1e-3
_OPSET = 20
_DIRECTIONS: tuple[Domain, Domain] = (1, 2)
Run = Callable[..., np.ndarray]


class OneDirection(nn.Module):
    """The deterministic translation of patches in HU, with nothing that training needs."""

    def __init__(self, model: Translator, config: Config, source: Domain) -> None:
        super().__init__()
        assert config.data.spacing_mm is not None  # filled in by training
        self.encoder = model.encoders[source - 1]
        self.generator = model.generators[other(source) - 1]
        self._window, self._spacing_mm = window_of(config.data), config.data.spacing_mm
        self._slices, self._stride = config.data.slices, model.stride
        self._placed = config.model.position

    def forward(self, hu: Tensor, start_mm: Tensor | None = None) -> Tensor:
        """hu: [B, N, *S] float32, N slices of a 2.5D patch, else 1. start_mm: [B, 3], frame
        coordinates (z, y, x) of each patch's first voxel, if the model was told places.

        Returns [B, N, *S] float32 HU.
        """
        features = None
        if self._placed:
            assert start_mm is not None
            where = Where(start_mm, self._spacing_mm).middle(self._slices)
            blocks = [n // self._stride for n in hu.shape[2:]]
            features = where.features(blocks, self._stride)
        posterior = self.encoder(self._window.to_unit(hu), features)
        translated: Tensor = self._window.to_hu(self.generator(posterior.mean, features))
        return translated


def export_model(model: Path, out: Path, form: ModelFormat) -> list[Path]:
    """Write both directions of a run's model, or of a model folder, into `out`.

    safetensors: the folder that `load_model` takes. torch: `1to2.pt2` and `2to1.pt2` for
    `torch.export.load`. onnx: `1to2.onnx` and `2to1.onnx`. Extents and batch are free. Each graph
    is read again and compared with the model on random patches of two sizes.

    Raises ModelError for what is no model, or for a graph that gives other HU.
    """
    translator, config = load_translator(model_folder(model), torch.device("cpu"))
    if form == "safetensors":
        save_translator(translator, config, out)
        return sorted(out.iterdir())
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for source in _DIRECTIONS:
        direction = OneDirection(translator, config, source).eval()
        path = out / f"{source}to{other(source)}.{'pt2' if form == 'torch' else 'onnx'}"
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as partial:
            unproven = Path(partial) / path.name
            run = _SAVERS[form](_program(direction, config, translator.stride), unproven)
            _compare(direction, run, config, translator.stride, path)
            unproven.rename(path)
        written.append(path)
    facts = out / "model.json"
    facts.write_text(json.dumps(_facts(translator, config), indent=1) + "\n", encoding="utf-8")
    return [*written, facts]


def _program(direction: OneDirection, config: Config, stride: int) -> torch.export.ExportedProgram:
    inputs = _patches(config, [4 * stride] * len(config.data.patch), batch=2, seed=0)
    names = ("depth", "rows", "columns")[-len(config.data.patch) :]
    batch = torch.export.Dim("batch", min=1, max=1024)
    # A network may reflect two border voxels: at least two latent positions.
    extents = {
        axis: stride * torch.export.Dim(name, min=2, max=4096)
        for axis, name in enumerate(names, start=2)
    }
    shapes: tuple[dict[int, Any], ...] = ({0: batch} | extents, {0: batch})
    with torch.no_grad():
        return torch.export.export(direction, inputs, dynamic_shapes=shapes[: len(inputs)])


def _save_torch(program: torch.export.ExportedProgram, path: Path) -> Run:
    program.example_inputs = None  # they would be pickled
    torch.export.save(program, path)
    again = torch.export.load(path).module()  # of our own writing, a moment ago

    def run(*inputs: Tensor) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(again(*inputs).numpy())

    return run


def _save_onnx(program: torch.export.ExportedProgram, path: Path) -> Run:
    try:
        import onnxruntime  # noqa: PLC0415 - an extra of the installation
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise ModelError(
            f"export to ONNX needs {error.name}; pip install 'pmg[onnx]' brings it"
        ) from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, we do not
    names = ["hu", "start_mm"][: len(program.graph_signature.user_inputs)]
    torch.onnx.export(
        program,
        (),
        path,
        dynamo=True,
        opset_version=_OPSET,
        input_names=names,
        output_names=["translated_hu"],
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> np.ndarray:
        values = {name: one.numpy() for name, one in zip(names, inputs, strict=True)}
        return np.asarray(session.run(None, values)[0])

    return run


_SAVERS: dict[str, Callable[[torch.export.ExportedProgram, Path], Run]] = {
    "torch": _save_torch,
    "onnx": _save_onnx,
}


def _compare(direction: OneDirection, run: Run, config: Config, stride: int, path: Path) -> None:
    dims = len(config.data.patch)
    for batch, extents in ((1, [6, 4, 8]), (3, [3, 5, 2])):
        inputs = _patches(config, [n * stride for n in extents[:dims]], batch, seed=batch)
        with torch.no_grad():
            expected = direction(*inputs).numpy()
        error = np.abs(run(*inputs) - expected)
        if not (error <= _WITHIN_HU + _WITHIN_SHARE * np.abs(expected)).all():
            raise ModelError(
                f"{path}: the graph is {error.max():.3g} HU off the model at "
                f"{list(expected.shape)}; expected {_WITHIN_HU} HU and {_WITHIN_SHARE:.1%} at most"
            )


def _patches(config: Config, extents: list[int], batch: int, seed: int) -> tuple[Tensor, ...]:
    """Random HU from air to metal, and places if the model knows them."""
    generator = torch.Generator().manual_seed(seed)
    hu = torch.rand(batch, config.data.slices, *extents, generator=generator) * 4000 - 1000
    if not config.model.position:
        return (hu,)
    return hu, torch.rand(batch, 3, generator=generator) * 400 - 200


def _facts(translator: Translator, config: Config) -> dict[str, Any]:
    dims, data = len(config.data.patch), config.data
    return {
        "inputs": {
            "hu": f"float32 [batch, {data.slices}, {'depth, ' * (dims == 3)}rows, columns], HU",
        }
        | (
            {"start_mm": "float32 [batch, 3], z, y, x of the first voxel in the body-centred frame"}
            if config.model.position
            else {}
        ),
        "output": "translated_hu, of the shape of hu",
        "spacing_mm": data.spacing_mm,
        "axes": "z, y, x towards the patient's S, P, L",
        "stride": translator.stride,
        "reach": {f"{i}to{other(i)}": reach(translator, i, dims) for i in _DIRECTIONS},
        "hu_range": [data.low_hu, data.high_hu],
    }

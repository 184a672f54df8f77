"""From presets, YAML and overrides to the tree, with errors that name the nearest right name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pmg.config.section import UNSHOWN, Section
from pmg.config.tree import Config

__all__ = ["ConfigError", "checked", "load_config", "parsed", "preset_names"]

S = TypeVar("S", bound=Section)


class ConfigError(ValueError):
    """A setting that does not exist or is out of its range; the message names it."""


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
        text = (resources.files("pmg") / "presets" / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        path = Path(source)
        if not path.is_file():
            raise ConfigError(
                f"config {path}: no such file, nor a preset ({', '.join(preset_names())})"
            )
        text = path.read_text(errors="replace", encoding="utf-8")
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
    if error["type"] == UNSHOWN:
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

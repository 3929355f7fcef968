"""`toy=true`: an experiment in small, to learn whether a long run would reach its end.

`conf/toy.yaml` says what becomes smaller. This module only changes configs; the files that a toy reads (pictures,
weights) are made by `experiments/planning/toys.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from experiments.config.compose import CONF
from experiments.config.schema.params import MISSING, Param, Signature
from experiments.config.schema.signatures import read_component, read_stage, source_file
from experiments.config.schema.sources import FOLDERS
from experiments.store.typed_json import Block, Options
from maskgit_core.errors import ConfigError, WeightsError
from maskgit_core.weights.registry import fixed_image_size

#: Datasets of which a toy can be made.
PICTURES = ("image_folder", "imagenet", "ffhq", "celeba_hq", "fashion_mnist", "cifar10")
#: What stays as it is where a network takes one size of images.
_SIZES = ("image_size", "crop_size", "image_crop_size")
_KEPT = re.compile(r"^(.*@)(\d+)$")
T = TypeVar("T")


@cache
def rules() -> Block:
    """`conf/toy.yaml`."""
    import yaml

    read: Block = yaml.safe_load((CONF / "toy.yaml").read_text())
    return read


def is_asked(config: Options) -> bool:
    """Whether a composed config asks for a toy.

    Raises:
        ConfigError: `toy` is neither true nor false.
    """
    asked = config.get("toy", False)
    if not isinstance(asked, bool):
        raise ConfigError(f"toy: found {asked!r}; write toy=true or toy=false")
    return asked


def fewer(points: Sequence[T]) -> list[T]:
    """Some points of a sweep, spread over all of them; the first and the last are among them."""
    most = int(rules()["points"])
    if len(points) <= most:
        return list(points)
    places = {round(i * (len(points) - 1) / (most - 1)) for i in range(most)}
    return [points[place] for place in sorted(places)]


def small(config: Options, plugins: Sequence[str] = ()) -> Block:
    """A resolved config as a toy; its `toy` is then a mapping that tells which files have to be made.

    Raises:
        ConfigError: the config is not one of an experiment.
    """
    return _Shrinker(config, plugins).config


class _Shrinker:
    """Makes one config small."""

    def __init__(self, config: Options, plugins: Sequence[str]) -> None:
        self.plugins = tuple(plugins)
        paths = dict(config.get("paths") or {})
        store = str(paths.get("store", "runs"))
        store = store if store.endswith("-toy") else f"{store.rstrip('/')}-toy"
        self.folder = Path(store).absolute() / ".toy"
        self.origins: Block = {}  # toy pictures -> the root that was asked for
        self.made: dict[str, str] = {}  # toy weights -> what they take the place of
        self.config = {k: v for k, v in config.items() if k not in ("toy", "resources")}
        self.config |= {
            "paths": {**paths, "store": store},
            "launcher": {"name": "inline"},
            "tracking": {"uri": None, "ship": False},
        }
        steps, self.left_out = self._unlike(config.get("pipeline") or {})
        self.config["pipeline"] = {**_mapping(config.get("pipeline")), "steps": steps}
        stages = {str(name): str(node.get("stage", name)) for name, node in steps.items() if isinstance(node, Mapping)}
        self.resources = {name: dict(rules()["resources"]) for name in (*stages, *stages.values())}
        self.config["resources"] = self.resources
        self._keeps = self._kept_steps(stages)
        top = {key: self.config[key] for key in self.config}
        for name, stage in stages.items():
            signature = self._stage(stage)
            if signature is not None:
                self._step(name, stage, signature, top)
        self.config["toy"] = {"folder": str(self.folder), "origins": self.origins, "made": self.made}
        self.config["toy"]["left_out"] = self.left_out

    # -- steps ---------------------------------------------------------------------------------------------------
    def _unlike(self, pipeline: Options) -> tuple[Block, dict[str, str]]:
        """The steps, without optional ones that differ from an earlier one in their weights alone; and what those are.

        Rows of a table of published networks: one of each kind shows whether all of them would run.
        """
        steps, seen, left_out = dict(_mapping(pipeline.get("steps"))), dict[str, str](), dict[str, str]()
        needed = json.dumps([_mapping(node).get("needs") for node in steps.values()], default=str)
        for name, node in list(steps.items()) if pipeline.get("optional") is True else ():
            block = _mapping(self.config.get(name))
            alike = {k: _mapping(v).get("name", v) for k, v in block.items()}
            first = seen.setdefault(json.dumps([node, alike], sort_keys=True, default=str), str(name))
            if isinstance(node, Mapping) and first != name and f'"{name}' not in needed:
                steps[name], left_out[str(name)] = None, first
        return steps, left_out

    def _stage(self, stage: str) -> Signature | None:
        for module in (f"experiments.stages.{stage}", *(f"{p}.stages.{stage}" for p in self.plugins)):
            if re.fullmatch(r"\w+", stage) and source_file(module) is not None:
                return read_stage(module, stage)
        return None  # the checker names the mistake

    def _step(self, name: str, stage: str, signature: Signature, top: Options) -> None:
        """Writes what is smaller into the step's own block, which comes before the stage's and the top level."""
        own = dict(_mapping(self.config.get(name)))
        said = {k: top[k] for k in signature.params if k in top and k not in self.resources}
        said = {**said, **_mapping(self.config.get(stage)), **own}
        changed = _smaller(said, signature, rules()["stages"].get(stage, {}))
        kept = _SIZES if self._takes_one_size(said, signature) else ()
        changed = {key: value for key, value in changed.items() if key not in kept}
        if stage == "train":
            changed |= self._training(said)
        if (
            stage == "import_model" and said.get("grid_height") == 1
        ):  # one-dimensional tokens: their number is the tokenizer's
            changed = {key: value for key, value in changed.items() if not key.startswith("grid_")}
        for key, param in signature.params.items():
            value = said.get(key, MISSING)
            if isinstance(value, Mapping) and (base := _base(param)) is not None:
                whole = {**_mapping(top.get(key)), **value}
                shrunk = self._component(base, whole, kept)
                # only what changes: the rest may still have to be chosen (`auto`) where it is written
                differs = {k: v for k, v in shrunk.items() if k == "name" or k not in whole or whole[k] != v}
                changed[key] = {**_mapping(own.get(key)), **differs}
            elif isinstance(value, Mapping) and (entry := param.entry()) is not None:
                base = str(_base(entry))
                changed[key] = {inner: self._component(base, _mapping(spec)) for inner, spec in value.items()}
            elif isinstance(value, str) and param.kind is not None and (at := _KEPT.match(value)):
                changed[key] = f"{at[1]}{self._scaled(int(at[2]))}"
            elif "weights" in param.marks and not (key == "lpips_backbone" and said.get("lpips", "none") == "none"):
                changed |= self._stage_weights(stage, key, said)
        self.config[name] = {**own, **changed}

    def _kept_steps(self, stages: Mapping[str, str]) -> tuple[int, int]:
        """Steps of the experiment's training, and of the toy's."""
        name = next((name for name, stage in stages.items() if stage == "train"), "train")
        block = {**_mapping(self.config.get("train")), **_mapping(self.config.get(name))}
        total, keep = block.get("num_train_steps"), block.get("keep_every")
        small = int(rules()["train_steps"])
        if not isinstance(total, int) or isinstance(total, bool) or total < 1:
            return small, small
        if isinstance(keep, int) and 0 < keep < total:
            small = min(8, max(small, -(-total // keep)))
        return total, min(total, small)

    def _scaled(self, step: int) -> int:
        total, small = self._keeps
        return max(1, round(step * small / total))

    def _training(self, said: Options) -> Block:
        """The numbers of a training that hang together: its length and what is kept on the way."""
        changed: Block = {"num_train_steps": self._keeps[1]}
        for key in ("keep_every", "checkpoint_every"):
            if isinstance(said.get(key), int):
                changed[key] = self._scaled(said[key])
        if said.get("held_out_share"):
            changed["held_out_share"] = max(0.2, float(said["held_out_share"]))
        return changed

    # -- components ----------------------------------------------------------------------------------------------
    def _signature(self, base: str, spec: Options) -> Signature | None:
        folder, name = FOLDERS.get(base, ""), str(spec.get("name", ""))
        modules = [f"{p}.{folder}.{name.replace('/', '.')}" for p in ("maskgit_core", *self.plugins)]
        module = next((m for m in modules if re.fullmatch(r"[\w.]+", m) and source_file(m) is not None), None)
        return read_component(module, base, name) if folder and module is not None else None

    def _takes_one_size(self, said: Options, signature: Signature) -> bool:
        """Whether a step's tokenizer takes images of one size alone; one of random weights is small itself."""
        for key, param in signature.params.items():
            spec = said.get(key)
            if _base(param) != "Tokenizer" or not isinstance(spec, Mapping):
                continue
            own = self._signature("Tokenizer", spec)
            if own is not None and "weights" in own.params and not _is_absent(spec, own):
                weights = _default(spec, own, "weights")
                if fixed_image_size(f"tokenizers/{spec.get('name')}", weights) is not None:
                    return True
        return False

    def _component(self, base: str, spec: Options, kept: Sequence[str] = ()) -> Block:
        signature, name = self._signature(base, spec), str(spec.get("name", ""))
        if signature is None:
            return dict(spec)
        smaller = _smaller(spec, signature, rules()["components"].get(FOLDERS[base], {}))
        shrunk = {**spec, **{key: value for key, value in smaller.items() if key not in kept}}
        if base == "Dataset" and name in PICTURES:
            shrunk["root"] = self._pictures(name, spec.get("root"), str(spec.get("split", "")))
        if "weights" in signature.params and _is_absent(spec, signature):
            if "random_seed" in signature.params:
                shrunk |= {"weights": None, "random_seed": 0}
            elif base == "Tokenizer":
                shrunk["weights"] = self._weights(_default(spec, signature, "weights"), "small")
        return shrunk

    def _pictures(self, name: str, root: object, split: str) -> str:
        mark = hashlib.sha256(json.dumps([name, root], sort_keys=True, default=str).encode()).hexdigest()[:8]
        place = str(self.folder / "data" / f"{name}-{mark}")
        self.origins[place] = {"name": name, "root": root, "split": split}
        return place

    def _stage_weights(self, stage: str, key: str, said: Options) -> Block:
        """A stage's own weights: of a small transformer, or of LPIPS's backbone where that is absent."""
        if stage == "import_model" and isinstance(said.get(key), str):
            about = json.dumps([said[key], said.get("model")], sort_keys=True, default=str)
            return {key: self._weights(str(said[key]), hashlib.sha256(about.encode()).hexdigest()[:8])}
        if key == "lpips_backbone":
            named = said.get(key) or {"alex": "lpips/alexnet", "vgg": "lpips/vgg16"}.get(str(said.get("lpips")))
            if isinstance(named, str) and not _is_here(named):
                return {key: self._weights(named, "published")}
        return {}

    def _weights(self, named: object, mark: str) -> str:
        place = str(self.folder / "weights" / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', str(named))}-{mark}.pt")
        self.made[place] = str(named)
        return place


def _smaller(said: Options, signature: Signature, rule: Options) -> Block:
    changed: Block = {}
    for key, most in (rule.get("at_most") or {}).items():
        if key in signature.params and "derived" not in signature.params[key].marks:
            value = _default(said, signature, key)
            if not isinstance(value, int | float) or isinstance(value, bool) or value > most:
                # what is not set stays so where null does not mean "all of them"
                if value is None and key not in ("num_images",):
                    continue
                changed[key] = most
    for key, value in (rule.get("instead") or {}).items():
        if key in signature.params:
            changed[key] = value
    return changed


def _default(said: Options, signature: Signature, key: str) -> Any:
    value = said.get(key, signature.params[key].default)
    return None if value is MISSING else value


def _base(param: Param) -> str | None:
    """The kind of component that a parameter takes, if any."""
    hints = param.hint.args if param.hint.form == "union" else (param.hint,)
    return next((str(h.args[0]) for h in hints if h.form == "spec"), None)


def _is_absent(spec: Options, signature: Signature) -> bool:
    named = _default(spec, signature, "weights")
    return isinstance(named, str) and not _is_here(named)


def _is_here(named: str) -> bool:
    from maskgit_core.weights.registry import locate

    try:
        locate(named)
    except WeightsError:
        return False
    return True


def _mapping(value: object) -> Block:
    return dict(value) if isinstance(value, Mapping) else {}

"""How many pictures, samples and features the steps of a plan will have, as far as that can be known beforehand.

Pictures are counted by their dataset (`count_pictures` in its file), samples by the step that makes them or in their
file, features of a reference by its step. `None` is "not known": the stage itself refuses when it starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskgit_core.content import resolve
from maskgit_core.errors import DataError

if TYPE_CHECKING:
    from experiments.planning.graph import Node


class Counts:
    """Counts of a graph's steps, each taken once.

    Args:
        nodes: of the graph, by fingerprint.
    """

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self._nodes = nodes
        self._known: dict[str, int | None] = {}

    def pictures(self, node: Node, param: str = "dataset", split: str | None = None) -> int | None:
        """Pictures in a dataset of a step.

        Args:
            node: the step.
            param: the parameter that the dataset fills.
            split: the split that the stage chooses; None: the dataset's own.

        Raises:
            DataError: the dataset has no such split, or none of its pictures is there.
        """
        spec, module = node.request.config.get(param), node.request.modules.get(param, "")
        root = node.request.content.get(f"{param}.root")
        if not isinstance(spec, Mapping) or not module.startswith("maskgit_core.datasets."):
            return None
        options = {key: value for key, value in spec.items() if key != "name"}
        options |= {} if split is None else {"split": split}
        key = repr((module, sorted(options.items()), root))
        if key not in self._known:
            count, there = getattr(import_module(module), "count_pictures", None), _there(root)
            self._known[key] = None if count is None or there is None else count(str(there), options)
        return self._known[key]

    def samples(self, node: Node) -> int | None:
        """Samples that an evaluation scores.

        Raises:
            DataError: the file or folder holds no samples.
        """
        made = node.inputs.get("generated")
        if made:
            request = self._nodes[made[0]].request
            if request.stage != "edit":
                count = request.config.get("num_samples")
                return count if isinstance(count, int) else None
            pictures = self.pictures(self._nodes[made[0]])
            return None if pictures is None else min(pictures, request.config["num_images"])
        there = _there(node.request.content.get("samples"))
        return None if there is None else self._images(there)

    def features(self, reference: Node) -> int | None:
        """Features that a reference keeps of its images, for metrics that compare features with features.

        Raises:
            DataError: a split without pictures, or a file that holds no images.
        """
        config = reference.request.config
        if reference.request.stage != "reference_statistics":
            return None
        statistics = reference.request.content.get("statistics")
        if statistics is None:
            count = self.pictures(reference, split=config["split"])
        else:
            there = _there(statistics)
            count = None if there is None else self._images(there)
        limits = [n for n in (count, config["num_images"], config["num_kept"]) if n is not None]
        return min(limits)

    def _images(self, path: Path) -> int:
        if str(path) not in self._known:
            from maskgit_core.images.image_sets import count_images

            self._known[str(path)] = count_images(path)
        count = self._known[str(path)]
        assert count is not None
        return count


def _there(value: Any) -> Path | None:
    """The path that a value means; None where nothing is there, which its digest reports."""
    try:
        return None if value is None else resolve(value)
    except DataError:
        return None


def statistics_path(node: Node) -> Path | None:
    """The file of statistics or images that a reference is made of; None where it is made of a dataset."""
    return _there(node.request.content.get("statistics"))

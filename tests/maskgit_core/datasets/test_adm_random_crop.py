"""ADM's random crop against figures from the PyTorch MaskGIT's own code under the same draws (`goldens/crops.json`)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weight_recipe import raw_uniform

from maskgit_core.images.transforms import IndexCrop

FIGURES = json.loads((Path(__file__).parent / "goldens/crops.json").read_text())


def image(height: int, width: int, seed: int) -> np.ndarray:
    noise = raw_uniform("image", 3 * height * width, seed).reshape(height, width, 3)
    pixels: np.ndarray = np.rint(noise * np.float32(127.5) + np.float32(127.5)).astype(np.uint8)
    return pixels


@pytest.mark.parametrize("entry", FIGURES, ids=lambda entry: f"{entry['size']}-{entry['side']}")
def test_adms_random_crop_is_the_published_one(entry: dict[str, Any]) -> None:
    picture = image(*entry["size"], entry["index"])
    found, box = IndexCrop("adm_random", entry["side"], seed=5)(picture, entry["index"])
    assert found.shape == (entry["side"], entry["side"], 3)
    assert int(found.astype(np.int64).sum()) == entry["sum"]
    assert found[:3, :3].tolist() == entry["corner"] and found[-1, -1].tolist() == entry["last"]
    assert box is not None
    left, top, width, height = box
    assert min(left, top) >= 0 and left + width <= picture.shape[1] + 1 and top + height <= picture.shape[0] + 1
    assert 0.79 < min(width, height) / min(picture.shape[:2]) <= 1.01


def test_crops_belong_to_the_picture_and_the_seed() -> None:
    picture = image(80, 100, 1)
    crop = IndexCrop("adm_random", 32, seed=1)
    assert np.array_equal(crop(picture, 3)[0], crop(picture, 3)[0])
    assert len({crop(picture, index)[1] for index in range(20)}) > 10
    assert IndexCrop("adm_random", 32, seed=2)(picture, 3)[1] != crop(picture, 3)[1]
    whole = IndexCrop("adm_random", 32, scale=(1.0, 1.0))(image(64, 64, 1), 0)
    assert whole[1] == (0, 0, 64, 64)

"""Editing by sampling only what is unknown: inpainting, class-conditional editing, outpainting (MaskGIT, section 4.3).

Shapes: B images, H × W pixels, h × w tokens, C channels.
"""

from typing import Any

import torch
import torch.nn.functional as F

from maskgit_core import rng
from maskgit_core.errors import ConfigError
from maskgit_core.token_groups import joined_tokens, sampling_grid, split_tokens


def unknown_tokens(pixels_BHW: torch.Tensor, grid: tuple[int, int], grow: int = 0) -> torch.Tensor:
    """Which tokens are to be drawn anew: bool (B, h, w), every token that covers a masked pixel.

    Args:
        pixels_BHW: bool, True where the image is to change.
        grid: (h, w), dividing (H, W).
        grow: also this many tokens around them.
    """
    cells = F.adaptive_max_pool2d(pixels_BHW[:, None].float(), grid)
    if grow:
        cells = F.max_pool2d(cells, 2 * grow + 1, stride=1, padding=grow)
    return cells[:, 0] > 0


def edited_tokens(
    model: Any,
    sampler: Any,
    tokens_Bhw: torch.Tensor,
    unknown_Bhw: torch.Tensor,
    labels_B: torch.Tensor | None,
    seeds_B: torch.Tensor,
) -> torch.Tensor:
    """Tokens with the unknown ones drawn given the others: int64 (B, h, w); known tokens stay as they are."""
    grid = (tokens_Bhw.shape[1], tokens_Bhw.shape[2])
    known_BL = split_tokens(model, torch.where(unknown_Bhw, -1, tokens_Bhw).flatten(1))
    drawn_BL = sampler.sample(model, labels_B, grid=sampling_grid(model, grid), seeds_B=seeds_B, known_BL=known_BL)
    tokens: torch.Tensor = joined_tokens(model, drawn_BL).unflatten(1, grid)
    return tokens


def outpainted_tokens(
    model: Any,
    sampler: Any,
    tokens_Bhw: torch.Tensor,
    left: int,
    right: int,
    labels_B: torch.Tensor | None,
    seeds_B: torch.Tensor,
) -> torch.Tensor:
    """Tokens of a wider picture: int64 (B, h, left + w + right).

    The model sees windows of its own width that move outward from the given tokens by half a width, so that each has at
    least half a window of context.

    Args:
        left, right: token columns to add on each side, >= 0.
    """
    width = tokens_Bhw.shape[2]
    canvas_BhW = F.pad(tokens_Bhw, (left, right), value=-1)
    for number, begin in enumerate(window_places(width, left, right)):
        window_Bhw = canvas_BhW[:, :, begin : begin + width]
        unknown_Bhw = window_Bhw < 0
        # a stream of its own for each window: else neighbouring windows would draw the same noise
        window_seeds_B = rng.fold(seeds_B, number)
        drawn_Bhw = edited_tokens(model, sampler, window_Bhw, unknown_Bhw, labels_B, window_seeds_B)
        canvas_BhW = torch.cat([canvas_BhW[:, :, :begin], drawn_Bhw, canvas_BhW[:, :, begin + width :]], dim=2)
    return canvas_BhW


def window_places(width: int, left: int, right: int) -> list[int]:
    """First columns of the windows in the order they are filled: outward to the right, then outward to the left.

    Raises:
        ConfigError: negative margins, or a picture of less than two columns, which leaves no context.
    """
    if left < 0 or right < 0 or width < 2:
        raise ConfigError(f"edit: cannot add {left} and {right} columns to {width}; give columns >= 0, width >= 2")
    step, places, edge = width // 2, [], left
    while edge < left + right:
        edge = min(edge + step, left + right)
        places.append(edge)
    edge = left
    while edge > 0:
        edge = max(edge - step, 0)
        places.append(edge)
    return places


def composed(
    original_BCHW: torch.Tensor, edited_BCHW: torch.Tensor, pixels_BHW: torch.Tensor, feather: int = 0
) -> torch.Tensor:
    """The edited picture where the mask is, the original elsewhere, with a seam `feather` pixels wide outside."""
    weights = pixels_BHW[:, None].float()
    if feather:
        size = 2 * feather + 1
        padded = F.pad(weights, (feather,) * 4, mode="replicate")
        weights = torch.maximum(weights, F.avg_pool2d(padded, size, stride=1))
    return torch.lerp(original_BCHW.float(), edited_BCHW.float(), weights)


def region_mask(name: str, size: tuple[int, int]) -> torch.Tensor:
    """The named half (`left`, `right`, `top`, `bottom`) or the central quarter (`center`): bool (H, W)."""
    height, width = size
    mask = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = {
        "left": (slice(None), slice(0, width // 2)),
        "right": (slice(None), slice(width // 2, None)),
        "top": (slice(0, height // 2), slice(None)),
        "bottom": (slice(height // 2, None), slice(None)),
        "center": (slice(height // 4, height - height // 4), slice(width // 4, width - width // 4)),
    }[name]
    mask[rows, columns] = True
    return mask

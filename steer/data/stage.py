"""Drawings with transparency on a stage: another hue, another background, another size and place, in closed form.

A drawing is four layers [b 4 h w]: its colours over white, and its coverage. A stage is eight numbers [b 8] with a
meaning each, all 0 for the drawing as it is on white; `show` paints one on the other, differentiably in both.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

STAGE = 8  # background r g b, row, column, shrinkage, hue (cosine, sine)
SMALL = 0.6  # the size at shrinkage 1
MARGIN = 0.9  # how far a small drawing goes towards the edge at row or column 1


def chroma_and_sector(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest channel, chroma, and hue in sixths of a turn, each [b 1 h w] (the HSV hexagon)."""
    top, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = top - low
    r, g, b = (images / chroma.clamp_min(1e-4)).split(1, 1)
    sector = torch.where(top == images[:, :1], g - b, torch.where(top == images[:, 1:2], b - r + 2, r - g + 4))
    return top, chroma, sector


def rotate_hue(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn the HSV hue of images [b 3 h w] in [0,1] by degrees [b]; grey, white and black stay."""
    top, chroma, sector = chroma_and_sector(images)
    sector = sector + degrees.view(-1, 1, 1, 1) / 60
    n = torch.tensor([5.0, 3.0, 1.0], device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    k = torch.remainder(n + sector, 6)
    return top - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def hue_plane(images: Tensor) -> Tensor:
    """The mean of chroma x (cos hue, sin hue) over the pixels of images [b 3 h w]: [b 2]; its angle is the main hue."""
    _, chroma, sector = chroma_and_sector(images)
    angle = sector * (torch.pi / 3)
    return torch.cat([chroma * angle.cos(), chroma * angle.sin()], 1).mean((2, 3))


def place(layers: Tensor, where: Tensor) -> Tensor:
    """Draw layers [b 4 h w] at `where` [b 3]: row and column in [-1, 1], and shrinkage, 0 full size to 1 small."""
    b, channels, side, _ = layers.shape
    zoom = 1 / (1 - (1 - SMALL) * where[:, 2].clamp(-0.2, 1.5))
    reach = (1 / SMALL - 1) * MARGIN
    zero = torch.zeros_like(zoom)
    across = torch.stack([zoom, zero, -where[:, 1] * reach], 1)
    along = torch.stack([zero, zoom, -where[:, 0] * reach], 1)
    fine = (b, channels, 2 * side, 2 * side)
    grid = F.affine_grid(torch.stack([across, along], 1), list(fine), align_corners=False)
    ink = torch.cat([1 - layers[:, :3], layers[:, 3:]], 1)
    ink = F.interpolate(ink, size=fine[2:], mode="bilinear", align_corners=False)
    ink = F.avg_pool2d(F.grid_sample(ink, grid, align_corners=False), 2)
    return torch.cat([1 - ink[:, :3], ink[:, 3:]], 1)


def soft_threshold(x: Tensor, width: float) -> Tensor:
    """Towards 0 by `width`, and 0 within it."""
    return x - x.clamp(-width, width)


def paint_hue(layers: Tensor, hue: Tensor) -> Tensor:
    """Turn the main hue of drawings [b 4 h w] to the angle of `hue` [b 2], by a share that grows with its radius.

    Up to a radius of 1/4 the drawing keeps its colours, from 3/4 on its main hue is the angle's.
    """
    radius = hue.square().sum(1).add(1e-8).sqrt()
    own = hue_plane(layers[:, :3])
    turn = torch.atan2(hue[:, 1], hue[:, 0]) - torch.atan2(own[:, 1], own[:, 0])
    turn = torch.remainder(turn + torch.pi, 2 * torch.pi) - torch.pi
    share = ((radius - 0.25) / 0.5).clamp(0, 1)
    return torch.cat([rotate_hue(layers[:, :3], torch.rad2deg(turn * share)), layers[:, 3:]], 1)


def show(layers: Tensor, stage: Tensor) -> Tensor:
    """Pictures [b 3 h w] in [0,1] of drawings [b 4 h w] on stages [b 8].

    The stage holds the background as 2 (rgb - 1), so that 0 is white (and so is what is within .04 of it); row,
    column and shrinkage as in `place`; and a point of the hue plane as in `paint_hue`.
    """
    layers = layers.clamp(0, 1)
    painted = (stage[:, 6:8].detach().square().sum(1) > 1 / 16).nonzero()[:, 0]
    if len(painted):
        layers = layers.index_put((painted,), paint_hue(layers[painted], stage[painted, 6:8]))
    moved = (stage[:, 3:6].detach().abs() > 0.1).any(1).nonzero()[:, 0]
    if len(moved):  # these alone, since placing a drawing also blurs it: a picture must not depend on its batch
        layers = layers.index_put((moved,), place(layers[moved], soft_threshold(stage[moved, 3:6], 0.1) / 0.9))
    behind = soft_threshold(stage[:, :3] / 2, 0.04).clamp(-1, 0)
    return (layers[:, :3] + (1 - layers[:, 3:]) * behind[:, :, None, None]).clamp(0, 1)

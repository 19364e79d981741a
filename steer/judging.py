"""Samples of a model in training: a sheet of pictures, and what a reward says of them."""

from pathlib import Path

import torch
from torch import nn

import rewards
from steer.flow_map import jump
from steer.models import Model
from steer.samples import write_bytes


class Judging:
    """Draws pictures of some captions with the same noise each time; see `steer.learning.train`."""

    def __init__(self, model: Model, captions: list[str], judge: str | None, folder: Path) -> None:
        self.captions, self.folder = captions, folder
        self.reward = rewards.get(judge) if judge else None
        rng = torch.Generator().manual_seed(0)
        self.noise = torch.randn(len(captions), *model.shape, generator=rng)

    @torch.no_grad()
    def __call__(self, model: Model, step: int) -> dict[str, float]:
        """Mean rewards at one call and at four, and a sheet of pictures made with four."""
        figures: dict[str, float] = {}
        for calls in (1, 4):
            place = _device(model.flow)
            cond = {key: c.to(place) for key, c in (model.encode(self.captions) or {}).items()} or None
            x = self.noise.to(place)
            for k in range(calls):
                x = jump(model.flow, x, k / calls, (k + 1) / calls, cond)
            images = model.decode(x.to(_device(model.decode))).float().cpu()
            if self.reward is not None:
                figures[f"{rewards.name_of(self.reward)}_{calls}"] = float(self.reward(images, self.captions).mean())
                check = getattr(self.reward, "check", None)
                if check is not None:
                    figures[f"right_{calls}"] = float(check(images, self.captions).float().mean())
        self._sheet(images, step)
        return figures

    def _sheet(self, images: torch.Tensor, step: int) -> None:
        import io

        from PIL import Image

        b, _, h, w = images.shape
        columns = min(8, b)
        grid = torch.ones(-(-b // columns) * columns, 3, h, w)
        grid[:b] = images
        tiles = grid.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
        buffer = io.BytesIO()
        Image.fromarray((tiles * 255).round().byte().numpy()).save(buffer, format="PNG")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(buffer.getvalue(), self.folder / f"step-{step:08d}.png")


def _device(part: object) -> torch.device:
    """Where the weights of a part of a model are: a network in training may have moved away from its decoder."""
    inside = [part, *getattr(part, "__dict__", {}).values()]
    weights = (p for m in inside if isinstance(m, nn.Module) for p in m.parameters())
    return next((p.device for p in weights), torch.device("cpu"))

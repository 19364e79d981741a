"""A flow map that can also draw from the posterior p(x1 | x_t) in one call, grown on a trained one."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steer.models.network import FlowNetwork, fourier, from_zero

BACK = 0.2  # rho before training


class Adapter(nn.Module):
    """up(silu(down(norm(h)) * (1 + scale(c)))), of low rank; 0 at the start."""

    def __init__(self, width: int, condition: int, rank: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.down, self.scale = nn.Linear(width, rank), nn.Linear(condition, rank)
        self.up = from_zero(nn.Linear(rank, width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """[b width], told c [b condition]."""
        return self.up(F.silu(self.down(self.norm(h)) * (1 + self.scale(c))))


class PosteriorNetwork(nn.Module):
    """The base map, and with cond = {"x_t": [b d], "t": [b], ...} the conditional map whose ends are draws of
    p(x1 | x_t): it carries noise z at s = 0 to a draw at s = 1.

    z_s = (1-s) eps + s x1 and x_u = (1-u) x0 + u x1 are two independent views of x1. Their combination by precisions,

        S = (s z / (1-s)^2 + u x_u / (1-u)^2) / lam,   lam = (s / (1-s))^2 + (u / (1-u))^2,

    is one view, of the time t* = sqrt(lam) / (1 + sqrt(lam)): E[x1 | z_s, x_u] = D_{t*}(t* S), with the base map's own
    denoiser D (GLASS Flows, arXiv:2509.25170). So the diagonal of the conditional map needs no training: here it is the
    base map's, exactly. What they hold besides, ``w = (u z - s x_u) / |...|``, is standard normal and independent of
    S and x1: it chooses among the draws. A jump noises the view by it, back to t' = t* (1 - rho (t - s) / (1 - s)), and
    lets the base map jump from there:

        v_{s,t}(z | x_u) = (F + (t - s) (...) - z) / max(1 - s, 0.05)
        F = F(t' S + kappa w, t', t' + (1 - t') (t - s) / (1 - s))

    With rho = .2 (times the share of the precision that is x_u's) this already lies close to GLASS's draws of many
    steps; rho and the terms in dots are learned, by a few weights beside the frozen base (Meta flow maps,
    arXiv:2601.14430; Posterior Diamond maps, arXiv:2602.05993).

    base: whose weights stay. rank: of the adapters behind its blocks.
    """

    def __init__(self, base: FlowNetwork, rank: int = 64) -> None:
        super().__init__()
        width, condition = base.config["width"], base.config["condition"]
        self.base, self.rank = base.requires_grad_(False), rank
        self.config = base.config
        self.noise = from_zero(nn.Linear(base.config["size"], width))
        self.clock = nn.Sequential(nn.Linear(3 * base.times, 256), nn.SiLU(), nn.Linear(256, condition))
        self.back = from_zero(nn.Linear(condition, 1))
        self.adapters = nn.ModuleList(Adapter(width, condition, rank) for _ in base.blocks)

    def grown(self) -> dict[str, Tensor]:
        """The weights beside the base's."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith("base.")}

    def describe(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """As the base's."""
        return self.base.describe(tokens, mask)

    def condition(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As the base's."""
        return self.base.condition(cond)

    def forward(self, z: Tensor, s: float | Tensor, t: float | Tensor, cond: Mapping[str, Tensor] | None) -> Tensor:
        """v_{s,t}(z) [b d]; raises ValueError without cond."""
        if cond is None or "x_t" not in cond:
            return self.base(z, s, t, cond)
        s, t = (torch.as_tensor(a, dtype=z.dtype, device=z.device).expand(len(z)) for a in (s, t))
        return self._conditional(z, s, t, self.condition(cond), cond["x_t"], cond["t"])

    def _conditional(
        self, z: Tensor, s: Tensor, t: Tensor, cond: Mapping[str, Tensor], x_u: Tensor, u: Tensor
    ) -> Tensor:
        left, mine, other = 1 - s, s * (1 - u), u * (1 - s)
        size = (mine.square() + other.square()).clamp_min(1e-12).sqrt()
        seen = size / (size + left * (1 - u)).clamp_min(1e-6)  # t*
        view = (mine * (1 - u))[:, None] * z + (other * left)[:, None] * x_u
        view = view * (seen / size.square())[:, None]
        alone = (size < 1e-5)[:, None]  # nothing is seen yet: all of z is noise
        rest = torch.where(alone, z, (u[:, None] * z - s[:, None] * x_u) / size[:, None])
        own = self.clock(torch.cat([fourier(a, self.base.times) for a in (s, t, u)], 1))
        share, step = (t - s) / left.clamp_min(0.05), (t - s)[:, None]
        rho = BACK * self.back(F.silu(own))[:, 0].exp() * (other / size).square()
        start = seen * (1 - (rho * share).clamp(0, 1))
        ratio = start / seen.clamp_min(1e-6)
        kappa = ((1 - start).square() - (ratio * (1 - seen)).square()).clamp_min(1e-12).sqrt()
        point = ratio[:, None] * view + torch.where(alone, 1.0, kappa[:, None]) * rest
        h, c = self.base.start(point, start, start + (1 - start) * share, cond)
        c, own = F.silu(c), F.silu(c + own)
        h = h + step * self.noise(rest)
        for block, adapter in zip(self.base.blocks, self.adapters, strict=True):
            h = block(h, c) + step * adapter(h, own)
        return (self.base.end(h) - z) / left.clamp_min(0.05)[:, None]

"""How well a look-ahead foretells the reward: the soft value of half-made pictures against that of 200 posterior draws.

At times t, points x_t of some captions (a sample of the model, noised again) get a value

    V(x_t) = T log E[exp(r(x1) / T) | x_t],   T the spread of the reward over plain pictures of the caption,

by 200 draws of GLASS with many steps, which count as the truth, and by each look-ahead. Shown is the correlation over
the points of a caption, which is what search and SMC choose among, averaged over captions. A second table steers by
`clip` at equal calls, with a method's own look-ahead and with the posterior map, and shows scores of the judge.
"""

from dataclasses import replace

import torch
from torch import Tensor

import rewards
from steer import settings
from steer.bench.comparison import measure, most_particles
from steer.bench.embedded import plain, spread_captions
from steer.draws import draws_like, randn_like
from steer.flow_map import Cond, jump
from steer.interpolants import interpolate
from steer.lookahead import Denoiser, Jump, LookAhead, soft_value
from steer.models import Model, load_model
from steer.models.posterior_network import PosteriorNetwork
from steer.posterior import Glass, Learned

Row = dict[str, object]
TIMES = (0.1, 0.3, 0.5, 0.7)
CHUNK = 512
METHODS = ("smc_sde", "mfm_gf", "mfm_g", "diamond")
BUDGET = 256


def look_aheads(model: Model) -> dict[str, LookAhead]:
    """Those that are compared, by name; the trained posterior map where the model has one."""
    plain: dict[str, LookAhead] = {
        "Denoiser": Denoiser(),
        "Jump": Jump(),
        "GLASS, 1 draw": Glass(1, 6),
        "GLASS, 4": Glass(4, 6),
    }
    learned: dict[str, LookAhead] = {
        "posterior map, 1 draw": Learned(1),
        "posterior map, 4": Learned(4),
        "posterior map, 1 draw in 2 calls": Learned(1, 2),
        "posterior map, 4 in 2 calls": Learned(4, 2),
    }
    return plain | (learned if isinstance(model.flow, PosteriorNetwork) else {})


def run(fast: bool = False) -> dict[str, list[Row]]:
    """A row for each look-ahead: its calls, and its correlation at each time; and rows of steering with them."""
    model = load_model("emoji")
    prompts, n, draws = spread_captions(2 if fast else 6, seed=6), 4 if fast else 12, 20 if fast else 200
    return {
        f"correlation with the value of {draws} posterior draws": correlations(model, prompts, n, draws),
        f"steering by clip at {BUDGET} calls a prompt": steering(model, spread_captions(2 if fast else 24, seed=7)),
    }


def steering(model: Model, captions: list[str]) -> list[Row]:
    """Each method with its own look-ahead, and with draws of the posterior map where the model has one; see `measure`.

    The particles are as many as the budget allows, at most 16.
    """
    rows: list[Row] = []
    for name in METHODS:
        method = settings.build("method", name)
        for look in (method.lookahead, *([Learned(1), Learned(4)] if model.posterior else [])):
            chosen = replace(method, lookahead=look)
            n = most_particles(chosen, BUDGET)
            figures = {} if n is None else measure(model, captions, rewards.get("clip"), chosen, n, BUDGET)
            rows.append({"method": name, "look-ahead": str(look), "n": n} | figures)
    return rows


@torch.no_grad()
def correlations(model: Model, prompts: list[str], n: int, draws: int, seed: int = 0) -> list[Row]:
    """The table: n points for each prompt and time."""
    rng = torch.Generator().manual_seed(seed)
    value = Values(model, prompts, n)
    cond = {key: c.repeat_interleave(n, 0) for key, c in (model.encode(prompts) or {}).items()}
    x1 = _samples(model, cond, len(prompts) * n, rng)
    rows: dict[str, Row] = {"truth, halved": {"look-ahead": "truth, halved", "calls": None}}
    rows |= {name: {"look-ahead": name, "calls": look.calls} for name, look in look_aheads(model).items()}
    for t in TIMES:
        x = interpolate(model.path, randn_like(x1, rng), x1, t)
        truth = _rewards_of_draws(value, model, x, t, cond, draws, rng)
        one, other = (value.soft(part) for part in truth.chunk(2))
        rows["truth, halved"][f"t={t}"] = correlation(one, other, len(prompts))
        for name, look in look_aheads(model).items():
            guess = value.soft(value.rewards(look(model.flow, model.path, x, t, cond=cond, rng=rng)))
            rows[name][f"t={t}"] = correlation(guess, value.soft(truth), len(prompts))
    return list(rows.values())


def correlation(a: Tensor, b: Tensor, prompts: int) -> float:
    """Pearson's, over the points of each prompt; the mean over prompts of a, b [p n]."""
    a, b = (v.view(prompts, -1).double() for v in (a, b))
    a, b = (v - v.mean(1, keepdim=True) for v in (a, b))
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-12)).mean().item()


class Values:
    """Rewards of latents, and their soft values at each prompt's temperature."""

    def __init__(self, model: Model, prompts: list[str], n: int) -> None:
        self.model, self.reward = model, rewards.get("clip")
        self.prompts = [q for q in prompts for _ in range(n)]
        spread = torch.stack(
            [self._score(part, [q] * 16) for q, part in zip(prompts, plain(model, prompts, 16, 4), strict=True)]
        )
        self.temperature = spread.std(1).clamp_min(1e-6).repeat_interleave(n)

    def rewards(self, x1: Tensor) -> Tensor:
        """[k b] of latents [k b *d]."""
        k = len(x1)
        flat, prompts = x1.flatten(0, 1), self.prompts * k
        parts = [
            self._score(self.model.decode(flat[i : i + CHUNK]), prompts[i : i + CHUNK])
            for i in range(0, len(flat), CHUNK)
        ]
        return torch.cat(parts).view(k, -1)

    def soft(self, r: Tensor) -> Tensor:
        """V [b] of rewards [k b]."""
        return self.temperature * soft_value(r / self.temperature)

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.reward(images, prompts).float().cpu()


def _samples(model: Model, cond: Cond, b: int, rng: torch.Generator, calls: int = 4) -> Tensor:
    x = torch.randn(b, *model.shape, generator=rng)
    for j in range(calls):
        x = jump(model.flow, x, j / calls, (j + 1) / calls, cond)
    return x


def _rewards_of_draws(
    value: Values, model: Model, x: Tensor, t: float, cond: Cond, draws: int, rng: torch.Generator, at_once: int = 20
) -> Tensor:
    """[draws b]."""
    parts = []
    for _ in range(-(-draws // at_once)):
        look = Glass(at_once, 8)
        parts.append(value.rewards(look(model.flow, model.path, x, t, cond=cond, noise=draws_like(x, at_once, rng))))
    return torch.cat(parts)[:draws]

"""Every method on the embedded model at equal budgets, judged by the CLIP that none of them optimises."""

import warnings

import torch
from torch import Tensor

import rewards
from steer import metrics, settings
from steer.api import sample
from steer.methods import Method
from steer.models import Model

Row = dict[str, object]
PARTICLES = {16: 4, 64: 8, 256: 16}  # at so many network calls a prompt; fewer where a method cannot divide these
BUDGETS = tuple(PARTICLES)


def compare(model: Model, captions: list[str], reward: rewards.Reward, budgets: tuple[int, ...] = BUDGETS) -> list[Row]:
    """One row a method and budget: means over captions.

    "judge" and "optimised" are scores by the held-out CLIP and by the reward: "plain" of unsteered pictures, "best" of
    the picture with the highest reward, "weighted" of the law for which the weights stand. "wins" is the share of
    captions whose best picture has a judge score above the mean of their plain ones; "distinct" the share of particles
    with descendants; "diversity" the root mean square difference of two pictures of a caption. A row of no figures: the
    budget is too small for the method. Methods that follow a gradient are left out where the reward has none.
    """
    rows: list[Row] = []
    for budget in budgets:
        for name in settings.names("method"):
            method = settings.build("method", name)
            if not method.needs_gradient or rewards.is_differentiable(reward) is not False:
                n = most_particles(method, budget)
                figures = {} if n is None else measure(model, captions, reward, name, n, budget)
                rows.append({"budget": budget, "method": name, "n": n} | figures)
    return rows


def most_particles(method: Method, budget: int) -> int | None:
    """The number of `PARTICLES`, halved until the method can divide the budget; None where it cannot even for one."""
    n = PARTICLES.get(budget, max(PARTICLES.values()))
    while n >= 1:
        try:
            method.with_budget(budget, n)
        except ValueError:
            n //= 2
        else:
            return n
    return None


def measure(model: Model, captions: list[str], reward: rewards.Reward, name: str, n: int, budget: int) -> Row:
    """The figures of one method, see `compare`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a report warns of is in the columns
        out = sample(captions, reward=reward, model=model, method=name, n=n, budget=budget, seed=2, progress=False)
    judge, weights = rewards.get("clip-judge"), out.log_w.exp()
    before, after = (score(judge, images, captions) for images in (out.unsteered, out.images))
    best = after.gather(1, out.best_index[:, None])[:, 0]
    return {
        "calls": out.trace.calls.float().mean().item(),
        "judge, plain": before.mean().item(),
        "judge, best": best.mean().item(),
        "judge, weighted": (weights * after).sum(1).mean().item(),
        "optimised, plain": out.unsteered_rewards.mean().item(),
        "optimised, best": out.rewards.amax(1).mean().item(),
        "optimised, weighted": (weights * out.rewards.masked_fill(weights == 0, 0)).sum(1).mean().item(),
        "wins": (best > before.mean(1)).float().mean().item(),
        "distinct": metrics.distinct(out.trace.ancestors).mean().item(),
        "diversity": metrics.diversity(out.images.cpu()).within.mean().item(),
        "seconds": out.report["cost"]["steered"]["seconds"]["total"],
    }


@torch.no_grad()
def score(reward: rewards.Reward, images: Tensor, captions: list[str]) -> Tensor:
    """Scores [p n] of pictures [p n 3 h w]."""
    n = images.shape[1]
    texts = [c for c in captions for _ in range(n)]
    return rewards.Chunked(reward, 256)(images.flatten(0, 1), texts).unflatten(0, images.shape[:2])

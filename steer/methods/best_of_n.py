"""Best of n: sample plainly, score, and weigh.

    x1 = X_{t_{K-1},1} o ... o X_{0,t_1}(x0),  t_k = k / K                for each of n noises
    w = exp(r(x1) / temperature) / sum of these;   Z_hat = mean exp(r(x1) / temperature)

The unbeatable baseline of few-step maps; every other method is to be compared with it at equal calls.
Source: KL of its law, "Theoretical guarantees on the best-of-n alignment policy" (arXiv:2401.01879).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from steer.draws import Rng
from steer.flow_map import Cond, FlowMap, jump
from steer.interpolants import Interpolant
from steer.particles import Particles, Reward, Trace, check_settings, steps_within, tempered
from steer.population import Population
from steer.run import Run


@dataclass(frozen=True)
class BestOfN:
    """Carry each x0 to the end by `steps` equal jumps and weigh it by ``exp(reward / temperature)``.

    All n samples are returned. Best-of-n proper is the one of highest reward (``Samples.best``, or
    ``rewards.argmax(-1)``); its law is no tilt. The weights make the same draws an importance sample of the tilted law
    p(x1) exp(reward / temperature), with an unbiased estimate ``mean exp(reward / temperature)`` of Z.

    Attributes:
        steps: jumps from noise to data; one is enough for an exact map.
        temperature: of the tilted law; it changes weights and log Z, not the samples.
    """

    steps: int = 1
    temperature: float = 1.0
    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self.steps, self.temperature)

    @torch.no_grad()
    def __call__(
        self,
        flow: FlowMap,
        path: Interpolant,
        reward: Reward,
        x0: Tensor,
        cond: Cond = None,
        *,
        rng: Rng,
    ) -> tuple[Particles, Trace]:
        """Particles and trace of x0 [p n *d]; draws nothing from rng."""
        run = Run(flow, path, reward, x0, cond, rng=rng)
        population, x = Population(run, x0), x0
        for k in range(self.steps):
            x = jump(run.flow, x, k / self.steps, (k + 1) / self.steps)
        rewards = run.rewards(x)
        population.weigh(tempered(rewards, self.temperature), 1.0)
        return population.finish(x, rewards)

    def with_budget(self, calls: int, n: int = 16) -> "BestOfN":
        """The same method with as many steps as `calls` a prompt pay for; raises ValueError below n calls."""
        return replace(self, steps=steps_within(calls, n, a_step=1))

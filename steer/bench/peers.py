"""What one would use instead: bootstrap SMC of the package `particles`, on the exact denoiser at 100 steps.

    pip install 'steer[bench]'

Its Feynman-Kac model is the usual one: ancestral steps of the denoising diffusion, weighed by the reward of the
denoised sample, ``log G_k = r(D(x_k)) - r(D(x_{k-1}))``; systematic resampling below an effective size of half.
"""

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

from steer.bench.problems import Problem
from steer.flow_map import denoise
from steer.interpolants import Linear

NAME, STEPS = "particles: bootstrap SMC", 100
MISSING = "not installed: pip install steer[bench]"


def installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("particles") is not None


def bootstrap(problem: Problem, n: int, seed: int, steps: int = STEPS) -> tuple[Tensor, Tensor, float]:
    """Samples [n d], log-weights [n] and log Z, at `steps` denoiser calls a particle."""
    import numpy as np
    from particles import SMC

    before = np.random.get_state()
    np.random.seed(seed)  # the package draws from numpy's own generator
    try:
        run = SMC(fk=_model(problem, steps), N=n, resampling="systematic", ESSrmin=0.5)
        run.run()
    finally:
        np.random.set_state(before)
    found: Any = run.X
    x, log_w = torch.from_numpy(found[:, problem.d :]), torch.from_numpy(run.wgts.lw)
    return x, log_w.log_softmax(0), float(run.logLt)


def _model(problem: Problem, steps: int) -> object:
    """The Feynman-Kac model; a particle is (x_t, D(x_t)), so that each denoiser call is made once."""
    import numpy as np
    from particles.core import FeynmanKac

    path, d = Linear(), problem.d

    def seen(x: Any, t: float) -> Any:  # noqa: ANN401 (arrays of numpy)
        with torch.no_grad():
            return np.concatenate([x, denoise(problem.flow, path, torch.from_numpy(x), t).numpy()], 1)

    def value(x: Any) -> Any:  # noqa: ANN401
        return problem.reward(torch.from_numpy(x[:, d:])).numpy()

    class Ancestral(FeynmanKac):
        """x_t at t = 0, 1/K .. (K-1)/K."""

        def M0(self, N: int) -> Any:  # noqa: ANN401, N802, N803 (the package's names)
            """Noise."""
            return seen(np.random.normal(size=(N, d)), 0.0)

        def M(self, t: int, xp: Any) -> Any:  # noqa: ANN401, N802
            """The step of the reversed diffusion from time s to u, given that x1 = D(x_s)."""
            s, u = (t - 1) / steps, t / steps
            alpha, after, ratio = path.alpha(s), path.alpha(u), path.beta(s) / path.beta(u)
            forgotten = (alpha**2 - (ratio * after) ** 2) / alpha**2
            mean = ratio * (after / alpha) ** 2 * xp[:, :d] + path.beta(u) * forgotten * xp[:, d:]
            return seen(mean + after * math.sqrt(forgotten) * np.random.normal(size=mean.shape), u)

        def logG(self, t: int, xp: Any, x: Any) -> Any:  # noqa: ANN401, N802
            """What the reward of the denoised sample has gained."""
            return value(x) - (0.0 if t == 0 else value(xp))

    return Ancestral(T=steps)

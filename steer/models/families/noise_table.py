"""Networks of discrete timesteps: the noise levels they were trained on, at the times of a path, and what they predict.

Sources: "Denoising diffusion implicit models" (arXiv:2010.02502), "Latent consistency models" (arXiv:2310.04378).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steer.interpolants import VP, like
from steer.models.families.base import EndsFlow, Kind, fresh

SNAP = 0.02  # timesteps this close to a whole number are taken for it
CONSISTENCY = ("LCMScheduler", "TCDScheduler")
FEW_STEPS = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")  # trailing: SD-Turbo, SDXL-Turbo, Lightning
LCM_DATA_STD = 0.5


class NoiseTable:
    """Timesteps k = 0 ... K-1 of a variance-preserving schedule, tied to times by the ratio of data to noise.

        beta_t / alpha_t = sqrt(abar_k / (1 - abar_k)),     abar_k the running product of 1 - the schedule's betas

    The path is `steer.interpolants.VP`: the same laws at other times. Between whole timesteps the logarithm of the
    ratio is interpolated. A schedule that stops short of pure noise has its last timestep there, as its samplers do.

    alphas_cumprod: abar [K], falling.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        kept = alphas_cumprod.double().clamp(1e-10, 1 - 1e-10)
        self.rising = (0.5 * (kept / (1 - kept)).log()).flip(0).cpu()

    def timestep(self, t: Tensor) -> Tensor:
        """The timesteps of times t [b], float64."""
        table = self.rising.to(t.device)
        log = (t.log() - torch.log1p(-t)).clamp(float(table[0]), float(table[-1]))
        after = torch.searchsorted(table, log).clamp(1, len(table) - 1)
        part = (log - table[after - 1]) / (table[after] - table[after - 1])
        k = len(table) - after - part
        return torch.where((k - k.round()).abs() < SNAP, k.round(), k)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and beta at times t [b], float64, no noisier than the table's last timestep."""
        ratio = (t / (1 - t)).clamp_min(float(self.rising[0].exp()))
        beta = torch.where(ratio.isinf(), 1.0, ratio / (1 + ratio**2).sqrt())
        return torch.where(ratio.isinf(), 0.0, 1 / (1 + ratio**2).sqrt()), beta

    def time(self, timestep: float) -> float:
        """The time of a timestep."""
        k = len(self.rising) - 1 - timestep
        low = min(int(k), len(self.rising) - 2)
        log = self.rising[low] + (k - low) * (self.rising[low + 1] - self.rising[low])
        return float(torch.sigmoid(log))


class TimestepFlow(EndsFlow):
    """Ends by a network of timesteps that predicts ``N``, ``D`` or ``beta N - alpha D``, as its scheduler says.

    Subclasses write `predict`. With the scheduler of LCM the weights that make a jump of no length the identity are
    applied too, by its scale of the timestep.

    Raises:
        ValueError: it says something else.
    """

    def __init__(self, network: nn.Module, scheduler: Any) -> None:  # noqa: ANN401
        super().__init__(network, VP())
        self.prediction = scheduler.config.prediction_type
        if self.prediction not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction_type={self.prediction!r} of the scheduler is not known here; known: epsilon, "
                             "v_prediction, sample")  # fmt: skip
        self.table = NoiseTable(scheduler.alphas_cumprod)
        is_lcm = type(scheduler).__name__ == "LCMScheduler"
        self.boundary = scheduler.config.timestep_scaling if is_lcm else None

    def predict(self, x: Tensor, step: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """The network's own output [b *d] for x in its dtype; step [b] float32."""
        raise NotImplementedError

    def ends(self, x: Tensor, s: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Data and noise [b *d]."""
        step = self.table.timestep(s)
        alpha, beta = (like(level, x) for level in self.table.levels(s))
        out = self.predict(x.to(self.dtype), step.float(), cond).to(x)
        if self.prediction == "epsilon":
            data, noise = (x - alpha * out) / beta, out
        elif self.prediction == "v_prediction":
            data, noise = beta * x - alpha * out, alpha * x + beta * out
        else:
            data, noise = out, (x - beta * out) / alpha.clamp_min(1e-6)
        if self.boundary is not None:
            scaled = step * self.boundary
            root = scaled**2 + LCM_DATA_STD**2
            data = like(scaled / root.sqrt(), x) * data + like(LCM_DATA_STD**2 / root, x) * x
        return data, noise


def kind_of(scheduler: Any) -> Kind:  # noqa: ANN401
    """What one call gives, as the scheduler of a checkpoint shows it."""
    name, trailing = type(scheduler).__name__, scheduler.config.get("timestep_spacing") == "trailing"
    return "jump" if name in CONSISTENCY or (name in FEW_STEPS and trailing) else "velocity"


def times_of(scheduler: Any, table: NoiseTable, steps: int) -> list[float]:  # noqa: ANN401
    """The times of the scheduler's timesteps, each once (some call twice at one), and where its last step ends."""
    name, scheduler = type(scheduler).__name__, fresh(scheduler)
    scheduler.set_timesteps(steps)
    times = dict.fromkeys(table.time(float(k)) for k in scheduler.timesteps)
    if name == "TCDScheduler":
        return [*times, table.time(0)]
    end = float(getattr(scheduler, "final_alpha_cumprod", 1.0)) if name == "DDIMScheduler" else 1.0
    return [*times, VP().when((end / (1 - end)) ** 0.5 if end < 1 else float("inf"))]


def noise_scale(scheduler: Any) -> float:  # noqa: ANN401
    """Euler schedulers start from noise of their own size, over that of x on the path."""
    if type(scheduler).__name__ not in FEW_STEPS:
        return 1.0
    sigma = float(scheduler.sigmas.max())
    return float(scheduler.init_noise_sigma) / (sigma**2 + 1) ** 0.5

"""Guards of fine-tuning: what was gained, what it cost, which weights to keep, and when to stop.

On prompts that are not tuned on, with the same noise each time:

    reward      what is optimised
    held_out    a reward that is not (the judge of an embedded model, or the user's)
    accepted    share of the pictures that the reward does not reject (-inf), where it rejects any; a fall by .1 breaks
                the rule
    diversity   mean cosine distance of CLIP features between pictures of one prompt
    kl          of the memoryless path law from the reference's, in nats:
                int E|b - b_ref|^2 / eta dt = 1/2 int E|D - D_ref|^2 dSNR, SNR = (beta / alpha)^2 up to `LARGEST`
                of tuned noise in its place: E|f(x0) - x0|^2 / 2, the bound of `steer.objectives.NoiseNetwork`
    ess         share of the samples that stays effective under the weights p_ref / p that would undo the tuning
    ess_target  the same under exp(r / T) p_ref / p, which would lead to the target: near 1 where it is reached and the
                KL is of a few nats; far from the reference both drown in the noise of their estimate

Neither is known of tuned noise. The log of p / p_ref of a sample is the difference of the two bounds on its likelihood,
``1/2 int |D_ref(x_t) - x1|^2 - |D(x_t) - x1|^2 dSNR``, with the noise of x_t common to both.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rewards
from steer.chunks import slices
from steer.collecting import jumps
from steer.flow_map import Cond, FlowMap, denoise
from steer.interpolants import Interpolant, interpolate
from steer.models import Model
from steer.models.noise import start
from steer.particles import ess
from steer.training_settings import check_kinds

SMALLEST, LARGEST = 0.02, 361.0  # SNR between which paths are compared: t = .12 and t = .95 on the linear path
LEVELS = 10
CHUNK, PICTURES = 512, 128  # rows of the network, and pictures, at once


@dataclass(frozen=True)
class Rule:
    """Which measurements may be kept as the best (of these, the one of highest reward), and when the run ends.

    held_out_fall: by how much the held-out reward may fall below the reference's, in standard deviations of it over the
        reference's pictures; two standard errors are allowed for.
    diversity_fall: which share of the reference's diversity may be lost.
    kl_most: nats that the path law may be away from the reference's.
    patience: measurements in a row that break the rule before the run ends; 0 only warns.

    Raises:
        ValueError: a bound below 0, or patience that is no whole number from 0 on.
    """

    held_out_fall: float = 0.1
    diversity_fall: float = 0.5
    kl_most: float = math.inf
    patience: int = 3

    def __post_init__(self) -> None:
        check_kinds(self, "guard.")
        for name, value in vars(self).items():
            if not value >= 0:
                raise ValueError(f"guard.{name} must be at least 0, got {value}")

    def broken(self, now: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
        """What a measurement breaks, in words."""
        out = []
        if "held_out" in now:
            slack = self.held_out_fall * before["held_out_std"] + 2 * before["held_out_error"]
            if now["held_out"] < before["held_out"] - slack:
                out.append("the held-out reward fell")
        if now["diversity"] < (1 - self.diversity_fall) * before["diversity"]:
            out.append("diversity fell")
        if now.get("accepted", 1.0) < before.get("accepted", 1.0) - 0.1:
            out.append("more pictures are rejected")
        if now["kl"] > self.kl_most:
            out.append(f"KL is above {self.kl_most:g}")
        return out


def broken_since(history: Sequence[Mapping[str, float]], rule: Rule, before: Mapping[str, float]) -> int | None:
    """The first step of the last measurements that broke the rule without a break, or None."""
    since = None
    for row in reversed(history):
        if not rule.broken(row, before):
            break
        since = int(row["step"])
    return since


class Guard:
    """Measures the averaged weights on held-out prompts; called by the trainer as its judge.

    of: a network in training -> the model with it, ready to sample.
    prompts, n, calls: what is drawn, n pictures a prompt with so many network calls.
    score, held_out: rewards of pictures; the second may be None.
    save: called as save(model, step) where a measurement is the best so far.
    """

    def __init__(
        self,
        of: Callable[[nn.Module], Model],
        reference: Model,
        prompts: list[str],
        score: rewards.Reward,
        held_out: rewards.Reward | None,
        rule: Rule,
        folder: Path,
        *,
        n: int = 8,
        calls: int = 4,
        save: Callable[[Model, int], None] | None = None,
    ) -> None:
        self.of, self.reference, self.prompts, self.rule = of, reference, prompts, rule
        self.score, self.held_out, self.folder, self.save = score, held_out, Path(folder), save
        self.n, self.calls, self.temperature = n, calls, math.inf
        rng = torch.Generator().manual_seed(1)
        self.noise = torch.randn(len(prompts), n, *reference.shape, generator=rng)
        self.levels = torch.randn(LEVELS, len(prompts) * n, *reference.shape, generator=rng)
        self.first: dict[str, Tensor] = {}  # scores of the reference
        self.before = self.measure(reference)
        self._history: list[dict[str, float]] | None = None

    @torch.no_grad()
    def measure(self, model: Model) -> dict[str, float]:
        """The figures of a model; of the reference also the spread of its held-out rewards. See the module."""
        cond = model.encode(self.prompts)
        x0 = start(model, self.noise.to(_place(cond)), cond).flatten(0, 1)
        x1 = _chunked(_sampler(model, self.calls), x0, _repeated(cond, self.n))
        prompts = [q for q in self.prompts for _ in range(self.n)]
        parts = slices(len(x1), PICTURES)
        pictures = [model.decode(x1[part]).float() for part in parts]
        scored = zip(pictures, parts, strict=True)
        self.rewards = torch.cat([self.score(im, prompts[part]).float() for im, part in scored]).view(-1, self.n)
        out = self._scored("reward", self.rewards, model)
        out["diversity"] = _mean(_diversity(pictures, self.n))
        if not bool(self.rewards.isfinite().all()):
            out["accepted"] = float(self.rewards.isfinite().double().mean())
        if self.held_out is not None:
            scored = zip(pictures, parts, strict=True)
            judged = torch.cat([self.held_out(im, prompts[part]).float() for im, part in scored]).view(-1, self.n)
            out |= self._scored("held_out", judged, model)
            if model is self.reference:
                out["held_out_std"] = spread(judged)
        if model is self.reference:
            return out | {"kl": 0.0, "ess": 1.0}
        if model.noise is not None:
            return out | {"kl": float((x0 - self.noise.to(x0).flatten(0, 1)).double().square().sum()) / (2 * len(x0))}
        return out | self._distance(model, x1, cond)

    def _scored(self, key: str, r: Tensor, model: Model) -> dict[str, float]:
        """Mean and standard error of scores [p n]; and the error of their gain, of pictures from the same noise."""
        out = {key: _mean(r), f"{key}_error": standard_error(r)}
        if model is self.reference:
            self.first[key] = r
            return out
        return out | {f"{key}_gain_error": standard_error(r - self.first[key])}

    def _distance(self, model: Model, x1: Tensor, cond: Cond) -> dict[str, float]:
        """KL and effective sizes, of samples x1 [b *d]."""
        path, ratio, kl = model.path, *(x1.new_zeros(len(x1), dtype=torch.double) for _ in range(2))
        step = math.log(LARGEST / SMALLEST) / LEVELS
        mine, theirs = _repeated(cond, self.n), _repeated(self.reference.encode(self.prompts), self.n)
        for k, noise in enumerate(self.levels.to(x1)):
            snr = SMALLEST * math.exp((k + 0.5) * step)
            t = path.when(math.sqrt(snr))
            x = interpolate(path, noise, x1, t)
            new = _chunked(_denoiser(model.flow, path, t), x, mine).double()
            old = _chunked(_denoiser(self.reference.flow, path, t), x, theirs).double()
            weight = snr * step / 2
            kl += weight * (new - old).square().flatten(1).sum(1)
            ratio += weight * ((old - x1).square() - (new - x1).square()).flatten(1).sum(1)
        ratio = ratio.view(-1, self.n)
        out = {"kl": float(kl.mean()), "ess": float((ess(-ratio) / self.n).mean())}
        if math.isfinite(self.temperature):
            target = self.rewards.double() / self.temperature - ratio
            out["ess_target"] = float((ess(target) / self.n).mean())
        return out

    def __call__(self, flow: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """The figures after a step, under their names in the log; keeps the best, and may set `verdict`."""
        history = self.history
        model = self.of(flow)
        now = {"step": float(step), **self.measure(model)}
        history[:] = [row for row in history if row["step"] < step] + [now]
        if self.best() == now and self.save is not None:
            self.save(model, step)
        return {f"guard/{key}": value for key, value in now.items() if key != "step"}

    @property
    def history(self) -> list[dict[str, float]]:
        """All measurements, also those before a run was taken up again."""
        if self._history is None:
            path, self._history = self.folder / "log.jsonl", []
            for line in path.read_text(encoding="utf8").splitlines() if path.exists() else []:
                try:
                    row: dict[str, Any] = json.loads(line)
                except (json.JSONDecodeError, RecursionError):  # the line that was being written
                    continue
                found = {key.removeprefix("guard/"): v for key, v in row.items() if key.startswith("guard/")}
                if found:
                    self._history.append({"step": float(row["step"]), **found})
        return self._history

    def best(self) -> dict[str, float] | None:
        """The measurement of highest reward among those that keep the rule, if it is above the reference's."""
        fine = [row for row in self.history if not self.rule.broken(row, self.before)]
        top = max(fine, key=lambda row: row["reward"], default=None)
        return top if top is not None and top["reward"] > self.before["reward"] else None

    @property
    def broken_since(self) -> int | None:
        """The first step of the last measurements that broke the rule without a break, or None."""
        return broken_since(self.history, self.rule, self.before)

    @property
    def verdict(self) -> str:
        """Why the run should end, or nothing."""
        last = self.history[-self.rule.patience :] if self.rule.patience else []
        if len(last) < max(1, self.rule.patience) or not all(self.rule.broken(row, self.before) for row in last):
            return ""
        return f"over-optimised since step {self.broken_since}"

    @staticmethod
    def line(figures: Mapping[str, float]) -> str:
        """A measurement, as the log has it, for who watches."""
        row = {key.removeprefix("guard/"): value for key, value in figures.items()}
        told = [f"{name} {row[key]:.4g} \u00b1 {row[f'{key}_error']:.2g}"
                for key, name in (("reward", "reward"), ("held_out", "held-out")) if key in row]  # fmt: skip
        told += [f"accepted {row['accepted']:.0%}"] if "accepted" in row else []
        return ", ".join([*told, f"diversity {row['diversity']:.3g}", f"KL {row['kl']:.3g} nats"])

    def words(self) -> str:
        """What happened, in one sentence."""
        if not self.history:
            return "nothing was measured"
        best, last = self.best(), self.history[-1]
        told = _told(last, self.before)
        if self.broken_since is not None:
            why = " and ".join(self.rule.broken(last, self.before))
            told += f": over-optimised since step {self.broken_since} ({why})"
        if best is None:
            return f"{told}; no measurement is above the reference within the rule, so the model is left as it was"
        kept = "" if best is last else f", with {_told(best, self.before)}"
        return f"{told}; kept step {best['step']:.0f}{kept}"


def _told(row: dict[str, float], before: dict[str, float]) -> str:
    parts = [f"reward {_gain('reward', row, before)}"]
    if "held_out" in row:
        parts.append(f"held-out reward {_gain('held_out', row, before)}")
    if before["diversity"] > 0:
        parts.append(f"diversity {100 * (row['diversity'] / before['diversity'] - 1):+.0f} %")
    return ", ".join([*parts, f"KL {row['kl']:.3g} nats"])


def _gain(key: str, row: Mapping[str, float], before: Mapping[str, float]) -> str:
    """What a mean gained, with its standard error where the log has that."""
    error = row.get(f"{key}_gain_error")
    told = "" if error is None else f" \u00b1 {error:.2g}"
    return f"{row[key] - before[key]:+.3g}{told} (from {before[key]:.3g})"


def _place(cond: Cond) -> torch.device:
    return next((c.device for c in (cond or {}).values()), torch.device("cpu"))


def _sampler(model: Model, calls: int) -> Callable[[Tensor, Cond], Tensor]:
    return lambda x, cond: jumps(lambda x, s, t, c=None: model.flow(x, s, t, cond), x, calls)


def _denoiser(flow: FlowMap, path: Interpolant, t: float) -> Callable[[Tensor, Cond], Tensor]:
    return lambda x, cond: denoise(flow, path, x, t, cond)


def _chunked(function: Callable[[Tensor, Cond], Tensor], x: Tensor, cond: Cond) -> Tensor:
    parts = slices(len(x), CHUNK)
    return torch.cat([function(x[p], None if cond is None else {k: c[p] for k, c in cond.items()}) for p in parts])


def _repeated(cond: Cond, n: int) -> Cond:
    return None if cond is None else {key: c.repeat_interleave(n, 0) for key, c in cond.items()}


def _diversity(pictures: list[Tensor], n: int) -> Tensor:
    """Mean cosine distance of two pictures of a prompt [p], by the features of emoji-clip."""
    clip: Any = rewards.get("clip")
    seen = torch.cat([clip.embed_images(im) for im in pictures]).unflatten(0, (-1, n))
    alike = (seen @ seen.mT).sum((1, 2)) - n
    return 1 - alike / (n * (n - 1)) if n > 1 else alike * 0


def spread(r: Tensor) -> float:
    """Mean over prompts of the standard deviation of rewards [p n], those of -inf left out."""
    each = [row[row.isfinite()] for row in r]
    return float(torch.stack([row.std() for row in each if len(row) > 1] or [r.new_zeros(())]).mean())


def standard_error(r: Tensor) -> float:
    """Of the mean of rewards [p n] on these very prompts: their spread within prompts over the root of their number."""
    return spread(r) / max(1, int(r.isfinite().sum())) ** 0.5


def _mean(r: Tensor) -> float:
    kept = r[r.isfinite()]
    return float(kept.double().mean()) if len(kept) else -math.inf

"""A reward on another machine, or in another process with packages of its own; `rewards.wire` is the protocol."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rewards import wire
from rewards.contract import check_images, check_scores
from rewards.web import JSON, Endpoint, NoAnswer, check_patience, check_url, retrying

HEADROOM = 1 << 16  # bytes of a body beside its pictures
SHORT = 10.0  # seconds within which a server must say that it is there


@dataclass(frozen=True)
class Remote:
    """The scores of the reward that `steer serve-reward` serves at `url`, and its gradient where it has one.

    Pictures are sent as they are (safetensors): on the same kind of machine the scores are those of the reward itself,
    bit for bit. For pictures that require a gradient, scores and d score / d picture come back together, so one request
    serves both; there is no second derivative. What `differentiable` and `cost` are, the server says.

    url: such as "http://127.0.0.1:8123".
    format: "safetensors"; or "json" for any server that takes {"images": [base64 of PNG], "prompts": [...]} and answers
        {"scores": [...]}: 8 bits a colour, no gradient.
    path: of the url, where scores are asked for; "" where the url is whole.
    chunk: pictures a request at most; fewer where the server takes only smaller bodies.
    timeout, retries, wait: seconds of a request; tries after the first, where no answer came or a status that may pass
        (408, 429, 5xx); the first and the longest seconds between them.
    token_env: the environment variable that holds the server's token, if it has one; the token is kept nowhere.

    Raises:
        ValueError: a setting that can be none; pictures that are not [b 3 h w] of floats; scores that are NaN.
        OSError: the server does not answer, or refuses; the message has its url and its words.
    """

    url: str = "http://127.0.0.1:8123"
    format: str = "safetensors"
    path: str = "/score"
    chunk: int = 64
    timeout: float = 300.0
    retries: int = 4
    wait: tuple[float, float] = (0.5, 30.0)
    token_env: str = "STEER_TOKEN"
    name: str = "remote"
    _said: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", check_url("url", self.url))
        object.__setattr__(self, "wait", tuple(self.wait))
        check_patience(self.timeout, self.retries, self.wait)
        if self.format not in ("safetensors", "json"):
            raise ValueError(f"format={self.format!r} is unknown; known: safetensors, json")
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk} must be at least 1 picture")

    @property
    def differentiable(self) -> bool | None:
        """What the server says; None as long as it does not answer."""
        if self.format == "json":
            return False
        return None if self.missing() else self._said["differentiable"]

    @property
    def cost(self) -> float:
        """What the server says; 0 as long as it does not answer."""
        return 0.0 if self.missing() else self._said.get("cost", 0.0)

    def missing(self) -> str | None:
        """What is lacking to run here, and the cure; None where the server answers, which is asked once."""
        if self._said:
            return None
        try:
            self._said.update(self._health())
        except NoAnswer as error:
            if error.status is not None:
                return str(error)
            start = "`steer serve-reward reward=NAME host=... port=...`"
            return f"no server answers at url={self.url!r}; start one there, such as {start}, or name another by url="
        return None

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        if lacking := self.missing():
            raise self._endpoint().error(lacking)
        rows = self._rows(images)
        starts = range(0, len(images), rows)
        parts = [self._chunk(images[i : i + rows], prompts[i : i + rows]) for i in starts]
        return torch.cat(parts) if parts else images.new_zeros(0)

    def _chunk(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores of one request, with the gradient that came with them where it is wanted."""
        if images.requires_grad and torch.is_grad_enabled() and self.differentiable:
            found = self._post("?gradient=1", wire.pack(images, prompts), wire.TENSORS, wire.tensors)
            if set(found) != {"scores", "gradient"} or found["gradient"].shape != images.shape:
                raise self._unreadable(f"the tensors {sorted(found)}, not scores and gradient")
            scores = check_scores(self, found["scores"], len(images), images)
            return _Known.apply(images, scores, found["gradient"].to(images))
        pack, kind = (wire.pack_json, JSON) if self.format == "json" else (wire.pack, wire.TENSORS)
        found = self._post("", pack(images, prompts), kind, lambda body: wire.unpack_scores(body, len(images)))
        return check_scores(self, torch.tensor(found, dtype=torch.float64), len(images), images)

    def _post(self, query: str, body: bytes, kind: str, read: Any) -> Any:  # noqa: ANN401 (a function, what it returns)
        endpoint = self._endpoint()
        answer = retrying(lambda: endpoint.ask(self.path + query, body, kind), self.retries, self.wait)
        try:
            return read(answer)
        except ValueError as error:
            raise self._unreadable(str(error)) from None

    def _unreadable(self, what: str) -> NoAnswer:
        return self._endpoint().error(f"{self.url}{self.path} answers {what}", 200)

    def _health(self) -> Mapping[str, Any]:
        """What the server says of itself; of a stranger's only that it is there, whatever it says."""
        endpoint = Endpoint(self.url, self.token_env, min(self.timeout, SHORT))
        if self.format == "json":
            try:
                endpoint.ask(self.path)
            except NoAnswer as error:
                if error.status is None:
                    raise
            return {"name": self.url}
        try:
            said = wire.load_json(endpoint.ask("/health"))
        except ValueError:
            said = None
        kinds = {"differentiable": bool, "cost": float | int, "most_bytes": int}
        if not isinstance(said, dict) or not all(isinstance(said.get(key), kind) for key, kind in kinds.items()):
            raise endpoint.error(f"{self.url}/health is not that of a server of rewards; check the url", 200)
        if said.get("version") != wire.VERSION:
            ours = f"version {said.get('version')} of the protocol, this client {wire.VERSION}"
            raise endpoint.error(f"{self.url} speaks {ours}; install the same version of steer on both sides", 200)
        return said

    def _rows(self, images: Tensor) -> int:
        """Pictures a request, as many as the server's longest body holds."""
        one = math.prod(images.shape[1:]) * images.element_size()
        fit = (self._said.get("most_bytes", math.inf) - HEADROOM) / one
        if fit < 1:
            most = self._said["most_bytes"]
            raise ValueError(f"a picture of {one} bytes is more than {self.url} takes ({most}); raise its most_bytes")
        return int(min(self.chunk, fit))

    def _endpoint(self) -> Endpoint:
        return Endpoint(self.url, self.token_env, self.timeout)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles ask the server anew."""
        return {**self.__dict__, "_said": {}}


class _Known(torch.autograd.Function):
    """Scores [b] whose gradient to their pictures [b 3 h w] is known already."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, scores: Tensor, gradient: Tensor) -> Tensor:  # noqa: ANN401
        """The scores."""
        ctx.save_for_backward(gradient)
        return scores.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        """Each picture's gradient, times what comes from its score."""
        (gradient,), (outer,) = ctx.saved_tensors, grad_outputs
        return outer.view(-1, 1, 1, 1) * gradient, None, None

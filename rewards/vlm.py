"""A vision-language model behind an OpenAI-compatible server as a judge of pictures."""

import hashlib
import io
import json
import math
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rewards.asking import GRADED, LOGPROBS, Unreadable, grade, request, tokens_of, yes_share
from rewards.cache import Cache, key_of
from rewards.contract import check_images
from rewards.function import to_pil
from rewards.purse import Purse, Spent
from rewards.web import Endpoint, NoAnswer, check_patience, check_url, retrying

HOPELESS = (401, 402, 403, 404, 405)  # what one picture is refused for, all are
SHORT = 10.0  # seconds within which a server must say that it is there


@dataclass(frozen=True)
class Job:
    """One picture with its question; two are equal where these are."""

    question: tuple[str, str]  # for yes or no, for a grade
    digest: str
    picture: Any = field(repr=False, compare=False)


@dataclass(eq=False)
class _State:
    """What an instance learns. Copies and pickles start anew."""

    purse: Purse
    how: str | None = None
    seen: bool = False
    failures: list[str] = field(default_factory=list)
    turn: threading.Lock = field(default_factory=threading.Lock)

    def __reduce__(self) -> tuple[type["_State"], tuple[Purse]]:
        return _State, (self.purse,)


@dataclass(frozen=True)
class VlmJudge:
    """How well a picture fits its prompt, by a vision-language model that is asked over HTTP; a score in [0, 1].

    Each picture is one request, POST {base_url}/chat/completions; `concurrency` of them are under way at once, in
    threads of their own, so that it works inside a running event loop too. Equal pictures with equal prompts are asked
    once. A failure of the kind that passes (408, 429, 5xx, no connection, a time-out) is tried again.

    base_url, model: any OpenAI-compatible server, such as vLLM, SGLang, llama.cpp, or a provider.
    ask: "logprobs": the share of yes against no in the probabilities of the answer's first token (VQAScore); "graded":
        a number is asked for, and scaled; "auto": the first where the server gives probabilities, or else the second,
        with a warning. The two are different scales.
    question, grading: what is asked in each of the two; {prompt} stands for the prompt.
    grades: the lowest and the highest grade. max_tokens: length of the reply that holds it.
    extra: more keys of the request's body; None takes a key away, as in {"max_tokens": None,
        "max_completion_tokens": 500}.
    timeout, retries, wait: seconds of a request; tries after the first; the first and the longest seconds between
        them, which double, with jitter, and are longer where the server says Retry-After.
    on_failure: of a picture for which all tries failed, or whose reply holds no score: "raise", or "reject", the score
        -inf with a warning. A key that is refused, an unknown model and a spent limit always raise.
    cache: a folder of answers, shared by all processes; None keeps none. Failures are not kept.
    max_requests, max_spend: limits for this instance; retries count. max_spend (dollars) needs `price`, dollars for a
        million tokens (read, written). They stop before they are passed; what is answered is in the cache by then.
    input_tokens: what a request is taken to read, for max_spend, until the first reply tells.
    api_key_env: the environment variable that holds the key, if the server needs one; the key itself is kept nowhere.

    Ref: Evaluating Text-to-Visual Generation with Image-to-Text Generation (VQAScore, arXiv:2404.01291).

    Raises:
        ValueError: a setting that can be none, or pictures that are not [b 3 h w] of floats.
        OSError: the server does not answer, refuses, or replies with no score.
        Spent: the next request could pass a limit.
    """

    base_url: str = "http://127.0.0.1:8000/v1"
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    ask: str = "auto"
    question: str = 'Does this picture show "{prompt}"? Answer with yes or no.'
    grading: str = (
        'How well does this picture show "{prompt}"? Grade it from 1 (not at all) to 10 (in every detail). '
        "Answer with the number alone."
    )
    grades: tuple[float, float] = (1, 10)
    max_tokens: int = 16
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    concurrency: int = 32
    timeout: float = 60.0
    retries: int = 4
    wait: tuple[float, float] = (0.5, 30.0)
    on_failure: str = "raise"
    cache: str | None = "~/.cache/steer/vlm"
    max_requests: int | None = None
    max_spend: float | None = None
    price: tuple[float, float] | None = None
    input_tokens: int = 2000
    api_key_env: str = "OPENAI_API_KEY"
    name: str = "vlm"
    differentiable: bool = False
    cost: float = 10.0
    _state: _State = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_patience(self.timeout, self.retries, self.wait)
        _check(self)
        plain = {key: tuple(getattr(self, key)) for key in ("grades", "wait", "price") if getattr(self, key)}
        plain |= {"base_url": check_url("base_url", self.base_url), "extra": dict(self.extra)}
        for key, value in plain.items():
            object.__setattr__(self, key, value)
        guess = (self.input_tokens, self.max_tokens)
        purse = Purse(self.max_requests, self.max_spend, self.price or (0.0, 0.0), guess)
        object.__setattr__(self, "_state", _State(purse))

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        jobs = [self._job(picture, prompt) for picture, prompt in zip(to_pil(images), prompts, strict=True)]
        scores = {job: kept for job in dict.fromkeys(jobs) if (kept := self._kept(job)) is not None}
        left = [job for job in dict.fromkeys(jobs) if job not in scores]
        if left:
            self._prepare()
            alone = 1 if self._how() is None or self._state.purse.unknown else 0  # it finds out what the others need
            for group in (left[:alone], left[alone:]):
                scores.update(zip(group, self._all(group), strict=True))
            self._warn_of_failures(len(left))
        return images.new_tensor([scores[job] for job in jobs])

    def missing(self) -> str | None:
        """What is lacking to run here, and the cure; None where a server answers."""
        try:
            Endpoint(self.base_url, self.api_key_env, min(self.timeout, SHORT)).ask("/models")
        except NoAnswer as error:
            if error.status in (401, 403):
                return str(error)
            if error.status is None:
                return (
                    f"no server answers at base_url={self.base_url!r}; start one, such as `vllm serve {self.model}`, "
                    f"or name another by base_url= and model=, and put its key into the environment variable "
                    f"{self.api_key_env}"
                )
        return None

    def spent(self) -> str:
        """Requests, tokens and dollars of this instance, in words."""
        return self._state.purse.report()

    def _all(self, jobs: list[Job]) -> list[float]:
        """Scores in the order of the jobs. The first failure is raised; after it nothing more is asked."""
        stop, faults = threading.Event(), []

        def work(job: Job) -> float:
            if stop.is_set():
                return math.nan
            try:
                return self._judge(job, stop)
            except Exception as error:
                faults.append(error)
                stop.set()
                return math.nan

        with ThreadPoolExecutor(min(self.concurrency, max(len(jobs), 1))) as pool:
            try:
                scores = list(pool.map(work, jobs))
            finally:
                stop.set()
        if faults and isinstance(faults[0], Spent):
            kept = f"kept in cache={self.cache!r}" if self.cache else "lost, for cache=None"
            raise Spent(f"{faults[0]}: {self.spent()}; what was answered is {kept}; raise the limit and call again")
        if faults:
            raise faults[0]
        return scores

    def _judge(self, job: Job, stop: threading.Event) -> float:
        """One picture's score, kept; -inf where it has none and may be rejected."""
        try:
            score = self._score(job, stop)
        except NoAnswer as error:
            if self.on_failure == "raise" or error.status in HOPELESS:
                raise
            self._state.failures.append(str(error))
            return -math.inf
        if self.cache is not None:
            self._cache().write(self._key(job), {"score": score, "model": self.model, "ask": self._how()})
        return score

    def _score(self, job: Job, stop: threading.Event) -> float:
        """One picture's score; where `ask` is "auto", the first one settles how all are asked."""
        how = self._how()
        try:
            reply = retrying(lambda: self._post(job, how or LOGPROBS), self.retries, self.wait, stop)
            if how == GRADED:
                return grade(reply, self.grades)
            share = yes_share(reply)
        except Unreadable as error:
            raise self._endpoint().error(f"{self.base_url} answers {error}", 200) from None
        except NoAnswer as error:
            if how or error.status not in (400, 422) or "logprob" not in error.text:
                raise
            share = None
        if share is None and how == LOGPROBS:
            cure = 'take ask="graded"'
            raise self._endpoint().error(f"{self.base_url} gives no logprobs for model={self.model!r}; {cure}", 200)
        if not how:
            self._settle(GRADED if share is None else LOGPROBS)
        return self._score(job, stop) if share is None or self._how() == GRADED else share

    def _post(self, job: Job, how: str) -> Any:  # noqa: ANN401 (decoded JSON)
        """One request, and what it cost."""
        buffer = io.BytesIO()
        job.picture.save(buffer, format="PNG", compress_level=1)
        body = request(self.model, how, job.question[how == GRADED], buffer.getvalue(), self.max_tokens)
        body = {key: value for key, value in (body | dict(self.extra)).items() if value is not None}
        purse, tokens = self._state.purse, None
        purse.reserve()
        try:
            reply = self._decoded(self._endpoint().ask("/chat/completions", json.dumps(body).encode()))
            tokens = tokens_of(reply)
            return reply
        except NoAnswer as error:
            tokens = None if error.status in (None, 200) else (0, 0)  # one that was cut off may have been charged
            raise
        finally:
            purse.settle(tokens)

    def _decoded(self, raw: bytes) -> Any:  # noqa: ANN401
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            cure = "is it an OpenAI-compatible server?"
            raise self._endpoint().error(f"{self.base_url} answers no JSON; {cure}", 200) from None

    def _how(self) -> str | None:
        """The way of asking; None where it is still to be found out."""
        if self.ask != "auto":
            return self.ask
        if self._state.how is None and self.cache is not None:
            found = self._cache().read(self._key(None)) or {}
            if found.get("how") in (LOGPROBS, GRADED):
                self._settle(found["how"])
        return self._state.how

    def _settle(self, how: str) -> None:
        with self._state.turn:
            known, self._state.how = self._state.how, self._state.how or how
        if not known and how == GRADED:
            warnings.warn(
                f"{self.base_url} gives no logprobs for model={self.model!r}; its grades are taken instead, which are "
                'coarser (ask="graded" says so without this warning)',
                stacklevel=2,
            )
        if not known and self.cache is not None:
            self._cache().write(self._key(None), {"how": how, "model": self.model})

    def _prepare(self) -> None:
        """Before the first request: is there a server, and a place for its answers?"""
        if self.cache is not None:
            self._cache().check()
        if not self._state.seen and (lacking := self.missing()):
            raise self._endpoint().error(lacking)
        self._state.seen = True

    def _warn_of_failures(self, asked: int) -> None:
        with self._state.turn:
            failures, self._state.failures = self._state.failures, []
        if failures:
            rejected = f"{len(failures)} of {asked} pictures have no score and are rejected"
            warnings.warn(f"{rejected}: {failures[0]}", stacklevel=3)

    def _job(self, picture: Any, prompt: str) -> Job:  # noqa: ANN401 (a PIL picture)
        digest = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
        return Job(
            (self.question.replace("{prompt}", prompt), self.grading.replace("{prompt}", prompt)), digest, picture
        )

    def _kept(self, job: Job) -> float | None:
        if self.cache is None or not self._how():
            return None
        score = (self._cache().read(self._key(job)) or {}).get("score")
        return score if isinstance(score, float) and 0 <= score <= 1 else None

    def _key(self, job: Job | None) -> str:
        """Of an answer in the cache; without a picture, of the way in which this server is asked."""
        server = (self.base_url, self.model, self.extra)
        if job is None:
            return key_of(*server)
        how = self._how()
        settings = (self.grades, self.max_tokens) if how == GRADED else ()
        return key_of(*server, how, settings, job.question[how == GRADED], job.digest)

    def _cache(self) -> Cache:
        return Cache(Path(str(self.cache)).expanduser())

    def _endpoint(self) -> Endpoint:
        return Endpoint(self.base_url, self.api_key_env, self.timeout)


def _check(judge: VlmJudge) -> None:
    """The settings that only a judge has."""
    choices = {"ask": ("auto", LOGPROBS, GRADED), "on_failure": ("raise", "reject")}
    for key, known in choices.items():
        if getattr(judge, key) not in known:
            raise ValueError(f"{key}={getattr(judge, key)!r} is unknown; known: {', '.join(known)}")
    for key in ("concurrency", "max_tokens", "input_tokens"):
        if getattr(judge, key) < 1:
            raise ValueError(f"{key}={getattr(judge, key)} must be at least 1")
    for key in ("max_requests", "max_spend"):
        if getattr(judge, key) is not None and getattr(judge, key) < 0:
            raise ValueError(f"{key}={getattr(judge, key)} must be at least 0, or None for no limit")
    if judge.max_spend is not None and not judge.price:
        raise ValueError(f"max_spend={judge.max_spend} needs price=(dollars per million tokens read, written)")
    if len(judge.grades) != 2 or not 0 <= judge.grades[0] < judge.grades[1]:
        raise ValueError(f"grades={judge.grades} must be the lowest and the highest grade, such as (1, 10)")

"""What requests to a paid server cost, and a limit that they do not pass."""

import threading


class Spent(RuntimeError):
    """The limit is reached: the next request could pass it, so it was not sent."""


class Purse:
    """Counts requests, tokens and dollars; `reserve` before a request, `settle` after it, from any thread.

    A request's price is known only from its reply. Until then it counts as the dearest so far, and the first as
    `guess`; it goes only if what is spent and all that is under way would stay within max_spend. So the limit is passed
    at most by what requests under way cost more than the dearest before them.

    max_requests, max_spend: None is no limit. price: dollars per million tokens, (in, out).
    guess: tokens of a request, (in, out), before anything is known.
    """

    def __init__(
        self, max_requests: int | None, max_spend: float | None, price: tuple[float, float], guess: tuple[int, int]
    ) -> None:
        self.max_requests, self.max_spend, self.price, self.guess = max_requests, max_spend, price, guess
        self.requests, self.tokens, self.spent = 0, (0, 0), 0.0
        self._dearest: float | None = None
        self._open = 0
        self._turn = threading.Condition()

    @property
    def unknown(self) -> bool:
        """Whether there is a limit in dollars and no price of a request yet: the first one should go alone."""
        return self.max_spend is not None and self._dearest is None

    def reserve(self) -> None:
        """Before a request: waits for those under way where they may turn out cheaper.

        Raises:
            Spent: it could pass a limit.
        """
        with self._turn:
            while self.max_spend is not None and self.spent + (self._open + 1) * self._bound() > self.max_spend:
                if not self._open:
                    raise Spent(f"max_spend={self.max_spend:g} would be passed")
                self._turn.wait()
            if self.max_requests is not None and self.requests >= self.max_requests:
                raise Spent(f"max_requests={self.max_requests} is reached")
            self.requests += 1
            self._open += 1

    def settle(self, tokens: tuple[int, int] | None) -> None:
        """After a request: its tokens; None where they are not told, which counts as the dearest so far."""
        with self._turn:
            self._open -= 1
            cost = self._bound() if tokens is None else self._cost(tokens)
            if tokens is not None:
                self.tokens = (self.tokens[0] + tokens[0], self.tokens[1] + tokens[1])
            self.spent += cost
            if cost > 0:
                self._dearest = max(cost, self._dearest or 0.0)
            self._turn.notify_all()

    def report(self) -> str:
        """What was spent, in words."""
        return f"{self.requests} requests, {self.tokens[0]} + {self.tokens[1]} tokens, {self.spent:.6g} dollars so far"

    def _bound(self) -> float:
        return self._cost(self.guess) if self._dearest is None else self._dearest

    def _cost(self, tokens: tuple[int, int]) -> float:
        return (tokens[0] * self.price[0] + tokens[1] * self.price[1]) / 1e6

    def __reduce__(self) -> tuple[type["Purse"], tuple[object, ...]]:
        """A copy has the limits, and has spent nothing."""
        return Purse, (self.max_requests, self.max_spend, self.price, self.guess)

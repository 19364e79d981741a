"""Open a page in the browser, for this machine alone, that shows a run from the inside while it goes on.

    steer studio                                             prints its address; SIGINT ends it
    steer studio reward=my_file.py:score model=runs/mine     with a reward and a model of your own on offer
    steer studio reward=remote reward.url=http://HOST:PORT   with a reward on another machine
    steer studio port=0 limits.n=128                         on any free port, with more particles

Nothing leaves the machine, and no code can be typed into the page. It needs `pip install 'steer[studio]'`.
"""

from typing import TYPE_CHECKING, Any

from steer.composing import compose, take_free, to_plain
from steer.settings import free_reward, read

if TYPE_CHECKING:
    from steer.studio import Offer

CONFIG = "studio"


def run(overrides: list[str]) -> None:
    """Until a signal ends it."""
    left, free = take_free(overrides)
    config = compose(CONFIG, left)

    from steer.studio import Limits, serve, shelf

    reward = _offered(config, left, free)
    model = free.get("model", str(config.model.name))
    serve(shelf(model, reward, config.device, Limits(**config.limits)), config.port)


def _offered(config: Any, left: list[str], free: dict[str, str]) -> "tuple[str, Offer]":  # noqa: ANN401 (a DictConfig)
    """The name of the reward that was given, and what it is."""
    from hydra.utils import instantiate

    from steer.studio import Offer

    if text := free.get("reward"):
        given = free_reward(text)
        python = repr(given if isinstance(given, dict | list) else text)
        return text, Offer(given, (f"reward={text}",), python)
    defaults = {key: name for entry in read(CONFIG)["defaults"] if entry != "_self_" for key, name in entry.items()}
    name = next((o.removeprefix("reward=") for o in left if o.startswith("reward=")), defaults["reward"])
    settings = [o for o in left if o.lstrip("+~").startswith("reward.")]
    if not settings:
        return name, Offer(instantiate(config.reward), (f"reward={name}",), repr(name))
    python = f"instantiate({to_plain(config.reward)!r})"
    needs = ("from hydra.utils import instantiate",)
    return name, Offer(instantiate(config.reward), (f"reward={name}", *settings), python, needs)

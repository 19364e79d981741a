"""Serve a reward over HTTP, for other machines.

    steer serve-reward reward=clip port=8123                 until SIGINT ends it
    steer serve-reward reward=my_file.py:score host=0.0.0.0  for other machines too
    STEER_TOKEN=secret steer serve-reward                    for those who have the same token
    steer sample reward=remote reward.url=http://HOST:PORT   on the other machine

Scores have a gradient there where they have one here.
"""

from steer.composing import compose, reward_of, take_free

CONFIG = "serve"


def run(overrides: list[str]) -> None:
    """Until a signal ends it."""
    from rewards import serve

    left, free = take_free(overrides)
    config = compose(CONFIG, left)
    reward = reward_of(config, free)
    serve(reward, config.host, config.port, device=config.device, most_bytes=config.most_bytes)

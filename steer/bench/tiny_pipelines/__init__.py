"""Pipelines of every family that is known, tiny, of random weights: nothing is downloaded.

They are what adapters are proved on, by the tests and by `steer bench models`. Imports diffusers: nothing else of
`steer.bench` imports this package but `steer.bench.models` and its parts.
"""

from steer.bench.tiny_pipelines.cases import CASES, CHOICES, PROMPTS, build, build_model, draw_noise, draw_own

__all__ = ["CASES", "CHOICES", "PROMPTS", "build", "build_model", "draw_noise", "draw_own"]

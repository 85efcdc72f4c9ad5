"""Returns that are known of a world by theory, and the regret of those earned."""

from __future__ import annotations

from collections.abc import Mapping

from envs.core import VectorEnv
from envs.world import TensorEnv
from marl.output.report import Metric


def known_metrics(env: VectorEnv, returns: Mapping[str, Metric]) -> dict[str, Metric]:
    """The returns that are known of a world, `known/…`, and what was earned below them, relative, `regret/…`.

    returns: what was earned, `return_per_agent` and, by channel, `return_per_agent/CHANNEL`. What is known of one
    channel is called CHANNEL/NAME; instead of a regret there is the share of it that was earned, `share/CHANNEL/NAME`,
    above 1 where a team may do what the play that is known may not.
    """
    if not (isinstance(env, TensorEnv) and whole_episodes(env)):
        return {}
    found = {}
    for name, value in env.world.known().items():
        found[f"known/{name}"] = Metric.exact(value)
        channel, _, of_channel = name.partition("/")
        if of_channel and channel in env.spec.channels:
            earned = returns.get(f"return_per_agent/{channel}", returns["return_per_agent"])
            found[f"share/{name}"] = Metric(earned.value / value, earned.low / value, earned.high / value, earned.n)
            continue
        # The more is earned, the less is regretted.
        earned = returns["return_per_agent"]
        middle, low, high = (regret(number, value) for number in (earned.value, earned.high, earned.low))
        found[f"regret/{name}"] = Metric(middle, low, high, earned.n)
    return found


def regret(value: float, best: float) -> float:
    """(best - value) / |best|; where the best is 0, the difference itself."""
    return (best - value) / (abs(best) or 1.0)


def whole_episodes(env: TensorEnv) -> bool:
    """True where no time limit ends episodes before the horizon; exact returns are about whole episodes."""
    horizon = env.spec.horizon
    return horizon is None or env.time_limit is None or env.time_limit >= horizon

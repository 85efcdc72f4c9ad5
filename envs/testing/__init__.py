"""The contract of `VectorEnv`, checked on any environment by playing it at random."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from pathlib import Path

from envs.core import InputError, VectorEnv
from envs.testing.play import Problem, Problems, of_play, of_reset
from envs.testing.repeat import Maker, of_blocks, of_closing, of_saved_state, of_seeds

__all__ = ["check_env"]


def check_env(make_env: VectorEnv | Callable[..., VectorEnv], steps: int = 200, seed: int = 0) -> None:
    """Play `steps` random steps several times over; raise one InputError that lists everything that is wrong.

    make_env: an environment, a function that makes one, or (which checks most) a function of the number of rows. A
    function also lets the check load a saved state into a fresh environment, compare two seeds' rows with an
    environment each, and close what it made. Choose `steps` above the length of a few episodes: only what happens can
    be checked.

    Checked: shapes, types (reals are float32) and devices against `spec`; nothing is raised; finite numbers; zeros in
    the padding; a legal choice for whoever is alive; agents leave flagged as either terminated or truncated, and earn
    nothing until they come back, if they do; rows end where and only where nobody is left, at the horizon at the
    latest, which terminates; `final_obs` is the true successor; tensors that were handed out are never overwritten; a
    seed fixes whole episodes; other seeds and other rows differ where the world is random; a saved state continues
    identically; each of P seeds rules its own rows as if alone.
    """
    problems: dict[str, str] = {}
    for what, problem in _violations(_maker(make_env), steps, seed):
        problems.setdefault(what, problem)
    if problems:
        ways = "1 way" if len(problems) == 1 else f"{len(problems)} ways"
        listed = "\n".join(f"- {problem}" for problem in problems.values())
        raise InputError(f"The environment breaks the contract of VectorEnv in {ways}:\n{listed}")


def _maker(make_env: VectorEnv | Callable[..., VectorEnv]) -> Maker:
    if not callable(make_env):
        instance = make_env
        return Maker(lambda rows: instance, fresh=False, sized=False)
    make, parameters = make_env, inspect.signature(make_env).parameters.values()
    if any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters):
        return Maker(make, fresh=True, sized=True)
    return Maker(lambda rows: make(), fresh=True, sized=False)


def _violations(maker: Maker, steps: int, seed: int) -> Problems:
    with maker.env() as env:
        for check in (of_reset, of_play):
            problems = list(_told(check(env, steps, seed)))
            yield from problems
            if any(problem.what.startswith("form") for problem in problems):
                return  # nothing further can be judged
        for repeated in (of_seeds, of_saved_state, of_blocks):
            yield from _told(repeated(maker, env, steps, seed))
    if maker.fresh:
        yield from of_closing(maker)


def _told(problems: Problems) -> Problems:
    """The same, and whatever is raised in between as one more problem."""
    try:
        yield from problems
    except InputError as error:
        yield Problem("form refused", str(error))
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.name} ({Path(frame.filename).name}, line {frame.lineno})"
        yield Problem("form raised", f"{type(error).__name__} in {place}: {error}")

"""Compiling the pure functions of a run, for as long as it trains."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import torch

from envs.world import TensorEnv
from marl.learning.actor_critic import ActorCritic
from marl.learning.learner import Chain, Learner
from marl.learning.rollout import OnPolicy
from marl.output.console import console

WHAT = {
    "descent": "gradient steps",
    "steps": "steps of policy and world",
    "advance": "steps of the world",
    "loss": "the loss",
}
CACHE = "TORCHINDUCTOR_CACHE_DIR"  # where torch looks for what was compiled before


@contextmanager
def compiled(*methods: tuple[Any, str]) -> Iterator[None]:
    """Within, pure methods (owner, name) are replaced by compiled ones.

    A method that cannot be compiled as a whole says so once, and runs as it is. What was compiled is kept in
    `cache_folder` for other processes.
    """
    os.environ.setdefault(CACHE, str(cache_folder()))
    for owner, name in methods:
        setattr(owner, name, Compiled(getattr(owner, name)))
    try:
        # A minibatch's gradient is taken within what is compiled.
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            yield
    finally:
        for owner, name in methods:
            delattr(owner, name)


class Compiled:
    """A method that is compiled when it is first called, or runs as it is where that fails."""

    def __init__(self, method: MethodType):
        self.plain, self.name = method, method.__name__
        # What an owner reads besides tensors never changes while its methods are compiled, so it need not be checked.
        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.keep_tensor_guards_unsafe}
        # A part that is compiled by itself would be shared with other owners, unchecked.
        self._fast: Any = torch.compile(_with_code_of_its_own(method), fullgraph=True, options=options)

    def __call__(self, *arguments: Any) -> Any:
        """What the method gives."""
        if self._fast is None:
            return self.plain(*arguments)
        try:
            return self._fast(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            console.print(f"not compiled: {WHAT.get(self.name, self.name)}, which run as they are ({reason})")
            self._fast = None
        return self.plain(*arguments)


def cache_folder() -> Path:
    """The user's folder for what was compiled by these versions of torch and Python."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "concord" / "compiled" / f"torch-{torch.__version__}-python-{platform.python_version()}"


def pure_methods(source: OnPolicy, learner: Learner) -> list[tuple[Any, str]]:
    """The pure methods of a run's parts, which can be compiled: owners and names."""
    parts = learner.learners.values() if isinstance(learner, Chain) else [learner]
    found: list[tuple[Any, str]] = [(part, "descent") for part in parts if isinstance(part, ActorCritic)]
    if source.unroll is not None:
        return [*found, (source.unroll, "steps")]
    return found + ([(source.env, "advance")] if isinstance(source.env, TensorEnv) else [])


def _with_code_of_its_own(method: MethodType) -> MethodType:
    """The same method as a copy. The compiler keeps results by code, and another owner's constants may be others."""
    of: Any = method.__func__
    copy = FunctionType(of.__code__.replace(), of.__globals__, of.__name__, of.__defaults__, of.__closure__)
    copy.__kwdefaults__ = of.__kwdefaults__
    return MethodType(copy, method.__self__)

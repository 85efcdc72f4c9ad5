"""Compiling the pure functions of a run, for as long as it trains."""

from __future__ import annotations

import contextlib
import os
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import torch
import torch._functorch.config
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from envs.core import tree_map
from envs.world import TensorEnv
from marl.learning.actor_critic import ActorCritic
from marl.learning.learner import Chain, Learner
from marl.learning.rollout import OnPolicy
from marl.output.console import console

WHAT = {
    "descent": "gradient steps",
    "steps": "steps of policy and world",
    "advance": "steps of the world",
    "loss": "losses",
}
TRACES_GRADIENTS = "trace_autograd_ops"  # an option of the compiler
KEEPS_GRADIENTS = "autograd_cache_allow_custom_autograd_functions"
CACHE = "TORCHINDUCTOR_CACHE_DIR"  # where torch looks for what was compiled before


@contextmanager
def compiled(*methods: tuple[Any, str], cuda_graphs: bool = False) -> Iterator[None]:
    """Within, pure methods (owner, name) are replaced by compiled ones, with cuda_graphs recorded and replayed.

    A method that cannot be compiled as a whole says so once, and runs as it is. What was compiled is kept in
    `cache_folder` for other processes.
    """
    if not hasattr(torch._dynamo.config, TRACES_GRADIENTS):
        console.print(f"not compiled: torch {torch.__version__} compiles no gradient within a function; 2.13 does")
        yield
        return
    _keep_in_cache()
    kept = f"what is compiled is kept in {os.environ[CACHE]}"
    console.print(f"compile: true pays from some million steps on; {kept}", markup=False)
    for owner, name in methods:
        if cuda_graphs and isinstance(owner, ActorCritic):
            for tensor in owner.optimizer.standing():
                torch._dynamo.mark_static_address(tensor)
        setattr(owner, name, Compiled(getattr(owner, name), cuda_graphs))
    try:
        # A minibatch's gradient is taken within what is compiled. That of a function with a gradient of its own can be
        # kept too: both ways are part of what the cache goes by.
        patched = torch._functorch.config.patch({KEEPS_GRADIENTS: True})
        with torch._dynamo.config.patch({TRACES_GRADIENTS: True}), patched:
            yield
    finally:
        for owner, name in methods:
            delattr(owner, name)


class Compiled:
    """A method that is compiled when it is first called, or runs as it is where that fails.

    cuda_graphs: its kernels are recorded at the second call and replayed at all later ones, in place of a launch for
    each. Arguments are then copied to where the recording reads, and results to where the next replay does not write.
    """

    def __init__(self, method: MethodType, cuda_graphs: bool = False):
        self.plain, self.what = method, WHAT.get(method.__name__, method.__name__)
        self.cuda_graphs, self._called = cuda_graphs, False
        options: dict[str, Any] = {"guard_filter_fn": _of_tensors_and_numbers, "triton.cudagraphs": cuda_graphs}
        # A part that is compiled by itself would be shared with other owners, unchecked.
        self._fast: Any = torch.compile(_with_code_of_its_own(method), fullgraph=True, options=options)

    def __call__(self, *arguments: Any) -> Any:
        """What the method gives."""
        if self._fast is None:
            return self.plain(*arguments)
        if not self._called:
            self._called = True
            console.print(f"compiling {self.what}: seconds where it was done before, else up to a minute or two")
        try:
            return self._replayed(*arguments) if self.cuda_graphs else self._fast(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            told = f"not compiled: {self.what}, which run as they are ({_reason(error)})"
            console.print(told, markup=False)
            if console.quiet:
                warnings.warn(told, stacklevel=2)
            self._fast = None
        return self.plain(*arguments)

    def _replayed(self, *arguments: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # what earlier calls gave is no longer read
        return tree_map(torch.clone, self._fast(*arguments))


def _of_tensors_and_numbers(guards: Sequence[Any]) -> list[bool]:
    """Which of the compiler's checks are made at each call: of what may change, not of objects and functions."""
    return [
        of_tensor or (guard.has_value and not guard.is_global and type(guard.value) in (bool, int, float))
        for guard, of_tensor in zip(guards, torch.compiler.keep_tensor_guards_unsafe(guards), strict=True)
    ]


def _reason(error: Exception) -> str:
    """The first line of the compiler's, and the last line of the code that it was reading."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    places = [line for line in lines if line.startswith("File ")]
    return ", ".join([*lines[:1], *places[-1:]])


def cache_folder() -> Path:
    """The user's folder for what was compiled by these versions of torch and Python."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "concord" / "compiled" / f"torch-{torch.__version__}-python-{platform.python_version()}"


def _keep_in_cache() -> None:
    """Have torch keep what is compiled in `cache_folder`, unless the user names another, or it cannot be written."""
    if os.environ.get(CACHE, default_cache_dir()) != default_cache_dir():
        return
    os.environ[CACHE] = default_cache_dir()
    with contextlib.suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        if os.access(cache_folder(), os.W_OK):
            os.environ[CACHE] = str(cache_folder())


def compilable_methods(source: OnPolicy, learner: Learner) -> list[tuple[Any, str]]:
    """The methods of a run's parts that are compiled: owners and names."""
    parts = learner.learners.values() if isinstance(learner, Chain) else [learner]
    found: list[tuple[Any, str]] = [(part, "descent") for part in parts if isinstance(part, ActorCritic)]
    if source.draws_ahead:
        return [*found, (source.unroll, "steps")]
    return found + ([(source.env, "advance")] if isinstance(source.env, TensorEnv) else [])


def _with_code_of_its_own(method: MethodType) -> MethodType:
    """The same method as a copy. The compiler keeps results by code, and another owner's constants may be others."""
    of: Any = method.__func__
    copy = FunctionType(of.__code__.replace(), of.__globals__, of.__name__, of.__defaults__, of.__closure__)
    copy.__kwdefaults__ = of.__kwdefaults__
    return MethodType(copy, method.__self__)

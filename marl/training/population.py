"""The policies that a stage trains at once: so many members of each seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from envs.core import InputError


@dataclass(frozen=True)
class Population:
    """P = seeds x members policies, seed-major: all members of the first seed, then all of the second, and so on."""

    seeds: tuple[int, ...]
    members: int = 1

    def __post_init__(self) -> None:
        if self.members < 1:
            raise InputError(f"A seed has at least one member; got members={self.members}.")

    def __len__(self) -> int:
        return len(self.seeds) * self.members

    @property
    def labels(self) -> list[tuple[int, int]]:
        """Each policy's seed, and its number within the seed."""
        return [(seed, member) for seed in self.seeds for member in range(self.members)]

    def require(self, policies: int, stage: str) -> None:
        """Raise InputError where what a stage is given has another number of policies."""
        if policies != len(self):
            raise InputError(
                f"Stage {stage} trains P={len(self)} policies, {_counted(len(self.seeds), 'seed')} with "
                f"{_counted(self.members, 'member')} each, and was given P={policies}. Build policy, learner and "
                f"source from run.streams(…, members=M), and train them by run.fit({stage!r}, …, members=M)."
            )


def tag_prefix(seeds: Sequence[object], members: Sequence[object], seed: object, member: object) -> str:
    """The beginning of a policy's names in TensorBoard: only what tells it from the others."""
    by_seed = f"seed={seed}/" if len(seeds) > 1 else ""
    by_member = f"policy={member}/" if len(members) > 1 else ""
    return by_seed + by_member


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

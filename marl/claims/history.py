"""History of a checkout, as git tells it: the commit it is at, what differs from it, and what changed when."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.core import InputError


@dataclass(frozen=True)
class Checkout:
    """State of a working tree. commit: None where there is none; changed: files that differ from it."""

    commit: str | None
    changed: list[str]

    @classmethod
    def at(cls, root: Path, besides: Sequence[str] = ()) -> Checkout:
        """The state of `root`, untracked files included, those of `besides` and ignored ones left out."""
        excluded = [f":(exclude){path}" for path in besides]
        try:
            commit = git(root, "rev-parse", "--verify", "HEAD").strip()
            status = git(root, "status", "--porcelain", "--untracked-files=normal", "--", ".", *excluded)
        except InputError:
            return cls(None, [])
        return cls(commit, [line[3:] for line in status.splitlines()])


@dataclass(frozen=True)
class Change:
    """One commit."""

    commit: str
    date: str
    subject: str


class History:
    """Commits that lead to HEAD. Raises InputError where `root` is no git checkout."""

    def __init__(self, root: Path):
        self._root = root
        self._parents: dict[str, list[str]] = {}
        self._known: dict[str, frozenset[str]] = {}
        self._changes: dict[tuple[str, ...], list[Change]] = {}
        for line in git(root, "rev-list", "--parents", "HEAD").splitlines():
            commit, *parents = line.split()
            self._parents[commit] = parents

    def changes(self, paths: Sequence[str]) -> list[Change]:
        """The commits that touched some of these files and folders, newest first."""
        key = tuple(paths)
        if key not in self._changes:
            log = git(self._root, "log", "--no-show-signature", "--format=%H\t%cs\t%s", "HEAD", "--", *paths)
            self._changes[key] = [Change(*line.split("\t", 2)) for line in log.splitlines()]
        return self._changes[key]

    def up_to(self, commit: str) -> frozenset[str]:
        """A commit and all its ancestors; nothing if it is not part of this history."""
        if commit not in self._known:
            reached: set[str] = set()
            ahead = [commit] if commit in self._parents else []
            while ahead:
                reached.add(ahead[-1])
                parents = self._parents.get(ahead.pop(), [])
                ahead += [parent for parent in parents if parent not in reached]
            self._known[commit] = frozenset(reached)
        return self._known[commit]


def file_at(root: Path, commit: str, path: str) -> str | None:
    """A file as it is in a commit; None where git does not know the commit, or the commit the file."""
    try:
        return git(root, "show", f"{commit}:./{path}")
    except InputError:
        return None


def git(root: Path, *words: str) -> str:
    """Git's answer to a command. Raises InputError where it is missing or refuses."""
    try:
        answer = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"Cannot run git: {error.strerror}. Install it to tell which commits changed what.") from None
    if answer.returncode:
        said = " ".join(answer.stderr.split())
        raise InputError(f"`git {words[0]}` fails in {root}: {said}. Claims need a clone of the repository.")
    return answer.stdout

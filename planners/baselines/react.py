"""ReAct: a thought, then a plan, with the episode so far in the prompt."""

from __future__ import annotations

from collections.abc import Sequence

from planners.baselines.thinking import ThinkingConfig, ThinkingPlanner


class ReActConfig(ThinkingConfig):
    """Thoughts and plans of one episode."""


class ReAct(ThinkingPlanner):
    """Reasoning and acting: thoughts and plans take turns within an episode, and nothing outlives it.

    Source: Yao et al., ICLR 2023 (arXiv 2210.03629). Departures: prompts have no worked examples; a decision is one
    query, whose answer holds the thought and the plan; of the episode its latest steps are told, without how things
    were at each.
    """

    def lessons(self, row: int) -> Sequence[str]:
        """None."""
        return ()

    def look_back(self, rows: Sequence[int]) -> dict[int, dict[str, int | float]]:
        """Nothing is learned, and nobody asked."""
        return {}

"""The standard recipe of what trains on its own experience: check, train, judge."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.core import Actor, EnvSpec, InputError, Streams, VectorEnv
from marl.config.recipe import Recipe
from marl.evaluation.checks import check_evaluation
from marl.learning.learner import Learner
from marl.learning.rollout import OnPolicy
from marl.models.policies import IndependentPolicy
from marl.training import on_policy
from marl.training.environments import make_env
from marl.training.population import Population
from marl.training.run import Run, env_steps_to_updates
from marl.training.stage import Probe

if TYPE_CHECKING:
    from marl.output.report import Metric, Report, Tables


class OnPolicyRecipe(Recipe):
    """Check, train, judge. A subclass says what differs: the policy, the learner, what is executed of the policy.

    Its Config is derived from `ActorCriticConfig`, or from `TrainingConfig` where it has a learner of its own.
    """

    def policy(self, config: Any, spec: EnvSpec, streams: Streams) -> Any:
        """A policy that has learned nothing; by default independent agents."""
        return IndependentPolicy(spec, config.policy, streams)

    def learner(self, config: Any, run: Run, spec: EnvSpec, policy: Any, updates: int) -> Learner:
        """Improves the policy over so many updates; by default PPO."""
        return on_policy.actor_critic(config, run, spec, policy, updates)

    def executed(self, policy: Any) -> Any:
        """The actor that is judged, saved and played; by default the policy itself."""
        return policy

    def members(self, config: Any) -> int:
        """How many policies of each seed are trained side by side and are one result; one unless overridden.

        All are trained, evaluated meanwhile and saved. The first is judged and loaded; returns are told of each.
        """
        return 1

    def check(self, config: Any, run: Run) -> None:
        """Raise InputError, before training, for an evaluation that could not be made."""
        with closing(make_env(config.env, num_envs=1)) as env:
            check_evaluation(run, env.spec)
        if config.evaluation.args or config.evaluation.time_limit or config.evaluation.cross_play:
            from marl.evaluation.cross_play import check_evaluation_env

            check_evaluation_env(config)
        if config.evaluation.agents:
            from marl.evaluation.agent_sweep import check_other_numbers

            check_other_numbers(config)
        self._check_every(config)

    def _check_every(self, config: Any) -> None:
        """Raise InputError where training ends before its first evaluation."""
        updates = env_steps_to_updates(config.train.env_steps, config.learner.steps * config.env.num_envs)
        if config.evaluation.every is not None and config.evaluation.every > updates:
            raise InputError(
                f"evaluation.every: {config.evaluation.every} updates are more than the {updates} that "
                f"train.env_steps={config.train.env_steps} make; set fewer, or null for no evaluation while training."
            )

    def train(self, config: Any, run: Run) -> Any:
        """The trained policy, the last or the best; P of them for a run of P policies, seeds x members."""
        if self.members(config) > 1:
            run.population = Population(run.seeds, self.members(config))
        policy = on_policy.train(
            config, run, self.policy, self.learner, self.source(config), lambda policy: self.probes(config, run, policy)
        )
        if config.evaluation.load == "best":
            policy.load_state_dict(self.saved(run))
        return policy

    def source(self, config: Any) -> type[OnPolicy]:
        """The kind of batches that the learner learns from."""
        return OnPolicy

    def probes(self, config: Any, run: Run, policy: Any) -> list[Probe]:
        """Probes that look at the policy while it trains: evaluations, where `evaluation.every` asks for them."""
        if config.evaluation.every is None:
            return []
        from marl.evaluation.probe import EvaluationProbe

        return [EvaluationProbe(run, policy, self.executed(policy))]

    def run(self, config: Any, run: Run) -> Report:
        """Check, train, judge."""
        self.check(config, run)
        policy = self.train(config, run)
        # What judges is imported after training, which needs none of it.
        from marl.evaluation.agent_sweep import in_other_numbers
        from marl.evaluation.members import judge_members
        from marl.evaluation.policy_report import judge

        several = self.members(config) > 1
        report = judge_members(run, self, policy) if several else judge(run, self.executed(policy), self.findings)
        return in_other_numbers(run, report)

    def can_stack(self, config: Any) -> bool:
        """Every policy of Concord's own can be trained beside others."""
        return True

    def findings(self, run: Run, actor: Any, env: VectorEnv) -> tuple[dict[str, Metric], Tables]:
        """What the team earns beside scripted partners, where `evaluation.cross_play` asks for it."""
        if not run.config.evaluation.cross_play:
            return {}, {}
        from marl.evaluation.cross_play import beside_scripts

        return beside_scripts(run, actor, env)

    def played_stage(self, config: Any) -> str | None:
        """The stage that `train` fits."""
        return on_policy.STAGE

    def load(self, run: Run, num_envs: int) -> tuple[Actor, VectorEnv]:
        """Actor of the policy as it was last saved, or of the best, and environments to play it in.

        Where a seed has several members, the first.
        """
        from marl.evaluation.load import load_policy

        return load_policy(self, run, num_envs)

    def saved(self, run: Run) -> Any:
        """The state of the policy that `evaluation.load` names, the last or the best; of all members of the seed."""
        if run.config.evaluation.load == "best":
            from marl.evaluation.probe import best_policy

            return best_policy(run)
        return run.load(on_policy.STAGE, "policy")

    def pictures(self, run: Run) -> list[Path]:
        """film.gif."""
        from marl.evaluation.policy_report import picture

        actor, env = self.load(run, 1)
        env.close()
        return [picture(run, actor)]

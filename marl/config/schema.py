"""Configs: pydantic models beside each algorithm, YAML that says only what differs, overrides from the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Partly(dict[str, Any]):
    """A mapping that was set key by key: over a default, the default's other keys stay."""


class Section(BaseModel):
    """A part of a config: unknown keys are errors, values never change after loading.

    Where a recipe gives a section a default, what a config says of it lies over that default, at every depth.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _over_the_default(cls, value: Any, info: Any) -> Any:
        if not isinstance(value, dict):
            return value
        field = cls.model_fields[info.field_name]
        return over(field.get_default(call_default_factory=True, validated_data=info.data), value)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: Any) -> Any:
        annotation = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and {annotation, *get_args(annotation)} & {int, float}:
            raise ValueError(f"expected a number; got {str(value).lower()}")
        return value

    @property
    def options(self) -> Section | None:
        """Options besides the section's fields, where one of these decides which there are; see `NetworkConfig`."""
        return None

    @classmethod
    def of_earlier(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """A section as an earlier version saved it, as one of today: by default as it is."""
        return raw


class EnvConfig(Section):
    """Configuration of the environment: a native world, a PettingZoo one by dotted path, or a task of VMAS."""

    world: str | None = Field(None, description="a native World, module:Class")
    pettingzoo: str | None = Field(None, description="a PettingZoo environment, module:function that makes one")
    vmas: str | None = Field(
        None, description="a scenario of VMAS by name, or your own, module:Class; needs the extra [vmas], which is GPL"
    )
    args: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the world, the function or vmas.make_env"
    )
    agents: int | None = Field(
        None, ge=1, description="how many agents; the same as env.args.agents, or what the function calls it"
    )
    num_envs: int = Field(16, ge=1, description="environments stepped together")
    time_limit: int | None = Field(
        None, ge=1, description="steps after which training truncates an episode (worlds, vmas)"
    )
    workers: int = Field(0, ge=0, description="processes that step PettingZoo environments; 0 steps them in this one")

    @model_validator(mode="after")
    def _one_number_of_agents(self) -> EnvConfig:
        if self.agents is not None and self.args.get("agents", self.agents) != self.agents:
            raise ValueError(
                f"env.agents and env.args.agents are one number; got {self.agents} and {self.args['agents']}. Leave "
                "one of them out"
            )
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> EnvConfig:
        if sum(origin is not None for origin in (self.world, self.pettingzoo, self.vmas)) != 1:
            raise ValueError("needs exactly one of env.world, env.pettingzoo and env.vmas")
        if self.pettingzoo is not None and self.time_limit is not None:
            raise ValueError("env.time_limit is for native worlds; a PettingZoo environment takes its own in env.args")
        if self.vmas is not None and self.time_limit is None:
            raise ValueError(
                "env.vmas needs env.time_limit, such as 100: most of its scenarios never end by themselves"
            )
        if self.pettingzoo is None and self.workers:
            raise ValueError("env.workers is for PettingZoo environments; batched worlds need no processes")
        return self


class TrainConfig(Section):
    """Configuration of training: its length, and the times at which it is saved."""

    env_steps: int = Field(1_000_000, ge=1, description="joint steps of all environments of one policy")
    cpu_seconds: float | None = Field(
        None, gt=0, description="stop earlier, after this much CPU time of training, env.workers not counted"
    )
    save_seconds: float = Field(20.0, ge=0, description="time between checkpoints; a finished stage is always saved")


class TwinConfig(Section):
    """The same task elsewhere: a PettingZoo environment in which the trained team is evaluated and filmed too."""

    pettingzoo: str = Field(description="module:function that makes it")
    args: dict[str, Any] = Field(default_factory=dict, description="arguments of that function")
    episodes: int = Field(100, ge=2, description="evaluation episodes, at least: every environment plays equally many")


class EvaluationConfig(Section):
    """Configuration of the evaluation of a trained policy."""

    episodes: int = Field(
        1024, ge=2, description="episodes, at least, of sampled actions and again of most probable ones"
    )
    num_envs: int = Field(
        1024,
        ge=1,
        description="environments stepped together; fewer for fewer episodes, and of PettingZoo at most env.num_envs",
    )
    patience: int = Field(
        100_000, ge=1, description="steps without any episode's end after which an evaluation gives up"
    )
    film_episodes: int = Field(4, ge=0, description="episodes of the film; 0 makes none")
    every: int | None = Field(
        None, ge=1, description="updates between two evaluations while training; null for none before its end"
    )
    during_episodes: int = Field(64, ge=1, description="episodes, at least, of each evaluation while training")
    load: Literal["last", "best"] = Field(
        "last",
        description="which policy is judged, played and filmed: as training left it, or the best of the evaluations in "
        "between (needs every), by the mean return, channels by the weights of advantage",
    )
    args: dict[str, Any] = Field(default_factory=dict, description="arguments of env.args that differ in evaluations")
    twin: TwinConfig | None = Field(None, description="a PettingZoo environment of the same task")
    time_limit: int | None = Field(None, ge=1, description="env.time_limit of evaluations, where it is another")
    cross_play: bool = Field(False, description="play beside scripted partners; in a sweep, seeds beside one another")
    agents: tuple[int, ...] = Field(
        (),
        description="numbers of agents in which the team plays too, such as [2,10,100], and how fast it approaches its "
        "limit (a swarm)",
    )
    random: bool = Field(False, description="play uniformly random actions too, and tell the difference: above_random")
    zero_action: bool = Field(
        False, description="play the action 0 too, no control, and tell the difference: above_zero_action"
    )

    @model_validator(mode="after")
    def _best_is_known(self) -> EvaluationConfig:
        if self.load == "best" and self.every is None:
            raise ValueError(
                "evaluation.load=best needs evaluations while training, which keep the best policy: train with "
                "evaluation.every, such as 20 updates. A run that was trained without them has its last policy only"
            )
        return self

    @field_validator("agents", mode="before")
    @classmethod
    def _different_numbers(cls, value: Any) -> Any:
        listed = list(value) if isinstance(value, list | tuple) else [value]
        whole = all(type(n) is int and n > 0 for n in listed)
        if not whole or len(listed) == 1 or len(set(listed)) < len(listed):
            raise ValueError(
                "expected a list such as [2,10,100] of different numbers above 0, at least two of them, or [] for "
                f"none; got {value!r}"
            )
        return value


class ResumeConfig(Section):
    """Permissions of an inexact resume."""

    restart_episodes: bool = Field(
        False, description="begin new episodes where a foreign environment cannot be replayed exactly"
    )


class RunConfig(Section):
    """Configuration that every recipe has. A recipe's own Config adds its sections."""

    recipe: str = Field(description="the algorithm, by dotted path of its module")
    seed: int = Field(0, ge=0, lt=2**31, description="everything random follows from it")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(1, ge=1, le=256, description="torch threads; more than 1 slows small networks down")


class LearningConfig(RunConfig):
    """Configuration of a recipe that calls `Run.fit`."""

    train: TrainConfig = TrainConfig()


class TrainingConfig(LearningConfig):
    """Configuration of a recipe that trains in an environment, and judges there the policy it has trained."""

    compile: bool = Field(False, description="compile gradient steps and the steps of policy and world: slow at first")
    cuda_graphs: bool = Field(False, description="on a GPU, replay what is compiled as CUDA graphs")
    env: EnvConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    resume: ResumeConfig = ResumeConfig()

    @model_validator(mode="after")
    def _graphs_of_what_is_compiled(self) -> TrainingConfig:
        if self.cuda_graphs and not self.compile:
            raise ValueError("cuda_graphs: true replays what is compiled, so it needs compile: true")
        return self


# Fields that name what a section is of. Options, and the mapping args, are read by that alone.
NAMING = ("kind", "world", "pettingzoo", "vmas", "local", "server", "replay", "scripted")


def over(default: Any, given: Any) -> Any:
    """A value of a config over its default: a section takes what is left out from it, a mapping only if `Partly`."""
    if isinstance(default, Section) and isinstance(given, dict):
        kept = {name: value for name, value in default if name in default.model_fields_set}
        if any(given.get(name) not in (None, kept.get(name)) for name in NAMING):
            common = type(default).model_fields.keys() - {"args", *NAMING}
            kept = {name: value for name, value in kept.items() if name in common}
    elif isinstance(given, Partly):
        kept = default if isinstance(default, dict) else {}
    else:
        return given
    return {**kept, **{name: over(kept.get(name), value) for name, value in given.items()}}


def walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, field, type of the section or None) of every field that a config may set, sections first."""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        yield prefix + name, field, section
        if section is not None:
            yield from walk(section, f"{prefix}{name}.")


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The type of section that a field holds, if it may hold one."""
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)

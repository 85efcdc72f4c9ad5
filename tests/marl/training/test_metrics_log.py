"""What a run writes down, also where the disk refuses."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import files_of_at_most
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from envs.core import ConcordError
from marl.training.events import draw_pictures, draw_row, events_writer


def row(step: int) -> dict[str, object]:
    return {"stage": "train", "seed": 0, "updates": step, "env_steps": step, "loss": step / 2, "return": float("nan")}


def drawn(folder: Path) -> list[tuple[int, float]]:
    """Steps and values of the scalar `loss`, as TensorBoard reads them."""
    reader = EventAccumulator(str(folder / "events" / "train"))
    reader.Reload()
    assert reader.Tags()["scalars"] == ["loss"]
    return [(event.step, event.value) for event in reader.Scalars("loss")]


def test_tensorboard_reads_the_rows_and_forgets_those_after_the_step_that_a_resumed_run_goes_on_from(
    tmp_path: Path,
) -> None:
    for first in (1, 3):
        with events_writer(tmp_path, "train", first) as events:
            for step in range(first, first + 5):
                draw_row(events, row(step))
    assert drawn(tmp_path) == [(step, step / 2) for step in (1, 2, 3, 4, 5, 6, 7)]


def test_tensorboard_shows_pictures_with_each_number_a_gray_square(tmp_path: Path) -> None:
    with events_writer(tmp_path, "train") as events:
        draw_pictures(events, 7, {"map": torch.tensor([[0.0, 0.5], [1.0, 2.0]])}, "seed=3/")
    reader = EventAccumulator(str(tmp_path / "events" / "train"))
    reader.Reload()
    (image,) = reader.Images("seed=3/map")
    gray = np.array(Image.open(io.BytesIO(image.encoded_image_string)))
    assert (image.step, gray.shape, image.width) == (7, (128, 128), 128)
    for i, j, shade in ((0, 0, 0), (0, 1, 128), (1, 0, 255), (1, 1, 255)):
        assert (gray[64 * i : 64 * (i + 1), 64 * j : 64 * (j + 1)] == shade).all()


def test_a_disk_that_refuses_events_is_told_at_once_and_what_was_written_stays(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def draw(steps: int) -> None:
        with events_writer(tmp_path, "train") as events:
            for step in range(steps):
                draw_row(events, row(step))

    with files_of_at_most(300), pytest.raises(ConcordError, match=r"Cannot write .*events.*concord resume"):
        draw(50)
    assert drawn(tmp_path)[:3] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert capfd.readouterr().err == ""  # no thread had anything to say

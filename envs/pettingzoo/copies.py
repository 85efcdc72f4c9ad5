"""Copies of the arrays, as tensors that belong to whoever gets them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

AHEAD, AHEAD_BYTES = 16, 2**18  # copies laid out at a time, and how large these may be together


class Copies:
    """Copies of the first fields of a record, up to `last`, on the device.

    To make a copy's tensors takes longer than to fill them, so several copies' are made at once, in one storage. They
    are filled through numpy: torch would count that as a change of all of them, which autograd takes for an error.
    """

    def __init__(self, memory: Any, record: np.dtype[Any], last: str, device: torch.device):
        self._device, self._fields = device, dict[str, tuple[torch.dtype, slice, tuple[int, ...]]]()
        for name, (kind, start, *_) in (record.fields or {}).items():
            end, (number, shape) = start + kind.itemsize, kind.subdtype or (kind, ())
            torch_kind = torch.bool if number == np.bool_ else torch.float32
            self._fields[name] = torch_kind, slice(start // number.itemsize, end // number.itemsize), shape
            if name == last:
                break
        self._source = np.frombuffer(memory, np.uint8)[: end + -end % 4]  # flags may end within a number
        # On a GPU, copies are filled by torch.
        self._count = max(1, min(AHEAD, AHEAD_BYTES // len(self._source))) if device.type == "cpu" else 1
        self._ahead = self._lay_out()

    def take(self) -> dict[str, Tensor]:
        """Copies of what the memory holds now, by name. A GPU fetches it from pinned memory while the host goes on."""
        return next(self._ahead)

    def _lay_out(self) -> Iterator[dict[str, Tensor]]:
        size = (self._count, len(self._source))
        while True:
            with torch.inference_mode(False):  # who takes a later copy may be training
                host = torch.empty(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
                device = host if self._device.type == "cpu" else torch.empty_like(host, device=self._device)
                columns = [
                    device.view(kind)[:, part].unflatten(1, shape).unbind()
                    for kind, part, shape in self._fields.values()
                ]
            for target, parts in zip(host.numpy(), zip(*columns)):
                target[:] = self._source
                if device is not host:
                    device.copy_(host, non_blocking=True)
                yield dict(zip(self._fields, parts))

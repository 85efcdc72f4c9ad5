"""Tests use one thread: small tensors are slower on more, and results must not depend on the machine's cores."""

import torch

import marl  # noqa: F401  its recorder tells `concord claims` what a test rests on

torch.set_num_threads(1)

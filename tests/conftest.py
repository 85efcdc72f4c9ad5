"""Tests use one thread: small tensors are slower on more, and results must not depend on the machine's cores."""

import signal

import torch

torch.set_num_threads(1)

# A shell that starts tests in the background has Ctrl-C ignored, which the tests of interruptions rest on.
signal.signal(signal.SIGINT, signal.default_int_handler)

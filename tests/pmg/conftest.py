"""One thread for these tests: their tensors are too small for more, and sums keep their order."""

import torch

torch.set_num_threads(1)

"""Ray and DeepSpeed around `pmg`'s step: workers, checkpoints, resume, progress."""

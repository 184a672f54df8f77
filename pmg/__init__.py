"""Unpaired, patch-based medical image translation with a shared Gaussian-mixture latent."""

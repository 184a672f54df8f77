"""Ray Tune and Optuna around `launch`: the search over K and the loss weights."""

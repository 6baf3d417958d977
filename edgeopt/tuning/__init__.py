"""Hyperparameter search with Optuna: a study in a folder of the run, whose trials are real fine-tunings."""

"""Training: one epoch, folds that a model has not seen."""

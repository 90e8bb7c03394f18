"""Training and scoring: one SGD loop, recipes, inference, and fleets of models."""

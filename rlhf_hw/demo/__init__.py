"""The embedded default of the demo: a small preference data set, its gold score and a model made from scratch."""

"""The systems whose command lines are read here: their defaults, and their flags' meanings. Plain data, a file a family."""

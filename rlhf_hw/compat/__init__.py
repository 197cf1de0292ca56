"""Each difference between the two stacks, in one module a difference, with the version that retires it."""

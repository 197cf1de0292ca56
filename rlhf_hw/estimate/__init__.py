"""How much memory a stage will take: its own passes, run on tensors without storage and counted."""

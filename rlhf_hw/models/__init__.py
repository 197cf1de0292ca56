"""Models: loading, adapters, and the roles they play (policy, value, reward, reference)."""

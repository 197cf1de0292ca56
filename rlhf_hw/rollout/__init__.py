"""Rollout: answers sampled from the policy. One interface, one file an engine."""

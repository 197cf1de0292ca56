"""Asking trained models: answers, comparisons, judges, scores, perplexity. Nothing here trains."""

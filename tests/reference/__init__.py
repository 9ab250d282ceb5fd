"""Slow, plain references that the fast code must equal: loops over images, steps and patches, no batching.

    pytest tests/reference    # the references' own checks, by values computed by hand

State dicts come as plain mappings of names to tensors; every reference keeps their dtype, so that a test can compare in
float64. Shape letters: B images, T patches, D width, H W grid or pixels, C channels, L tokens of a sequence, N rows.
"""

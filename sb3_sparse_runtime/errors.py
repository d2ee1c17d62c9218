"""What is wrong with a policy that was written down."""


class InvalidPolicyError(ValueError):
    """A file or a graph that is no policy: truncated, damaged, tampered with, of a newer schema, or not computable."""

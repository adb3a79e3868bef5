"""What can be wrong with a checkpoint."""


class CheckpointError(ValueError):
    """A file or a configuration that is not what it should be; one line that names it."""

"""Errors that a user can cause. Each is one line that names the culprit and the cure."""


class UserError(Exception):
    """A mistake in a command, a setting or the state folder."""


def user_errors() -> tuple[type[Exception], ...]:
    """Every kind of error that is the user's to mend: printed as one line, exit code 2, no traceback."""
    from sweeps.capability.fields import CapabilityError
    from sweeps.laws import FitError
    from sweeps.spec import SpecError
    from xlstm.data import CorpusError

    return (UserError, SpecError, CorpusError, FitError, CapabilityError)

"""Errors that end the search: each says what, where, what was expected and what to do."""


class UserError(Exception):
    """Something a person can put right; shown as its message, without a traceback."""


INTERRUPTED_CODE = 75
"""Exit status of a command that was told to stop and saved its state: EX_TEMPFAIL, try again."""


class StoppedError(UserError):
    """A signal stopped the command after its state was saved; the same command goes on."""


class ConfigError(UserError):
    """A configuration that cannot mean anything; one line per problem."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source, self.problems = source, problems
        lines = [f"{source}: {problem}" for problem in problems]
        super().__init__("\n".join([*lines, "Nothing was started."]))

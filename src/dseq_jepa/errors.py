"""Errors that end the search: each says what, where, what was expected and what to do."""


class UserError(Exception):
    """Something a person can put right; shown as its message, without a traceback."""


class ConfigError(UserError):
    """A configuration that cannot mean anything; one line per problem."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source, self.problems = source, problems
        lines = [f"{source}: {problem}" for problem in problems]
        super().__init__("\n".join([*lines, "Nothing was started."]))

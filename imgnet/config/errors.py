"""How a command is refused."""


class ConfigError(ValueError):
    """A command that is refused before anything is started. Holds one line for each problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

"""How a command is refused."""


class ConfigError(ValueError):
    """A command that is refused before anything is started. Holds one line for each problem, said once."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[list[str]]]:
        """A copy in another process has the same lines, where the text alone would be taken for a list of letters."""
        return type(self), (self.problems,)

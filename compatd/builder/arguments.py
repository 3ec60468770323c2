"""Build arguments: which are declared, what they are worth, which were given for nothing.

The rules are those of moby's daemon/builder/dockerfile/buildargs.go: a value from the request beats a
default; an ARG without one falls back on the same name before the first FROM; the proxies need no
declaration and stay out of the history unless they have one.
"""

from collections.abc import Mapping

PREDEFINED = (
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
)


class BuildArguments:
    """The arguments of a build, and of one stage of it after ``for_stage``."""

    def __init__(self, given: Mapping[str, str | None]) -> None:
        self._given = given
        self._declared: dict[str, str | None] = {}
        self._global: dict[str, str | None] = {}
        self._referenced: set[str] = set()

    def for_stage(self) -> "BuildArguments":
        """Those of a new stage: nothing is declared yet. What it references counts here too."""
        stage = BuildArguments(self._given)
        stage._global = self._global
        stage._referenced = self._referenced
        return stage

    def declare(self, name: str, default: str | None) -> None:
        """ARG in a stage."""
        self._declared[name] = default
        self._referenced.add(name)

    def declare_global(self, name: str, default: str | None) -> None:
        """ARG before the first FROM."""
        self.declare(name, default)
        self._global[name] = default

    def declared(self) -> dict[str, str]:
        """Names and values that instructions of the stage can use."""
        return self._values(self._declared)

    def globals(self) -> dict[str, str]:
        """Names and values that FROM can use."""
        return self._values(self._global)

    def missing_in(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The declared ones that no variable of the image hides."""
        return {name: value for name, value in self.declared().items() if name not in environment}

    def counts(self, name: str) -> bool:
        """Whether an argument is part of what a RUN is known by."""
        return name in self._declared or name not in PREDEFINED

    def unused(self) -> list[str]:
        """The given ones that nothing referenced, sorted."""
        return sorted(name for name in self._given if name not in PREDEFINED and name not in self._referenced)

    def _values(self, declared: Mapping[str, str | None]) -> dict[str, str]:
        values: dict[str, str] = {}
        for name in (*declared, *PREDEFINED):
            value = self._given.get(name)
            if value is None:
                value = declared.get(name)
            if value is None:
                value = self._global.get(name)
            if value is not None:
                values[name] = value
        return values

"""The errors a user can meet: each says what is wrong, where, and what to do about it."""

from __future__ import annotations


class HarnessError(Exception):
    """Base of every error that is the input's fault, not the program's (CLI exit code 2).

    Args:
        what: what is wrong, in one sentence.
        where: the file, key, row or line it was found in.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, where: object | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix
        text = what if self.where is None else f"{what}\n  where: {self.where}"
        super().__init__(text if fix is None else f"{text}\n  fix: {fix}")


class ConfigError(HarnessError):
    """A suite, recipe, option or command line that cannot be meant."""


class DataError(HarnessError):
    """Images, lists or folders that are missing or unreadable."""


class WeightsError(HarnessError):
    """A checkpoint that is missing, unsafe or does not fit its network."""


class ProtocolError(HarnessError):
    """A request that would break the evaluation protocol (for example selecting on `report` images)."""


class StoreError(HarnessError):
    """A store that cannot be written, or content that does not match its digest."""


class ClusterError(HarnessError):
    """Nodes or workers of a cluster that are missing or unfit; what was computed is stored."""


class PluginError(HarnessError):
    """A detector plugin that cannot be imported or does not keep the contract."""

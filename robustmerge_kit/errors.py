"""What can go wrong, one class per exit code: *where: what, with the offending value*, then a hint with the next action."""

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from .disclosure import presentable


class RmkitError(Exception):
    """A failure that is explained to the user in one sentence; its class fixes the exit code of the command.

    What is said is fit for a terminal and a log: no control characters, no secrets, `~` for the home folder.
    """

    exit_code: int = 70

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what = presentable(what)
        self.where = presentable(where)
        self.hint = presentable(hint)
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\nhint: {self.hint}" if self.hint else head


class UsageError(RmkitError):
    """The command line asks for something that does not exist or contradicts itself."""

    exit_code = 2


class RecipeError(RmkitError):
    """The recipe's text is wrong: syntax, unknown key, wrong type, value out of range."""

    exit_code = 2


class InputError(RmkitError):
    """An adapter, a base or data cannot be used: missing, broken, of an unsupported kind."""

    exit_code = 3


class PlanError(RmkitError):
    """Recipe and inputs are fine one by one but do not fit together."""

    exit_code = 4


class OutputError(RmkitError):
    """The result cannot be written: it exists, the disk is full, permission is missing."""

    exit_code = 5

    @classmethod
    def from_os(cls, error: OSError, path: Path) -> Self:
        """What the operating system refused while writing `path`, with the way out."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return cls("the disk is full", where=str(path), hint="make space or choose another output folder, then run again")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return cls(f"no permission to write ({error.strerror})", where=str(path), hint="choose another output folder")
        return cls(f"cannot be written: {error.strerror or error}", where=str(path))


class PluginError(RmkitError):
    """A method that another package offers cannot be loaded or breaks the contract."""

    exit_code = 6


class Several(RmkitError):
    """More than one failure of the same stage, so that the user mends all of them in one go."""

    def __init__(self, errors: Iterable[RmkitError]) -> None:
        self.errors = tuple(errors)
        self.exit_code = self.errors[0].exit_code
        super().__init__("")
        self.what = "\n".join(str(error) for error in self.errors)


def raise_all(errors: Iterable[RmkitError]) -> None:
    """Raise what was collected: nothing for none, the error itself for one, `Several` for more.

    Raises: the collected errors.
    """
    collected = tuple(errors)
    if len(collected) == 1:
        raise collected[0]
    if collected:
        raise Several(collected)

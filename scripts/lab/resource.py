"""What is to be taken down again: a context that does so on leaving, also where entering fails."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Resource(ABC):
    """Started on entering, closed on leaving."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:  # noqa: B027  # most are there as soon as they are made
        """Do what is to be done on entering; what it leaves half done, close() undoes."""

    @abstractmethod
    def close(self) -> None:
        """Take everything down."""

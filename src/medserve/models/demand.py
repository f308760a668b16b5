"""How much memory a load will ask for is known before it begins: it is said, was measured, or is estimated."""

from contextlib import suppress

from medserve.settings import ModelSpec


class Demand:
    """The memory that one model will ask for, in bytes; with other weights under the same name it begins anew."""

    def __init__(self, said: int | None) -> None:
        self._said = said
        self._files = self._estimate = self._heaviest = 0

    @property
    def expected(self) -> int:
        """What the settings say, else the most that it ever held, else what is estimated; 0 where nothing is known."""
        return self._said or self._heaviest or self._estimate

    def files_found(self, file_bytes: int) -> None:
        """The files of its weights have so many bytes: where that is new, what others took before says nothing."""
        if file_bytes != self._files:
            self._files, self._estimate, self._heaviest = file_bytes, file_bytes, 0

    def estimated(self, memory_bytes: int) -> None:
        """It may take so much, by an estimate that can only add to the others."""
        self._estimate = max(self._estimate, memory_bytes)

    def weighed(self, memory_bytes: int) -> None:
        """It was seen to hold so much."""
        self._heaviest = max(self._heaviest, memory_bytes)


def file_bytes(spec: ModelSpec) -> int:
    """The least that the weights will take: what their files have. It reads the disk, so it blocks."""
    total = 0
    for path in (spec.path, spec.projector):
        with suppress(OSError):
            total += path.stat().st_size if path is not None else 0
    return total

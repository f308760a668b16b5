"""The corpus: every crafted attack, and then sound files that chance has damaged, format after format in turn."""

import gzip
import random
from collections.abc import Iterator
from typing import NamedTuple

from tests.hostile.crafted import attacks
from tests.hostile.mutations import MUTATIONS, resealed
from tests.hostile.samples import samples, tarred, zipped

WRAPPED = {"zip": ("dicom", "png", "jpeg"), "tar": ("dicom", "gif", "nifti"), "nifti": ("nifti",)}
"""What is damaged inside of a sound wrapping."""


class Hostile(NamedTuple):
    """One hostile thing: its number, its format, what was done, and a file's bytes or a folder's files."""

    number: int
    format: str
    what: str
    content: bytes | dict[str, bytes]


def corpus(count: int, seed: int) -> Iterator[Hostile]:
    """The first `count` of an endless row that depends on nothing but `seed`."""
    number = 0
    for attack in attacks():
        if number >= count:
            return
        yield Hostile(number, attack.format, attack.name, attack.content)
        number += 1
    while number < count:
        yield damaged(number, seed)
        number += 1


def damaged(number: int, seed: int) -> Hostile:
    """The damaged file of this number. DICOM comes twice as often as any other: it has the most decoders."""
    chance = random.Random(f"{seed}/{number}")
    formats = [*samples(), "dicom"]
    format_ = formats[number % len(formats)]
    kind = chance.choice(sorted(samples()[format_]))
    if format_ in WRAPPED and chance.random() < 0.5:
        inner = chance.choice(WRAPPED[format_])
        content, done = _damaged(samples()[inner][chance.choice(sorted(samples()[inner]))], chance)
        return Hostile(number, format_, f"sound, with {inner} inside: {done}", _wrapped(format_, content, chance))
    content, done = _damaged(samples()[format_][kind], chance)
    if format_ == "png" and chance.random() < 0.7:
        return Hostile(number, format_, f"{kind}: {done}, sealed again", resealed(content))
    return Hostile(number, format_, f"{kind}: {done}", content)


def _damaged(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    done = []
    for _time in range(chance.choice((1, 1, 1, 2, 3))):
        mutation = chance.choice(MUTATIONS)
        content = mutation(content, chance) or b"\0"
        done.append(mutation.__name__)
    return content, ", ".join(done)


def _wrapped(format_: str, content: bytes, chance: random.Random) -> bytes:
    """A damaged file inside a sound wrapping, which a checksum would otherwise keep from ever being looked at."""
    if format_ == "nifti":
        return gzip.compress(content, mtime=0)
    sound = samples()["png"]["rgb"]
    if format_ == "zip":
        return zipped({"a": content, "b": sound})
    tar = tarred({"a": content, "b": sound})
    return gzip.compress(tar, mtime=0) if chance.random() < 0.5 else tar


def selection(count: int, seed: int) -> Iterator[Hostile]:
    """`count` of them for every day: attacks from the whole row at equal distances, and a third of damaged files."""
    crafted = [Hostile(number, *attack) for number, attack in enumerate(attacks())]
    some = count * 2 // 3
    for place in range(min(some, len(crafted))):
        yield crafted[place * len(crafted) // some]
    for number in range(len(crafted), len(crafted) + count - some):
        yield damaged(number, seed)

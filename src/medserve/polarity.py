"""A word counts as said only where nothing denies it and nothing leaves it open: polarity, clause by clause.

A text falls into clauses. In each the words that deny ("no", "without", "are not visible", "neither ... nor") are
found first, and then how far each of them reaches:

- "no", "without" and their like deny what follows in their clause; over a comma only if the list ends in "or" or "nor".
- "absent", "not visible" and their like deny their subject, the list of things before them.
- "but", "except", "only" and the end of a sentence end every reach. So do a comma or "and" between two statements.
- Signs of a report are words: "dots: +" is present, "globules (-)" and "0 streaks" are absent, "veil: +/-" is open.
- "possibly", "cannot be excluded" and their like leave what their clause names open, and so does "A or B".

The rules are for short English answers. What they do not settle is left open, never decided.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class Polarity(Enum):
    """Whether a reply says of a thing that it is there, that it is not, or leaves it open."""

    SAID = "said"
    DENIED = "denied"
    OPEN = "open"


_SEEN = (
    r"visible|seen|present|identified|observed|detected|noted|noticed|apparent|evident|appreciated|found|discernible"
    r"|recogni[sz]ed|recogni[sz]able|visuali[sz]ed|demonstrated|shown|appreciable|identifiable|detectable|noticeable"
    r"|distinguishable|positive|there"
)
_SEE = (
    r"(?:see|find|detect|observe|discern|identify|recogni[sz]e|visuali[sz]e|appreciate|notice|show|have|has|contain"
    r"|exhibit|display|demonstrate|reveal|include|possess|feature)"
)
_ADVERBS = r"(?:(?:\w+ly|at all|any|really|very|well|ever|yet)\s+){0,3}"
_JUDGE = (
    r"(?:determined?|tell|told|say|said|assess(?:ed)?|judged?|answer(?:ed)?|decided?|evaluated?|confirm(?:ed)?"
    r"|diagnosed?|classif(?:y|ied)|provided?|given?|help|comment|interpret(?:ed)?|analy[sz]ed?|establish(?:ed)?|know|known)"
)
_PICTURE = r"(?:image|picture|photo|photograph|attachment|file)s?"

_PHRASES: tuple[tuple[str, str], ...] = (
    (r"\b(can|could|would|should|do|does|did|is|are|was|were|has|have|had|wo)n't\b", r"\1 not"),
    (r"\bcan't\b", "can not"),
    (r"\bcannot\b", "can not"),
    # Not a denial, though it looks like one.
    (r"\b(?:no|without(?: a| any)?) (?:doubt|question)\b|\bno (?:less|fewer) than\b|\bnot (?:only|just|merely)\b", " "),
    (r"\b(?:nothing|none|no one) (?:but|other than)\b", " BUT "),
    (r"\bno (?:other|additional|further|more)\b|\bnone of the others?\b|\bnothing else\b", " ELSE "),
    # Left open.
    (r"\bcan not (?:be )?(?:rule[d]? out|exclude[d]?)\b|\b(?:to |must )?(?:rule out|exclude)\b", " OPEN "),
    (
        r"\b(?:may|might|could)(?: be| have| also be)?\b|\b(?:possibl[ey]|perhaps|maybe|questionable|suspected)\b",
        " OPEN ",
    ),
    (r"\b(?:whether|equivocal|suspicious (?:for|of))\b", " OPEN "),
    # Not answered.
    (
        r"\b(?:can not|unable to|not able to|not possible to|impossible to|hard to|difficult to|no way to)\s+"
        rf"{_ADVERBS}(?:be )?{_ADVERBS}{_JUDGE}\b",
        " UNDECIDED ",
    ),
    (
        rf"\b(?:no|not (?:see|view|access|open)(?: the| this| that| any| an| your)?) {_PICTURE}\b"
        rf"|\b{_PICTURE} (?:is|was|were|are|has|have)(?: been)? not\b|\bno (?:idea|answer|information|way)\b",
        " UNDECIDED ",
    ),
    (
        r"\bnever mind\b|\bno (?:visible |skin )?lesions?\b"
        r"|\bnot (?:sure|certain|applicable|clear (?:if|whether))\b|\bn/a\b|\bunclear (?:if|whether)\b|\bdo not know\b"
        r"|\b(?:unsure|unknown|uncertain|undetermined|indeterminate|insufficient)\b",
        " UNDECIDED ",
    ),
    (r"\b(?:zero|0) (?:to|or) \w+", " UNDECIDED "),
    # "no definite dots" reports an absence, as "no clear dots" does; "not definitely seen" denies only certainty.
    (r"\bnot (?:definite|definitive|certain|convincing|reliab|confident)(?:ly|le)?\b", " UNDECIDED "),
    # Denials.
    (r"\b(?:zero|0)\b(?=\s*(?:[a-z,;:)%\n]|\.(?!\d)|$))", " no "),
    (rf"\bnot {_ADVERBS}(?:be |been )?{_ADVERBS}(?:{_SEEN})\b", " ABSENT "),
    (r"\b(?:absent|missing|invisible|unseen|lacking|negative|undetectable|unlikely(?! to\b))\b(?! for\b)", " ABSENT "),
    (r"\bnot\s+ABSENT\b", " THERE "),
    (rf"\bnot {_ADVERBS}{_SEE}\b", " DENY "),
    (r"\b(?:absence|lack) of\b|\b(?:free|devoid) of\b|\bnegative for\b", " no "),
    (
        r"\brather than\b|\binstead of\b"
        r"|\bas opposed to\b|\bfar from\b|\banything but\b|\brules out\b|\bexcludes\b|\bexcluding\b",
        " DENY ",
    ),
    (r"\b(?:without|neither|nor|never|lacks?|hardly|barely|unlikely to be)\b", " DENY "),
    (r"\bnot\b", " NOT "),
    (r"\bnon(?=[\s-])", " NON "),
    # Statements and borders.
    (r"\byes\b", " YES "),
    (rf"\b(?:{_SEEN})\b", " THERE "),
    (r"\b(?:is|are|was|were|be|been|has|have|shows?|exists?|appears?|remains?)\b", " IS "),
    (
        r"\b(?:except|save)(?: for)?\b|\b(?:other than|apart from|aside from|besides|but|only|just)\b"
        r"|\b(?:however|although|though|whereas|while|yet)\b",
        " BUT ",
    ),
    (r"\band/or\b", " or "),
)
_MARKS = tuple((re.compile(pattern), mark) for pattern, mark in _PHRASES)

_END = r"(?=[ \t]*(?:[,;.)\n]|$|and\b|but\b|[a-z][a-z -]{0,40}:))"
_SIGNS: tuple[tuple[str, str], ...] = (
    (r"[\u2713\u2714\u2611\u2705]\ufe0f?", "+"),
    (r"[\u2717\u2718\u2612\u274c\u2212]\ufe0f?", "-"),
    (r"(?<!\s)\s*=", ": "),
    (r"\+ ?/ ?[-\u2013]|[-\u2013] ?/ ?\+|\+[-\u2013]|\u00b1", " indeterminate "),
    (r"(?<=[:\w])[ \t]*\([ \t]*\++[ \t]*\)", " : present , "),
    (r"(?<=[:\w])[ \t]*\([ \t]*[-\u2013][ \t]*\)", " : absent , "),
    (r"(?<=[:\w])[ \t]*\([ \t]*(?:0|zero)[ \t]*\)", " : 0 , "),
    (r"(?<=[:\w])[ \t]*\([ \t]*(?:\?+|indeterminate)[ \t]*\)", " : indeterminate , "),
    (r":[ \t]*\?+", ": indeterminate "),
    (rf"(?<=[:\w])[ \t]*\++{_END}", " : present"),
    (rf"(?:(?<=:)[ \t]*|(?<=\w)[ \t]+)[-\u2013]{_END}", " : absent"),
    (r"(?<=\w)[-\u2013](?=[ \t]*(?:[,;.\n]|$))", " indeterminate "),  # denied, or one half of a word
    (
        r"(?<![ \t])[ \t]+[-\u2013\u2014][ \t]*"
        r"(?=(?:no|none|yes|(?:not )?(?:present|visible|seen)|absent|negative|positive|0)[ \t]*(?:[,;.\n]|$))",
        " : ",
    ),
    (r"(:[ \t]*(?:no|none|yes|absent|present|0|zero|indeterminate))[ \t]+(?=[a-z][a-z -]{0,40}:)", r"\1 , "),
    (r"(?<=\w) ?[+&] ?(?=\w)", " and "),
)
"""How reports abbreviate: signs become the words that they stand for."""
_ABBREVIATED = tuple((re.compile(pattern), word) for pattern, word in _SIGNS)
_BOX = re.compile(
    r"^([ \t]*(?:[-\u2022>+][ \t]+)?)(?:\[ \]|[\u2610\u2717\u2718\u2612\u274c]\ufe0f?)\s*(?=\w)", re.MULTILINE
)
"""A box that is not ticked, or a cross, before a name: "[ ] dots"."""

_ASIDE = re.compile(rf"\(\s*((?:\b(?:is|are|not|no|yes|none|clearly|be|absent|missing|negative|{_SEEN})\b\s*)+)\)")
_FINAL = re.compile(r"\bfinal answer\b(?:\s+is\b)?\s*:?")
_UTTERANCE = re.compile(r"[^.!?;\n]*+[.!?;\n]?")
_WORDS = re.compile(r"\d+(?:\.\d+)+|[^\W_]+(?:'[a-z]+)?|[.!;:,()\n]")
_BULLET = re.compile(r"^\s*(?:[-\u2022>+]|\d{1,2}[.)])\s+", re.MULTILINE)

_BORDERS = frozenset(".!;()\n") | {"BUT"}
_SOFT = frozenset({",", "and"})
_LIST = frozenset({",", "and", "or"})
_AHEAD = frozenset({"DENY", "NOT", "no", "none", "nothing"})
_STATES = frozenset({"IS", "THERE", "YES", "ABSENT"})
_REACH = 60
"""Words that a denial reaches at most: keeps endless replies from taking endless time."""

_SAME = {
    "grey": "gray",
    "greyish": "gray",
    "grayish": "gray",
    "naevus": "nevus",
    "naevi": "nevus",
    "nevi": "nevus",
    "keratoses": "keratosis",
    "seborrhoeic": "seborrheic",
    "arborising": "arborizing",
    "reddish": "red",
    "whitish": "white",
    "bluish": "blue",
    "blueish": "blue",
    "blackish": "black",
    "brownish": "brown",
    "yellowish": "yellow",
    "pinkish": "pink",
    "purplish": "purple",
}
"""Spellings and forms of one word. No word becomes another colour or another finding: purple stays purple."""


def _stem(word: str) -> str:
    """The form in which words are compared: one spelling, singular."""
    word = _SAME.get(word, word)
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def _plain(text: str) -> str:
    """The reply in lower case without its markup; lists on one line, questions gone, only the final answer if named."""
    text = re.sub(r"[*`#\"\u201c\u201d]|(?<!\w)_|_(?!\w)", "", text.replace("\u2019", "'").lower())
    text = "\n".join(line.strip(" \t|") for line in text.splitlines()).replace("|", " : ")
    text = re.sub(r"\?\s*(?=(?:yes|no|none|not|absent|present|visible)\b)", ": ", text)
    text = _in_lines(_BOX.sub(r"\1no ", text))
    for pattern, word in _ABBREVIATED:
        text = pattern.sub(word, text)
    text = _ASIDE.sub(r" : \1 , ", text)
    text = re.sub(r"\s[-\u2013]\s|\u2014", " , ", text).replace("\u2013", " ")
    final = _FINAL.search(text)
    spoken = text[final.end() :] if final else text
    return _UTTERANCE.sub(lambda said: " " if said[0].endswith("?") else said[0], spoken)


def _in_lines(text: str) -> str:
    """A heading that ends in a colon and the bullets below it become one line: "not visible: dots , streaks"."""
    lines: list[str] = []
    headed = False
    for line in text.strip().splitlines():
        bullet = _BULLET.match(line)
        if bullet and headed:
            lines[-1] += f" {line[bullet.end() :]} ,"
            continue
        headed = line.rstrip().endswith(":")
        lines.append(line[bullet.end() :] if bullet else line)
    return "\n".join(line.removesuffix(",") for line in lines)


def _tokens(text: str, guards: Iterable[tuple[re.Pattern[str], str]] = ()) -> list[str]:
    """Words (lower case), marks for what they do (upper case) and punctuation."""
    text = _plain(text)
    for pattern, word in guards:
        text = pattern.sub(word, text)
    for pattern, mark in _MARKS:
        text = pattern.sub(mark, text)
    return _WORDS.findall(text)


def clauses(text: str, words: "Vocabulary | None" = None) -> list[list[str]]:
    """The stretches of a reply within which a denial may reach, as words and marks; none of them is empty."""
    found: list[list[str]] = []
    segment: list[str] = []
    for token in (*_tokens(text, words.guards if words else ()), "."):
        if token not in _BORDERS:
            segment.append(token)
            continue
        found += _statements(segment)
        if token == "BUT":
            found.append([token])
        segment = []
    return found


def _statements(segment: Sequence[str]) -> Iterator[list[str]]:
    """A segment cut at a comma or "and" where a statement is complete and another begins."""
    later = [False] * (len(segment) + 1)
    for place in range(len(segment) - 1, -1, -1):
        later[place] = later[place + 1] or segment[place] in _STATES or _ends_in_no(segment, place)
    start, complete = 0, False
    for place, token in enumerate(segment):
        following = segment[place + 1 : place + 2]
        if token in _SOFT and ((complete and later[place + 1]) or _AHEAD.intersection(following)):
            yield from _unless_empty(segment[start:place])
            start, complete = place + 1, False
        complete = complete or token in _STATES or _ends_in_no(segment, place)
    yield from _unless_empty(segment[start:])


def _unless_empty(clause: Sequence[str]) -> Iterator[list[str]]:
    words = list(clause)
    while words and words[0] in _SOFT | {":"}:
        del words[0]
    if words:
        yield words


def _ends_in_no(segment: Sequence[str], place: int) -> bool:
    """Whether "no" or "none" here ends its statement, as in "dots: no, globules: yes"."""
    following = segment[place + 1 : place + 2]
    alone = not following or following[0] in _SOFT
    return segment[place] in {"no", "none", "NOT"} and alone and place > 0 and segment[place - 1] not in _LIST


@dataclass(frozen=True)
class Said:
    """What a reply says of each option, and of all: a plain "none", an exception to it, or that it is not decided."""

    polarity: Mapping[str, frozenset[Polarity]]
    none: bool
    excepted: bool
    undecided: bool

    def those(self, wanted: Polarity) -> tuple[str, ...]:
        """The options, in their declared order, of which this and nothing else is said."""
        return tuple(option for option, said in self.polarity.items() if said == {wanted})

    @property
    def contradicted(self) -> bool:
        return any({Polarity.SAID, Polarity.DENIED} <= said for said in self.polarity.values())

    @property
    def open(self) -> bool:
        return any(Polarity.OPEN in said for said in self.polarity.values())


@dataclass(frozen=True)
class Vocabulary:
    """The names of the options, each as its words in the form for comparing.

    `guards` are names that would be taken for marks, such as an option "absent": they are hidden while marks are made.
    """

    forms: Mapping[tuple[str, ...], str]
    guards: tuple[tuple[re.Pattern[str], str], ...] = ()

    @property
    def longest(self) -> int:
        """Words of the longest name."""
        return max(map(len, self.forms), default=0)


def vocabulary(names: Mapping[str, Iterable[str]]) -> Vocabulary:
    """Options with their synonyms, ready to be found in replies."""
    forms: dict[tuple[str, ...], str] = {}
    guards: list[tuple[re.Pattern[str], str]] = []
    for option, synonyms in names.items():
        for name in (option.lower(), *map(str.lower, synonyms)):
            words = tuple(_stem(word) for word in _WORDS.findall(name))
            if not words:
                raise ValueError(f"an option needs letters or digits: {option!r}")
            if tuple(_stem(word) for word in _tokens(name)) != words:
                words = (f"guarded{len(guards)}x",)
                guards.append((re.compile(rf"(?<!\d\.)\b{re.escape(name)}\b(?!\.\d)"), words[0]))
            forms[words] = option
    return Vocabulary(forms, tuple(guards))


def _mentions(clause: Sequence[str], words: Vocabulary) -> Iterator[tuple[int, int, str]]:
    """Where options are named: (first word, one past the last, option), the longest name first."""
    stems = [_stem(token) for token in clause]
    longest, forms = words.longest, words.forms
    place = 0
    while place < len(stems):
        sizes = range(min(longest, len(stems) - place), 0, -1)
        size = next((size for size in sizes if tuple(stems[place : place + size]) in forms), 0)
        if size:
            yield place, place + size, forms[tuple(stems[place : place + size])]
        place += size or 1


def said(text: str, options: Iterable[str], words: Vocabulary) -> Said:
    """What a reply says of the options."""
    parts = clauses(text, words)
    found: dict[str, set[Polarity]] = {option: set() for option in options}
    none = False
    for clause in parts:
        mentions = list(_mentions(clause, words))
        for (_start, _end, option), polarity in zip(mentions, _polarities(clause, mentions), strict=True):
            found[option].add(polarity)
        none = none or _is_none(clause, bool(mentions))
    polarities = {option: frozenset(ways) for option, ways in found.items()}
    marks = {token for clause in parts for token in clause}
    return Said(polarities, none, "BUT" in marks, "UNDECIDED" in marks)


_THINGS = re.compile(r"(?:structure|feature|vessel|colou?r|finding|such|these|those|them|any|all|of|the|blood|thing)s?")


def _is_none(clause: Sequence[str], mentions: bool) -> bool:
    """Whether a clause says that there is none of all options: "none", "no structures are visible", "no, ..."."""
    head = next((place for place, token in enumerate(clause) if token in {"no", "none", "nothing"}), None)
    if head is None:
        return False
    if mentions:
        return head == 0 and clause[1:2] == [","]
    rest = [token for token in clause[head + 1 :] if token not in _STATES | {":", ","}]
    return clause[head] != "no" or all(_THINGS.fullmatch(token) for token in rest)


def _polarities(clause: Sequence[str], mentions: Sequence[tuple[int, int, str]]) -> list[Polarity]:
    """What the clause says of each of its mentions."""
    if {"OPEN", "UNDECIDED"} & set(clause):
        return [Polarity.OPEN] * len(mentions)
    at = {place: index for index, (start, end, _option) in enumerate(mentions) for place in range(start, end)}
    denials = [0] * len(mentions)
    doubtful: set[int] = set()
    for place, token in enumerate(clause):
        reached, unclear = _reach(clause, place, token, at)
        doubtful |= unclear
        for index in reached:
            denials[index] += 1
    alternatives = _alternatives(clause, mentions)
    return [_verdict(count, index in doubtful, index in alternatives) for index, count in enumerate(denials)]


def _verdict(denials: int, doubtful: bool, alternative: bool) -> Polarity:
    """Denied once is denied; denied twice may mean either; "A or B" is open unless both are denied."""
    if doubtful or denials > 1:
        return Polarity.OPEN
    if denials:
        return Polarity.DENIED
    return Polarity.OPEN if alternative else Polarity.SAID


def _alternatives(clause: Sequence[str], mentions: Sequence[tuple[int, int, str]]) -> set[int]:
    """Mentions that "or" joins to a neighbour: said, but not which."""
    joined: set[int] = set()
    for left in range(len(mentions) - 1):
        if "or" in clause[mentions[left][1] : mentions[left + 1][0]]:
            joined |= {left, left + 1}
    return joined


def _reach(clause: Sequence[str], place: int, token: str, at: Mapping[int, int]) -> tuple[set[int], set[int]]:
    """The mentions that a token denies, and those of which it is not clear whether it does."""
    if token == "NON":
        return ({at[place + 1]} if place + 1 in at else set()), set()
    if token in _AHEAD and not _ends_in_no(clause, place):
        return _ahead(clause, place, at)
    if token == "ABSENT" or token in _AHEAD:
        before = _behind(clause, place, at)
        return before if before[0] or before[1] else _ahead(clause, place, at)
    return set(), set()


def _ahead(clause: Sequence[str], place: int, at: Mapping[int, int]) -> tuple[set[int], set[int]]:
    """Everything named after a denial; past a comma, or past a complete statement, only in a list with "or"."""
    window = clause[place + 1 : place + 1 + _REACH]
    if window[:1] == [","]:  # "no, dots": an answer of its own
        return set(), set()
    whole = window[:1] == [":"] or "or" in window or (clause[place] == "DENY" and "DENY" in window)
    reached: set[int] = set()
    doubtful: set[int] = set()
    passed = False
    for step, token in enumerate(window, place + 1):
        if reached and (token in _AHEAD or token == ":"):
            break
        if reached and ((token == "," and not whole) or token in _STATES):
            passed = True
        if step in at:
            (doubtful if passed and at[step] not in reached else reached).add(at[step])
    contrast = clause[place] == "NOT" and next(iter(at), place) >= place
    return reached, set() if contrast else doubtful  # "not round, oval" is oval


def _behind(clause: Sequence[str], place: int, at: Mapping[int, int]) -> tuple[set[int], set[int]]:
    """The subject of "... are absent": the list before it, past a comma only in a list with "and" or "or"."""
    reached: set[int] = set()
    doubtful: set[int] = set()
    joined = passed = False
    for step in range(place - 1, max(-1, place - 1 - _REACH), -1):
        token = clause[step]
        if reached and token in _STATES:
            break
        joined = joined or token in {"and", "or"}
        passed = passed or (bool(reached) and token == "," and not joined)
        if step in at:
            (doubtful if passed and at[step] not in reached else reached).add(at[step])
    return reached, doubtful


# --- denials of everything ------------------------------------------------------------------------------------------

_FILLER = frozenset(
    re.findall(
        r"\S+",
        "the this that these those a an any my answer final response is it "
        "so therefore thus hence here overall both in on of to at within from "
        "by for me lesion picture image photo dermoscopy dermoscopic examination area question skin all "
        "them either really clearly such sign signs feature features structure structures there IS THERE "
        ": , ",
    )
)
"""Words that name no sign: they may stand around a denial without being left over."""
_PERSON = frozenset({"i", "we", "can", "do", "does", "did", "could", "still", "also"})
_MORE = frozenset({",", ":", "and", "with", "plus", "i", "we", "see", "some", "instead", "YES", "also"})
_PASSING = re.compile(
    r"(?:the |its |this |their )*(?:eyes?(?: IS \w+)?"
    r"|(?:lesion|border|shape|skin|background|picture|image|colou?r)(?: IS (?:\w+ly |dark |light )?"
    r"(?:brown|tan|pink|regular|irregular|round|oval|symmetric|symmetrical|sharp|even|uniform|clear|good))?)"
    r"|(?:based on|looking at|judging by|according to|in|on|from) (?:the|this) (?:\w+ )?"
    r"(?:lesion|picture|image|photo) ?,?"
)
"""A clause about something else, which is no sign: "the eyes are blue", "the lesion is brown"."""


def denied(clause: Sequence[str]) -> bool:
    """Whether a clause leaves nothing over that could be there: all that it names is denied, or it names no sign."""
    rest = list(clause)
    while rest[-1:] == [","]:
        rest.pop()
    while rest[:1] in (["no"], ["none"]) and rest[1:2] in ([], [","], [":"]):
        rest = rest[2:]
    if not rest or rest == ["BUT"] or rest[0] == "ELSE" or _PASSING.fullmatch(" ".join(rest)):
        return True
    if {"OPEN", "UNDECIDED", "YES", "BUT"} & set(rest):
        return False
    if "ABSENT" in rest:
        return _absent(rest)
    place = next((place for place, token in enumerate(rest) if token in _AHEAD), None)
    if place is None:
        return _FILLER.issuperset(rest) and "THERE" not in rest
    before, after = rest[:place], rest[place + 1 :]
    if rest[place] == "none" and not _FILLER.issuperset(after):  # "none of your business"
        return False
    led = (_FILLER | _PERSON).issuperset(before) or ("," not in before and _ends_in_no(rest, place))
    return led and _nothing_more(after)


def _absent(rest: Sequence[str]) -> bool:
    """Whether "absent" takes in all that its clause names: a list before it, or one after a colon."""
    place = rest.index("ABSENT")
    before, after = rest[:place], rest[place + 1 :]
    if not before:
        return after[:1] == [":"] or not _MORE.intersection(after)
    listed = "," not in before[1:] or bool({"and", "or"} & set(before))
    return listed and not {"THERE", "with"} & set(before) and _FILLER.issuperset(after) and "THERE" not in after


def _nothing_more(after: Sequence[str]) -> bool:
    """Whether what follows a denial is one thing, or a list with "or" or "nor", and nothing after its verb."""
    last = max((place for place, token in enumerate(after) if token in {"or", "DENY"}), default=0)
    if "," in after[last:] or (_MORE - {","}).intersection(after) or {"ABSENT", *_AHEAD - {"DENY"}} & set(after):
        return False
    verb = next((place for place, token in enumerate(after) if token in {"IS", "THERE"}), len(after))
    return (_FILLER - {","}).issuperset(after[verb:])

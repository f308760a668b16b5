"""A model's words are told apart and never rewritten: thinking, control tokens, sentences, cleaning, flags."""

from itertools import pairwise
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve.flags import Flag
from medserve.text import (
    CLOSING,
    CONTROL,
    WORD_JOINER,
    Cleaned,
    Removed,
    Thinking,
    ThinkingSplitter,
    clean,
    description_flags,
    neutralise,
    sentences,
    split_thinking,
)

CODES = ("MEL", "NV", "BCC", "BKL")
PIECES = st.sampled_from(
    [
        "<unused94>",
        "<unused95>",
        "<unused",
        "94>",
        "thought\n",
        "thought",
        " ",
        "\n",
        ". ",
        "!",
        "?",
        " no dots",
        "The border is oval",
        "I cannot diagnose this.",
        "5 mm x 3 mm.",
        "a, b",
        ", and we ",
        "e.g. ",
        "12. ",
        "abcabcabcabc",
        "▁",
        "éééééé",
        "-----",
        "<end_of_turn>",
        "but ",
        "; ",
        "I'm sorry",
        "<0x0A>",
        "<",
        "__media__>",
        "1 2 3 4 5 6 7",
        "the lesion is brown and has a regular border ",
    ]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=40).map("".join)


# --- thinking


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Oval.", Thinking("Oval.", "", False)),
        ("", Thinking("", "", False)),
        ("<unused94>thought\nLet me see.<unused95>Oval.", Thinking("Oval.", "Let me see.", False)),
        ("<unused94>Let me see.<unused95>Oval.", Thinking("Oval.", "Let me see.", False)),
        ("<unused94>thought\nLet me", Thinking("", "Let me", True)),
        ("<unused94>", Thinking("", "", True)),
        ("thought\nLet me see.<unused95>Oval.", Thinking("Oval.", "Let me see.", False)),
        ("thought\nLet me see", Thinking("", "Let me see", True)),
        ("Let me see.<unused95>Oval.", Thinking("Oval.", "Let me see.", False)),
        ("<unused94>a<unused95>b<unused94>thought\nc<unused95>d", Thinking("bd", "ac", False)),
        ("It is oval <unused94>thought\nor", Thinking("It is oval ", "or", True)),
        ("A thought\nof mine", Thinking("A thought\nof mine", "", False)),
        ("thoughtful", Thinking("thoughtful", "", False)),
        ("a < b <unused9", Thinking("a < b <unused9", "", False)),
    ],
)
def test_thinking_is_told_from_the_answer(text: str, expected: Thinking) -> None:
    """Defect 000-12: MedGemma's marks are <unused94> and <unused95>, and an open block is no answer."""
    assert expected == split_thinking(text)


@given(TEXTS, st.lists(st.integers(0, 200)))
def test_any_cutting_of_a_stream_gives_the_same_parts(text: str, cuts: list[int]) -> None:
    """Marks may be cut anywhere between the pieces of a stream."""
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    splitter = ThinkingSplitter()
    parts = [splitter.feed(text[a:b]) for a, b in pairwise(places)]
    parts.append(splitter.finish())
    answer, thinking = "".join(part[0] for part in parts), "".join(part[1] for part in parts)
    whole = split_thinking(text)
    assert whole.truncated == splitter.truncated
    # A closing mark without its opening stays in the streamed text, where splitting the sum still finds it.
    assert whole.text == (split_thinking(answer).text if CLOSING in answer else answer)
    assert CLOSING in answer or whole.thinking == thinking


def test_text_is_shown_as_soon_as_it_is_certain() -> None:
    """A stream holds back no more than what could be the beginning of a mark."""
    splitter = ThinkingSplitter()
    assert [("Oval", ""), (" and ", ""), ("<b", "")] == [splitter.feed(piece) for piece in ("Oval", " and <", "b")]


# --- control tokens


@pytest.mark.parametrize(
    "literal",
    [
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
        "<bos>",
        "<eos>",
        "<pad>",
        "<unk>",
        "<mask>",
        "<unused0>",
        "<unused94>",
        "<unused6241>",
        "[multimodal]",
        "<__media__>",
        "<__image__>",
        "<0x0A>",
        "<0xff>",
    ],
)
def test_a_control_token_becomes_data(literal: str) -> None:
    """A pasted <end_of_turn> cannot end the turn, and still looks the same to a reader."""
    assert f"a{literal[0]}{WORD_JOINER}{literal[1:]}b" == neutralise(f"a{literal}b")


@pytest.mark.parametrize(
    "text", ["<b>", "a < b > c", "<end of turn>", "[multi]", "<0x0>", "<unused>", "2 <eos", "<br/>"]
)
def test_other_angle_brackets_are_left_alone(text: str) -> None:
    """Only the model's own literals are touched."""
    assert text == neutralise(text)


@given(TEXTS)
def test_neutralising_is_idempotent_and_adds_nothing_else(text: str) -> None:
    """Once is enough, no literal survives, and without the joiners the text is the same."""
    once = neutralise(text)
    assert once == neutralise(once)
    assert not CONTROL.search(once)
    assert text.replace(WORD_JOINER, "") == once.replace(WORD_JOINER, "")
    assert text == once or CONTROL.search(text)


# --- sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("One. Two! Three?", ("One.", "Two!", "Three?")),
        ("It is 0.5 mm wide. Next.", ("It is 0.5 mm wide.", "Next.")),
        ("Dots, e.g. black ones. Next.", ("Dots, e.g. black ones.", "Next.")),
        ("1. Dots are seen.\n2. None.", ("1. Dots are seen.", "2. None.")),
        ("No full stop\nNext line", ("No full stop", "Next line")),
        ('He said "no." Then more', ('He said "no."', "Then more")),
        ("Well... maybe", ("Well...", "maybe")),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, expected: tuple[str, ...]) -> None:
    """Decimals, abbreviations and list numbers end no sentence; lines do."""
    assert expected == sentences(text)


@given(TEXTS)
def test_sentences_lose_nothing_but_white_space(text: str) -> None:
    """Put together, the sentences are the text."""
    assert "".join(text.split()) == "".join("".join(sentences(text)).split())


# --- cleaning


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I cannot provide a diagnosis.", "refusal"),
        ("As an AI, I have no eyes.", "refusal"),
        ("I am not able to determine this.", "refusal"),
        ("I cannot see the image.", "refusal"),
        ("It would be inappropriate to say.", "refusal"),
        ("The lesion <end_of_turn> is brown.", "special_token_leak"),
        ("The\u2581lesion is brown.", "special_token_leak"),
        ("dotsdotsdotsdotsdots.", "gibberish_repeat"),
        ("\u043b\u0435\u0437\u0438\u044f dots.", "excessive_non_ascii"),
        ("@@ ## $$ a %% ^^ &&.", "low_alpha_ratio"),
        ("<think>The lesion is brown.", "thinking_leak"),
        ("<unused94>The lesion is brown.", "thinking_leak"),
    ],
)
def test_an_unfit_sentence_is_taken_out_with_its_reason(sentence: str, reason: str) -> None:
    """The sentences around it stay as they are."""
    cleaned = clean(f"The border is sharp. {sentence} It is symmetric.")
    assert Cleaned("The border is sharp. It is symmetric.", (Removed(sentence, Flag[reason.upper()]),)) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "The lesion is red, reddish and red-brown.",
        "5 mm x 3 mm.",
        "2.5 x 3.0 mm, 12 %",
        "Findings --------- none of note.",
        "---------",
        "| --- | --- |",
        "It is very very dark.",
        "No no no.",
        "I cannot see a pigment network.",
        "I do not see dots.",
        "Caf\u00e9-au-lait colour.",
        "First line.\n\nSecond paragraph.\n- a list\n- of things",
        "3/10",
    ],
)
def test_fit_text_is_kept_word_for_word(text: str) -> None:
    """Defects 000-6 and 000-7: no red becomes brown, and rules, measurements and emphasis are no gibberish."""
    assert Cleaned(text, ()) == clean(text)


def test_one_refusal_does_not_cost_a_paragraph_without_full_stops() -> None:
    """Defect 000-7: an unpunctuated paragraph was deleted for one phrase; now only its clause goes."""
    text = (
        "the lesion is brown with a sharp and regular border and a fine pigment network all over, dots stand in the "
        "middle and globules at the edge, but I cannot provide a diagnosis, the colours are light and dark brown"
    )
    cleaned = clean(text)
    assert [Flag.REFUSAL] == [gone.reason for gone in cleaned.removed]
    for kept in ("fine pigment network", "globules at the edge", "light and dark brown"):
        assert kept in cleaned.text


def test_lines_stay_lines() -> None:
    """What stood on two lines does not become one sentence when the line between them goes."""
    assert "Dots\nGlobules" == clean("Dots\nI'm sorry\nGlobules").text


@given(TEXTS)
def test_cleaning_is_idempotent(text: str) -> None:
    """A cleaned text has nothing left to clean."""
    once = clean(text)
    assert Cleaned(once.text, ()) == clean(once.text)


@given(TEXTS)
def test_kept_and_removed_are_all_the_sentences_in_order(text: str) -> None:
    """Nothing else is dropped and nothing is added."""
    cleaned = clean(text)
    gone = [each.sentence for each in cleaned.removed]
    kept = "".join(cleaned.text.split())
    for sentence in sentences(text):
        if gone and sentence == gone[0]:
            del gone[0]
        else:
            bare = "".join(sentence.split())
            assert kept.startswith(bare)
            kept = kept[len(bare) :]
    assert ([], "") == (gone, kept)


@pytest.mark.parametrize(
    "piece",
    ["a", ".", "...x", " ", "\n", "no ", "i ", "e.g. ", "1. ", "abc ", "-", "I cannot ", ".)", "<unused94>", "a, "],
)
def test_cleaning_takes_time_in_proportion_to_the_text(piece: str) -> None:
    """Defect 000-7: the old scan was quadratic; 100 kB of anything take seconds at most on a slow machine."""
    text = (piece * 100_000)[:100_000]
    begin = process_time()
    clean(text)
    description_flags(text, CODES)
    split_thinking(text)
    assert process_time() - begin < 10


# --- flags

LOOK = "The shape is consistent with the picture. Further features are a sharp border and no ulceration."
DESCRIPTIONS = [
    (Flag.EMPTY, " \n", LOOK),
    (Flag.TOO_SHORT, "Consistent, sharp border.", LOOK),
    (Flag.CLASSIFICATION_LEAKAGE, f"{LOOK} This is MEL.", f"{LOOK} It is melanocytic in camels."),
    (Flag.REFUSAL, f"{LOOK} I cannot diagnose this.", f"{LOOK} I cannot see dots."),
    (Flag.GIBBERISH_REPEAT, f"{LOOK} brown brown brown brown brown.", f"{LOOK} ------------ very very."),
    (Flag.SPECIAL_TOKEN_LEAK, f"{LOOK}<end_of_turn>", f"{LOOK} <end>"),
    (Flag.EXCESSIVE_NON_ASCII, f"{LOOK}\n\u75c5\u5909\u306f\u8336\u8272\u3067\u3059", f"{LOOK} Na\u00efve."),
    (Flag.LOW_ALPHA_RATIO, f"{LOOK}\n%% 12 $$ 34 &&", f"{LOOK} 12.5 mm x 3.5 mm."),
    (Flag.THINKING_LEAK, f"<think>{LOOK}", f"{LOOK} I think so."),
    (Flag.NO_COMPARISON, "The lesion is brown and has a sharp border.", LOOK),
    (Flag.NO_ADDITIONAL_FINDINGS, "All observations are consistent with what is seen.", LOOK),
    (Flag.CLEANING_EMPTIED, "I'm sorry, I cannot help with this.", LOOK),
]


@pytest.mark.parametrize(("flag", "raising", "_quiet"), DESCRIPTIONS)
def test_a_description_raises_the_flag(flag: Flag, raising: str, _quiet: str) -> None:
    """What the older system's tests looked for is found."""
    assert flag in description_flags(raising, CODES)


@pytest.mark.parametrize(("flag", "_raising", "quiet"), DESCRIPTIONS)
def test_a_sound_description_does_not(flag: Flag, _raising: str, quiet: str) -> None:
    """And is not found where it is not."""
    assert flag not in description_flags(quiet, CODES)


def test_a_good_second_look_has_no_flag() -> None:
    """Flags are for exceptions."""
    assert () == description_flags(LOOK, CODES)


def test_a_name_leaks_the_class_as_its_code_does() -> None:
    """Where names belong to the codes, a spelled-out one is noticed in any case; a code is upper case."""
    named = {"NV": ("melanocytic nevus",)}

    assert (Flag.CLASSIFICATION_LEAKAGE,) == description_flags(f"{LOOK} A Melanocytic nevus.", named)
    assert () == description_flags(f"{LOOK} A nevus, mel or nv.", named)

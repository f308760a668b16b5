"""What may be noticed about an answer, each with one name and one meaning; a flag is recorded and changes nothing."""

from enum import StrEnum
from typing import Self


class Notice(StrEnum):
    """A name that stands in records; `meaning` says it in a sentence for the person who reads them."""

    meaning: str

    def __new__(cls, name: str, meaning: str) -> Self:
        notice = str.__new__(cls, name)
        notice._value_ = name
        notice.meaning = meaning
        return notice


class Flag(Notice):
    """A notice about an answer or a report."""

    EMPTY = "empty", "the answer holds nothing but white space"
    TOO_SHORT = "too_short", "a description of fewer than 30 characters"
    CLASSIFICATION_LEAKAGE = "classification_leakage", "a description, which should only observe, names a class code"
    REFUSAL = "refusal", "the model's guardrail speaks: it excuses itself, says what it is, or declines to judge"
    GIBBERISH_REPEAT = (
        "gibberish_repeat",
        "3 to 19 characters with a letter among them stand four times or more in a row",
    )
    SPECIAL_TOKEN_LEAK = "special_token_leak", "a control token of the model stands in the text"
    EXCESSIVE_NON_ASCII = "excessive_non_ascii", "more than 30 % of a sentence lies outside ASCII"
    LOW_ALPHA_RATIO = "low_alpha_ratio", "fewer than 40 % of a sentence's characters are letters"
    THINKING_LEAK = "thinking_leak", "a mark of the model's thinking stands in the answer"
    NO_COMPARISON = "no_comparison", "the second look does not say whether the observations are consistent"
    NO_ADDITIONAL_FINDINGS = "no_additional_findings", "the second look says nothing beyond the observations"
    INVALID_CODE = "invalid_code", "no code of the closed set could be read from a classification"
    MULTIPLE_CODES = "multiple_codes", "a classification names more than one code"
    VERBOSE_OUTPUT = "verbose_output", "a classification, which should be one code, is longer than 50 characters"
    CLEANING_EMPTIED = "cleaning_emptied", "cleaning left nothing of a text that was not empty"
    UNREADABLE = "unreadable", "nothing that was asked for is named, or it is only denied or only supposed"
    CONTRADICTION = "contradiction", "the answer says a thing and its opposite, or things that exclude each other"
    TRUNCATED = "truncated", "the answer was cut off before it was complete"
    INVALID_JSON = "invalid_json", "no JSON value that fits the schema could be read"
    BLIND = "blind", "the engine counted no image tokens for a question about a picture"
    LABEL_DISAGREEMENT = (
        "label_disagreement",
        "the class in words is not the one that the model's own probabilities favour",
    )
    LOW_LABEL_MASS = (
        "low_label_mass",
        "the labels have less than half of the probability together: the model wanted to answer something else",
    )
    DEMONSTRATION = (
        "demonstration",
        "made by the demonstration model, which knows drawings only: without clinical meaning",
    )

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
        "the answer in words is not the one that its probabilities favour",
    )
    LOW_LABEL_MASS = (
        "low_label_mass",
        "the labels have less than half of the probability together: the model wanted to answer something else",
    )
    NOT_ASSESSABLE = "not_assessable", "the picture is not what the workflow takes: nothing was concluded from it"
    DOMAIN_DOUBT = "domain_doubt", "something speaks against the picture being what the workflow takes"
    INDETERMINATE = "indeterminate", "no answer was probable enough for the threshold that was asked for"
    PICTURE_IGNORED = "picture_ignored", "a control gave the same answer without the picture, or with another one"
    WORDING_MATTERS = "wording_matters", "the same question in other words was answered otherwise"
    MEASUREMENT_DISAGREEMENT = "measurement_disagreement", "what the model says and what was measured do not agree"
    OUTSIDE_PICTURE = "outside_picture", "a box of the model's lies outside the picture, or is none"
    SAME_PICTURE = "same_picture", "the prior and the current film are the same picture: nothing can have changed"
    MARK_DISAGREEMENT = (
        "mark_disagreement",
        "a result's printed mark and its printed reference range do not agree, or one of them was misread",
    )
    UNMEASURED = "unmeasured", "the files hold no voxels in known units: nothing could be measured"
    INCOMPLETE = "incomplete", "something that was asked for is missing in the answer"
    HARD_TO_READ = "hard_to_read", "the text for the patient is harder than the reading level that was asked for"
    UNVERIFIED = (
        "unverified",
        "no certificate says that this build of the engine answers as the reference does; see `medserve verify`",
    )
    DEMONSTRATION = (
        "demonstration",
        "made by the demonstration model, which knows drawings only: without clinical meaning",
    )

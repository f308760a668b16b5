"""Radiology analysis: what the model wrote is the result, what it did not write is missing, and nothing is added."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from medserve.engines.scripted import Reply, Scripted
from medserve.errors import InvalidRequest
from medserve.examination import examine
from medserve.flags import Flag
from medserve.generation import GenerationRequest
from medserve.images import Modality, Study
from medserve.imaging import intake, raster
from medserve.imaging.intake import Wanted
from medserve.replay import replayed
from medserve.reports import Report
from medserve.schemas import Schemas
from medserve.settings import DEMO, Limits, settings
from medserve.workflows import find
from medserve.workflows.radiology import absent, fitted
from tests.golden_reports import keep, kept, steady
from tests.imaging import phantoms
from tests.pictures import study
from tests.test_schemas import STONES

GOLDEN = "radiology"
DRAWING = DEMO / "drawings" / "kidney-left.png"
DRAWN = Study((raster.decode(DRAWING.read_bytes(), Limits()),))
WORDS = "Where are stones?"
FOUND = {"stones": [{"side": "left"}], "note": "small"}


async def report(reply: str | Reply, shown: Study | None = None, **options: Any) -> Report:
    """A report made of one reply, on a drawing unless another study is shown."""
    return await examine(find("radiology"), shown or DRAWN, Scripted([reply]), options=options)


async def golden() -> Any:
    """The whole report on a drawing, with a schema, as JSON, without what differs from run to run."""
    drawing = await intake.read([DRAWING.read_bytes()], Limits(), Wanted(Modality.OTHER))
    options = {"instruction": WORDS, "answer": STONES}
    engine = Scripted([f"```json\n{json.dumps(FOUND)}\n```"])
    made = await examine(find("radiology"), drawing, engine, options=options)
    return steady(made)


async def test_the_golden_report() -> None:
    """The whole report on a drawing, prompt included, is what it was when it was last looked at.

    Written again, after a look at the difference, by: python -m tests.workflows.test_radiology
    """
    assert kept(GOLDEN) == await golden()


# --- in words --------------------------------------------------------------------------------------------------------


async def test_without_a_schema_the_answer_is_words() -> None:
    """Word for word, and there are no data."""
    made = await report("Both kidneys are of normal size.", instruction=WORDS)

    assert "Both kidneys are of normal size." == made.conclusion.description
    assert (None, (), ()) == (made.conclusion.data, made.conclusion.missing, made.flags)
    assert WORDS == made.steps[0].prompt


async def test_json_that_was_not_asked_for_is_data_all_the_same() -> None:
    """It is what the model wrote."""
    made = await report('The result is {"stones": []}, as far as can be seen.', instruction=WORDS)

    assert {"stones": []} == made.conclusion.data


# --- the five services' defects --------------------------------------------------------------------------------------

WRITTEN = {"stones": [{"side": "left"}], "confidence": 0.35, "note": "x"}


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps(WRITTEN),
        f"Here is the result: {json.dumps(WRITTEN)}",
        f"{json.dumps(WRITTEN)} This is not a diagnosis.",
        f"```json\n{json.dumps(WRITTEN)}\n```",
        f"```\n{json.dumps(WRITTEN)}",
        f'<unused94>thought {{"confidence": 0.99}} <unused95>{json.dumps(WRITTEN)}',
    ],
    ids=["bare", "preface", "trailer", "fenced", "unclosed fence", "thinking"],
)
@pytest.mark.parametrize("bound", [True, False])
async def test_defect_004_1_no_field_is_lost_and_no_confidence_invented(reply: str, bound: bool) -> None:
    """System 004 made {"stones": ..., "confidence": 0.8} of any answer with a word around its JSON."""
    schema = {"type": "object", "required": ["stones", "confidence"]}
    made = await report(reply, answer=schema if bound else None)

    assert WRITTEN == made.conclusion.data


@pytest.mark.parametrize("reply", ['[{"side": "left"}]', '{"stones": []} This is not a diagnosis.'])
async def test_defect_004_1_what_has_no_confidence_gets_none(reply: str) -> None:
    """Not 0.8, and not the caller's 0.6; a bare list stays a list."""
    for schema in (None, {"type": ["object", "array"]}):
        made = await report(reply, answer=schema)

        assert "confidence" not in json.dumps(made.conclusion.model_dump(mode="json"))


async def test_defect_004_1_a_confidence_that_is_asked_for_and_not_given_is_missing() -> None:
    """It is named, and no number stands in its place."""
    schema = {"type": "object", "properties": {"confidence": {"type": "number"}}, "required": ["stones", "confidence"]}
    made = await report('{"stones": []}', answer=schema)

    assert ({"stones": []}, ("/confidence",)) == (made.conclusion.data, made.conclusion.missing)
    assert Flag.INCOMPLETE in made.flags
    assert made.needs_review


@pytest.mark.parametrize(
    ("reply", "data", "missing"),
    [
        ('{"stones": "two"}', {"stones": None}, ("/stones",)),
        (
            '{"stones": [{"side": "both"}, {"side": "left"}]}',
            {"stones": [{"side": None}, {"side": "left"}]},
            ("/stones/0/side",),
        ),
        ('{"stones": [{}, "left"]}', {"stones": [{}, None]}, ("/stones/0/side", "/stones/1")),
        ('{"note": "none"}', {"note": "none"}, ("/stones",)),
        ('{"stones": [], "note": 7}', {"stones": [], "note": None}, ("/note",)),
        ('["left"]', None, ("",)),
        ("There are no stones.", None, ("",)),
        ("", None, ("",)),
    ],
)
async def test_defect_004_8_what_does_not_fit_the_schema_is_told_apart(
    reply: str, data: Any, missing: tuple[str, ...]
) -> None:
    """System 004 handed on whatever could be parsed. Here its places are null and named, and all others stand."""
    made = await report(reply, answer=STONES)

    assert (data, missing) == (made.conclusion.data, made.conclusion.missing)
    assert Flag.INCOMPLETE in made.flags


async def test_defect_004_8_the_modality_counts() -> None:
    """System 004 ignored it: a CT is shown in its windows, slice by slice with its label, and the prompt comes last."""
    slices = await intake.read(phantoms.series(phantoms.abdomen()), Limits())
    engine = Scripted(["Two kidneys."])
    made = await examine(find("radiology"), slices, engine, options={"instruction": WORDS})
    parts = engine.history[-1].messages[-1].parts

    assert Modality.CT is made.study.modality
    assert [f"SLICE {number}" for number in range(1, len(slices.images) + 1)] == list(parts[1:-1:2])
    assert (slices.images, WORDS) == (tuple(parts[:-1:2]), parts[-1])


# --- JSON that breaks off --------------------------------------------------------------------------------------------


async def test_of_json_that_breaks_off_what_is_whole_is_given() -> None:
    """And the place at which it broke is missing."""
    made = await report('{"note": "small", "stones": [{"side": "left"}, {"side": "ri', answer=STONES)

    assert {"note": "small", "stones": [{"side": "left"}]} == made.conclusion.data or made.conclusion.data == {
        "note": "small",
        "stones": [{"side": "left"}, {}],
    }
    assert "/stones/1/side" in made.conclusion.missing
    assert {Flag.INVALID_JSON, Flag.TRUNCATED, Flag.INCOMPLETE} <= set(made.flags)


MEMBERS = some.dictionaries(
    some.text(max_size=4), some.none() | some.booleans() | some.integers() | some.text(max_size=3), max_size=5
)


@given(MEMBERS, some.data())
def test_just_the_members_that_were_taken_away_are_absent(members: dict[str, Any], data: some.DataObject) -> None:
    """Whatever their names are, at the root and inside of lists, and also by way of a reference."""
    gone = data.draw(some.lists(some.sampled_from(sorted(members)), unique=True)) if members else []
    left = {name: value for name, value in members.items() if name not in gone}
    schema = {
        "type": "array",
        "items": {"$ref": "#/$defs/row"},
        "$defs": {"row": {"type": "object", "required": list(members)}},
    }

    expected = {f"/1/{name.replace('~', '~0').replace('/', '~1')}" for name in gone}
    assert expected == set(absent(schema, [members, left]))


JSON = some.recursive(
    some.none() | some.booleans() | some.integers(-9, 9) | some.sampled_from(["left", "right", "x"]),
    lambda inner: (
        some.lists(inner, max_size=3)
        | some.dictionaries(some.sampled_from(["stones", "side", "note", "other"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(JSON)
def test_what_is_given_fits_but_for_the_places_that_are_named(written: Any) -> None:
    """Nothing is in the data that was not written, and what is whole is left alone."""
    data, missing = fitted(STONES, written)

    if not missing:
        assert data == written
    if data is not None:
        assert set(absent(STONES, data)) <= set(missing)
        nulls = {place for place in missing if at(data, place) is None}
        assert set(missing) == nulls
        assert part_of(data, written)


def at(data: Any, pointer: str) -> Any:
    """What lies at a place, None if there is nothing."""
    for name in pointer.split("/")[1:]:
        if isinstance(data, list):
            data = data[int(name)]
        else:
            data = (data or {}).get(name)
    return data


def part_of(data: Any, written: Any) -> bool:
    """Whether all of it was written, but for what is null."""
    if data is None:
        return True
    if isinstance(data, dict) and isinstance(written, dict):
        return all(name in written and part_of(value, written[name]) for name, value in data.items())
    if isinstance(data, list) and isinstance(written, list):
        return len(data) == len(written) and all(map(part_of, data, written))
    return bool(data == written and type(data) is type(written))


def test_what_a_schema_has_no_place_for_is_left_out() -> None:
    """It is in the step's reply, word for word."""
    schema = {"type": "object", "properties": {"a": {}}, "required": ["a", "b"], "additionalProperties": False}

    assert ({"a": 1}, ("/b",)) == fitted(schema, {"a": 1, "name": "PLANTED"})


# --- engines and schemas ---------------------------------------------------------------------------------------------


async def test_the_engine_is_bound_to_the_schema_and_the_prompt_shows_it() -> None:
    """Both, because a schema that only binds leaves the model to guess what it is for."""
    engine = Scripted([json.dumps(FOUND)])
    await examine(find("radiology"), DRAWN, engine, options={"instruction": WORDS, "answer": STONES})
    (asked,) = engine.history

    assert STONES == asked.schema
    assert json.dumps(STONES) in str(asked.messages[-1].parts[-1])


class Unbound(Scripted):
    """An engine that cannot enforce a schema and says so, as llama.cpp does of some keywords."""

    async def stream(self, request: GenerationRequest) -> Any:
        if request.schema is not None:
            raise InvalidRequest("the schema uses a keyword that cannot be enforced", param="schema")
        async for chunk in super().stream(request):
            yield chunk


async def test_a_schema_that_the_engine_cannot_enforce_is_still_held_against_the_answer() -> None:
    """The question is asked once more without it."""
    made = await examine(find("radiology"), DRAWN, Unbound([json.dumps(FOUND)]), options={"answer": STONES})

    assert FOUND == made.conclusion.data
    assert 1 == len(made.steps)


async def test_many_pictures_are_one_question() -> None:
    """In their order."""
    shown = study(10, 20, 30)
    made = await report("Three plain pictures.", shown, guard=False)

    assert [tuple(image.sha256 for image in shown.images)] == [step.images for step in made.steps]


@pytest.mark.parametrize(
    "schema", [{"$ref": "#"}, {"type": 3}, {"items": {"pattern": "(a+)+"}}, {"$ref": "http://x/y"}]
)
async def test_a_harmful_schema_is_refused_before_a_model_is_asked(schema: dict[str, Any]) -> None:
    """With the option's name."""
    engine = Scripted(["{}"])
    with pytest.raises(InvalidRequest) as caught:
        await examine(find("radiology"), DRAWN, engine, options={"answer": schema})

    assert "options.answer" == caught.value.param
    assert not engine.history


# --- stored schemas --------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with one schema in it."""
    monkeypatch.setenv("MEDSERVE_HOME", str(tmp_path))
    settings.cache_clear()
    Schemas(tmp_path).put("stones", STONES)
    return tmp_path


async def test_a_stored_schema_is_used_by_its_name(home: Path) -> None:
    """As if it had been given, and the report says which it was and under which name it was found."""
    made = await report(json.dumps(FOUND), schema="stones")

    assert FOUND == made.conclusion.data
    assert (STONES, "stones") == (made.provenance.options["answer"], made.provenance.options["schema"])


async def test_a_report_outlives_the_schema_that_it_used(home: Path) -> None:
    """It is replayed by what it holds."""
    made = await report(json.dumps(FOUND), schema="stones")
    Schemas(home).remove("stones")

    assert made.same_answers(await replayed(made, DRAWN))


@pytest.mark.parametrize("name", ["other", "../stones", "S"])
async def test_a_name_that_there_is_not_is_refused(home: Path, name: str) -> None:
    """Before a model is asked, and with the option's name."""
    with pytest.raises(InvalidRequest) as caught:
        await report("{}", schema=name)

    assert "options.schema" == caught.value.param


def test_the_form_calls_the_option_schema() -> None:
    """As people and programs see it."""
    assert "schema" in find("radiology").options.model_json_schema()["properties"]


if __name__ == "__main__":
    keep(GOLDEN, golden())

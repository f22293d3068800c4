"""One option, one parser: flags, environment, defaults."""

from __future__ import annotations

import argparse

import pytest

from edgeapp import errors, settings


def parse(words: list[str], environment: dict[str, str] | None = None) -> settings.Settings:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    settings.add_options(parser)
    return settings.from_arguments(parser.parse_args(words), environment or {})


def test_every_card_option_is_a_card_key() -> None:
    """A flag that overrides the card has the card's name."""
    from edgeapp.model import Card

    assert {o.name for o in settings.OPTIONS if o.card} <= set(Card.__dataclass_fields__)


def test_every_other_option_is_a_setting() -> None:
    """No flag is parsed and then forgotten."""
    fields = set(settings.Settings.__dataclass_fields__) - {"card", "origins", "devices"}
    assert {o.name for o in settings.OPTIONS if not o.card} == fields


def test_defaults_leave_the_card_alone() -> None:
    """Without flags nothing overrides the model card."""
    found = parse([])
    assert found == settings.Settings()


@pytest.mark.parametrize(
    ("words", "environment", "name", "value"),
    [
        (["--batch", "4"], {}, "batch", 4),
        ([], {"EDGEAPP_BATCH": "8"}, "batch", 8),
        (["--batch", "4"], {"EDGEAPP_BATCH": "8"}, "batch", 4),
        (["--input", "a", "b", "--input", "c"], {}, "input", ("a", "b", "c")),
        ([], {"EDGEAPP_INPUT": "a b"}, "input", ("a b",)),
        (["--quiet"], {}, "quiet", True),
        ([], {"EDGEAPP_QUIET": "yes"}, "quiet", True),
        ([], {"EDGEAPP_QUIET": "0"}, "quiet", False),
        (["--device", "3"], {"EDGEAPP_DEVICE": "all"}, "devices", None),
        (["--device", "3,1"], {}, "devices", (3, 1)),
        (["--device", "3,1"], {}, "device", 3),
        ([], {"EDGEAPP_DEVICE": "ALL"}, "devices", ()),
    ],
)
def test_flag_beats_environment_beats_default(
    words: list[str], environment: dict[str, str], name: str, value: object
) -> None:
    """The nearer to the user, the stronger."""
    assert getattr(parse(words, environment), name) == value


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--scale", "1/255"], "scale", 1 / 255),
        (["--mean", "0.5"], "mean", [0.5]),
        (["--std", "1,2,3"], "std", [1, 2, 3]),
        (["--size-wh", "640x480"], "size_wh", [640, 480]),
        (["--size-wh", "320"], "size_wh", [320, 320]),
        (["--no-antialias"], "antialias", False),
        (["--color-order", "bgr"], "color_order", "BGR"),
    ],
)
def test_card_values_are_parsed(words: list[str], key: str, value: object) -> None:
    """Fractions, lists and sizes as people write them."""
    assert parse(words).card == {key: value}


@pytest.mark.parametrize("text", ["", "x", "1/0", "nan", "inf", "-1", "1e99"], ids=lambda t: t or "empty")
def test_number_refuses_what_is_no_number_in_range(text: str) -> None:
    """Not a number, infinity and division by zero included."""
    with pytest.raises(ValueError, match=r"wanted|allowed"):
        settings.number(0, 1)(text)


def test_wrong_environment_value_names_the_variable() -> None:
    """The message points at what was set."""
    with pytest.raises(errors.UsageError, match="EDGEAPP_RECURSIVE='maybe'"):
        parse([], {"EDGEAPP_RECURSIVE": "maybe"})

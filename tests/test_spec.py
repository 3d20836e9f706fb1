"""The text of a pipeline, in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt import spec
from graphopt.base import Pass, PassReport
from graphopt.context import Context
from graphopt.errors import RegistryError, SpecError, UsageError
from graphopt.model import Model


@dataclass(frozen=True)
class Every(Pass):
    """A pass with an option of every kind."""

    name: ClassVar[str] = "every"
    lossless: ClassVar[bool] = True
    ratio: float = 0.5
    count: int = 3
    flag: bool = False
    the_text: str = "a"
    mode: Literal["fast", "slow"] = "fast"
    level: Literal[1, 2] = 1
    limit: float | None = None
    title: str | None = None
    auto: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio must be in [0, 1), not {self.ratio}")

    def run(self, model: Model, context: Context) -> PassReport:
        return PassReport(0)


@dataclass(frozen=True)
class Plain(Pass):
    """A pass without options."""

    name: ClassVar[str] = "plain"
    lossless: ClassVar[bool] = True

    def run(self, model: Model, context: Context) -> PassReport:
        return PassReport(0)


@pytest.fixture(autouse=True)
def passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the two passes above the only ones."""
    known: dict[str, type[Pass]] = {"every": Every, "plain": Plain}

    def pass_class(name: str) -> type[Pass]:
        if name not in known:
            raise RegistryError(f"there is no pass '{name}'")
        return known[name]

    monkeypatch.setattr(spec, "pass_class", pass_class)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ()),
        ("  ", ()),
        ("plain", (Plain(),)),
        ("plain,every", (Plain(), Every())),
        (" plain , plain ", (Plain(), Plain())),
        ("every:ratio=0.25", (Every(ratio=0.25),)),
        ("every:ratio=1e-3:count=-7", (Every(ratio=1e-3, count=-7),)),
        ("every:flag=true", (Every(flag=True),)),
        ("every:flag=Yes", (Every(flag=True),)),
        ("every:flag=0", (Every(),)),
        ("every:the-text=x=y z", (Every(the_text="x=y z"),)),
        ("every:the-text=", (Every(the_text=""),)),
        ("every:mode=slow:level=2", (Every(mode="slow", level=2),)),
        ("every:limit=2", (Every(limit=2.0),)),
        ("every:limit=inf", (Every(limit=float("inf")),)),
        ("every:limit=none", (Every(),)),
        ("every:title=none", (Every(),)),
        ("every:title=nothing", (Every(title="nothing"),)),
        ("every:auto=4", (Every(auto=4),)),
        ("every:auto=auto", (Every(),)),
    ],
)
def test_parse(text: str, wanted: tuple[Pass, ...]) -> None:
    found = spec.parse_pipeline(text)
    assert found == wanted
    assert spec.parse_pipeline(spec.format_pipeline(found)) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope", "there is no pass 'nope'"),
        (",plain", "a pass name is missing beside a comma; write NAME[:option=value...][,NAME...]"),
        ("plain,", "a pass name is missing beside a comma; write NAME[:option=value...][,NAME...]"),
        (":ratio=1", "a pass name is missing before ':ratio=1'; write NAME[:option=value...][,NAME...]"),
        ("plain:ratio=1", "pass 'plain' has no option 'ratio'; it has: none"),
        ("every:rate=1", "pass 'every' has no option 'rate'; it has: ratio, count, flag, the-text, mode, level, limit, "
         "title, auto; did you mean 'ratio'?"),
        ("every:name=x", "pass 'every' has no option 'name'; it has: ratio, count, flag, the-text, mode, level, limit, "
         "title, auto"),
        ("every:ratio", "pass 'every': option 'ratio' needs a value: ratio=..."),
        ("every:", "pass 'every' has no option ''; it has: ratio, count, flag, the-text, mode, level, limit, title, "
         "auto"),
        ("every:ratio=x", "pass 'every': option 'ratio': 'x' is not allowed; use number"),
        ("every:ratio=nan", "pass 'every': option 'ratio': 'nan' is not allowed; use number"),
        ("every:ratio=", "pass 'every': option 'ratio': '' is not allowed; use number"),
        ("every:count=1.5", "pass 'every': option 'count': '1.5' is not allowed; use whole number"),
        ("every:flag=maybe", "pass 'every': option 'flag': 'maybe' is not allowed; use true|false"),
        ("every:mode=FAST", "pass 'every': option 'mode': 'FAST' is not allowed; use fast|slow"),
        ("every:level=3", "pass 'every': option 'level': '3' is not allowed; use 1|2"),
        ("every:limit=high", "pass 'every': option 'limit': 'high' is not allowed; use number|none"),
        ("every:auto=manual", "pass 'every': option 'auto': 'manual' is not allowed; use whole number|auto"),
        ("every:ratio=0.1:ratio=0.2", "pass 'every': option 'ratio' is given twice"),
        ("every:ratio=1.5", "pass 'every': ratio must be in [0, 1), not 1.5"),
    ],
)  # fmt: skip
def test_errors(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        spec.parse_pipeline(text)
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


def test_defaults_are_left_out() -> None:
    assert spec.format_pass(Every()) == "every"
    assert spec.format_pass(Every(flag=True, the_text="b", limit=0.5)) == "every:flag=true:the-text=b:limit=0.5"
    assert spec.format_pass(Every(auto=2)) == "every:auto=2"


TEXTS = (
    st.text(st.characters(exclude_characters=",:", codec="utf-8")).map(str.strip).filter(lambda text: text != "none")
)


@given(
    st.builds(
        Every,
        ratio=st.floats(0, 1, exclude_max=True),
        count=st.integers(),
        flag=st.booleans(),
        the_text=TEXTS,
        mode=st.sampled_from(["fast", "slow"]),
        level=st.sampled_from([1, 2]),
        limit=st.none() | st.floats(allow_nan=False),
        title=st.none() | TEXTS,
        auto=st.just("auto") | st.integers(),
    )
)
def test_round_trip(item: Every) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spec, "pass_class", {"every": Every}.__getitem__)
        assert spec.parse_pipeline(spec.format_pipeline((item, item))) == (item, item)


def test_text_that_cannot_be_written_is_an_error() -> None:
    """A comma or colon would be read as the end of the option."""
    with pytest.raises(SpecError, match="option 'the-text' cannot hold a comma or colon: 'a,b'"):
        spec.format_pass(Every(the_text="a,b"))


def test_options() -> None:
    found = {option.name: (option.default, option.allowed) for option in spec.options(Every)}
    assert list(found) == ["ratio", "count", "flag", "the-text", "mode", "level", "limit", "title", "auto"]
    assert found["mode"] == ("fast", "fast|slow")
    assert found["limit"] == (None, "number|none")
    assert spec.options(Plain) == ()


def test_an_option_must_have_a_form_as_text() -> None:
    @dataclass(frozen=True)
    class Odd(Plain):
        sizes: tuple[int, ...] = ()

    with pytest.raises(RegistryError, match=r"pass 'plain': option 'sizes' has the type tuple\[int, \.\.\.\]"):
        spec.options(Odd)

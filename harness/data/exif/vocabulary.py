"""Vocabularies: which raw values of a categorical tag mean which class, and the rules of tag selection, as data.

A vocabulary is a YAML file (`suites/exif/blades.yaml` is the one that ships). This module knows no class by name.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.api.errors import ConfigError
from harness.api.yamlsafe import load_yaml
from harness.data.exif import values
from harness.data.exif.labels import CATEGORICAL
from harness.data.exif.tags import BY_NAME, Kind

How = Literal["mapped", "unknown", "default", "unmapped"]


class Meaning(NamedTuple):
    """What a raw value means.

    Attributes:
        number: class from 0, or -1.
        shown: the raw value for people: a code as a number, or a clean text.
        how: "mapped"; "unknown" (it says so itself); "default" (no class lists it, the tag's default took it);
            "unmapped" (no class lists it and the tag has no default).
        odd: what was odd about a text, see `values.text`.
    """

    number: int
    shown: str
    how: How
    odd: tuple[str, ...] = ()


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Matches(_Frozen):
    """Raw values that mean one thing."""

    codes: list[int] = []
    names: list[str] = []
    prefixes: list[str] = []


class Class(Matches):
    """One class of a tag."""

    name: str = Field(min_length=1, max_length=80)


class TagVocabulary(_Frozen):
    """The classes of one tag, in the order of their numbers.

    Attributes:
        classes: numbered from 0.
        unknown: values that say that nothing is known.
        default: class of every value that no class lists; "" for none.
        drop_words: words that `plain` leaves out of a text that no class lists ("corporation").
    """

    classes: list[Class] = Field(min_length=1, max_length=200)
    unknown: Matches = Matches()
    default: str = ""
    drop_words: list[str] = []

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Class names in order."""
        return tuple(c.name for c in self.classes)

    @cached_property
    def _codes(self) -> dict[int, int]:
        return {code: i for i, part in self._parts() for code in part.codes}

    @cached_property
    def _texts(self) -> dict[str, int]:
        return {normalise(name): i for i, part in self._parts() for name in part.names}

    @cached_property
    def _prefixes(self) -> dict[str, int]:
        return {normalise(name): i for i, part in self._parts() for name in part.prefixes}

    def _parts(self) -> list[tuple[int, Matches]]:
        return [(-1, self.unknown), *enumerate(self.classes)]

    @model_validator(mode="after")
    def _is_consistent(self) -> TagVocabulary:
        if len(set(self.names)) != len(self.names):
            raise ValueError("a class name stands twice")
        if self.default and self.default not in self.names:
            raise ValueError(f"the default {self.default!r} is no class")
        for what, table in (("codes", self._codes), ("names", self._texts), ("prefixes", self._prefixes)):
            if len(table) != sum(len(getattr(part, what)) for _, part in self._parts()):
                raise ValueError(f"one of the {what} stands twice")
        if "" in self._texts or "" in self._prefixes:
            raise ValueError("a name or prefix has no letter or digit")
        return self

    def find(self, raw: Any) -> Meaning:
        """The meaning of a raw value: an EXIF code, a text, or what Pillow gives.

        Raises:
            values.Fault: it is neither a whole number nor a text, or the text is blank.
        """
        if isinstance(raw, (tuple, list)) and raw and not isinstance(raw[0], (tuple, list)):
            raw = raw[0]
        if isinstance(raw, (str, bytes)):
            shown, odd = values.text(raw)
            if not normalise(shown):  # dashes or dots in place of a value
                raise values.Fault("blank")
            if not (shown.isascii() and shown.isdecimal()) or len(shown) > 5:
                return self._of_text(shown, tuple(odd))
            return self._of_code(int(shown), tuple(odd))
        number = values.quantity(raw).value
        if not number.is_integer():
            raise values.Fault("not-a-code")
        return self._of_code(int(number), ())

    def _of_code(self, code: int, odd: tuple[str, ...]) -> Meaning:
        return self._meaning(self._codes.get(code), str(code), odd)

    def _of_text(self, shown: str, odd: tuple[str, ...]) -> Meaning:
        words = normalise(shown).split(" ")
        found = self._texts.get(" ".join(words))
        for end in range(len(words), 0, -1):
            if found is not None:
                break
            found = self._prefixes.get(" ".join(words[:end]))
        return self._meaning(found, shown, odd)

    def _meaning(self, found: int | None, shown: str, odd: tuple[str, ...]) -> Meaning:
        if found is not None:
            return Meaning(found, shown, "mapped" if found >= 0 else "unknown", odd)
        if self.default:
            return Meaning(self.names.index(self.default), shown, "default", odd)
        return Meaning(-1, shown, "unmapped", odd)

    def plain(self, meaning: Meaning) -> str:
        """One spelling a value: the class's name, or the text in lower case without `drop_words`."""
        if meaning.how == "mapped" and self.names[meaning.number] != self.default:
            return self.names[meaning.number]
        words = normalise(meaning.shown).split(" ")
        kept = [word for word in words if word not in self.drop_words]
        return " ".join(kept or words)


class Selection(_Frozen):
    """The rules by which tags stay (supplement B); shares are of photographs, 0..1.

    Attributes:
        presence: a candidate is on more than this share.
        unknown_max: richness: at most this share has no known value.
        single_max: richness: at most this share of known values is one value.
        irrelevant: tag → why it says nothing about image formation.
        redundant: tag → the tag that says the same.
    """

    presence: float = Field(default=0.5, ge=0, le=1, strict=False)
    unknown_max: float = Field(default=0.5, ge=0, le=1, strict=False)
    single_max: float = Field(default=0.95, ge=0, le=1, strict=False)
    irrelevant: dict[str, str] = {}
    redundant: dict[str, str] = {}


class Vocabulary(_Frozen):
    """All categorical tags and the rules of selection."""

    name: str = Field(min_length=1, max_length=80)
    selection: Selection = Selection()
    tags: dict[str, TagVocabulary]

    @model_validator(mode="after")
    def _names_tags(self) -> Vocabulary:
        categories = [name for name, tag in BY_NAME.items() if tag.kind is Kind.CATEGORY]
        missing = [name for name in categories if name not in self.tags]
        if missing:
            raise ValueError(f"no vocabulary for {', '.join(missing)}")
        spare = sorted(set(self.tags) - set(categories))
        named = {*self.selection.irrelevant, *self.selection.redundant, *self.selection.redundant.values()}
        spare += sorted(named - set(BY_NAME))
        if spare:
            raise ValueError(f"{spare[0]!r} is no such tag; tags: {', '.join(BY_NAME)}")
        return self

    @property
    def label_classes(self) -> dict[str, tuple[str, ...]]:
        """Classes of the five categorical tags of a label file, in task order."""
        return {name: self.tags[name].names for name in CATEGORICAL}


def normalise(text: str) -> str:
    """Lower-case words with single spaces; hyphens, brackets and other marks count as spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[\W_]+", " ", folded).split())


def load_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a YAML file.

    Raises:
        ConfigError: no YAML, unknown keys, tags or classes that do not fit, or a raw value that means two things.
    """
    content = load_yaml(path)
    try:
        return Vocabulary.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        fix = "see `suites/exif/blades.yaml` for the layout"
        raise ConfigError(f"the vocabulary cannot be used: {first['msg']}", f"{path}, {place}", fix) from None

"""What a section of settings is, and how its fields are described, bounded and shown."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import inspect

from snooze.common.redaction import redact_options

Kind = inspect.Type


class Complaint(NamedTuple):
    """A value that is well formed but cannot be meant."""

    key: str
    """Inside the section, such as ``timeout_s`` or ``subnets[2]``."""
    message: str
    because_of: tuple[str, ...] = ()
    """Other keys of the section the complaint rests on."""


@dataclass(frozen=True)
class Doc:
    """What a field means; stands beside its bounds (``msgspec.Meta``) in the annotation."""

    text: str
    """For the commented files and the documentation."""
    form: str | None = None
    """What the field's pattern asks for, in words: "an absolute path"."""
    secret: bool = False
    """The value may contain a password and is never shown."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of settings: immutable, complete, and safe to print."""

    def complaints(self) -> Iterator[Complaint]:
        """What is wrong with these values together, each one being within its bounds."""
        return iter(())

    def shown(self) -> list[tuple[str, object]]:
        """The keys and their values, as they may be printed: secrets redacted."""
        values = [(info, getattr(self, info.key)) for info in fields_of(type(self))]
        return [
            (info.key, redact_options(str(value)) if info.doc.secret else value)
            for info, value in values
        ]

    __rich_repr__ = shown

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self.shown())
        return f"{type(self).__name__}({inside})"


class FieldInfo(NamedTuple):
    """One field of a section, as the reader and the documentation need it."""

    key: str
    annotation: object
    """What ``msgspec.convert`` takes: the type with its bounds."""
    kind: Kind
    """The same, taken apart."""
    choices: tuple[str, ...]
    """The values of a ``Literal`` (or of a list of it), in the order written; else empty."""
    default: object
    doc: Doc
    section: type[Section] | None
    """The type of the table under this key, or None if it is a value."""


_FIELDS: dict[type[Section], tuple[FieldInfo, ...]] = {}


def fields_of(section: type[Section]) -> tuple[FieldInfo, ...]:
    """The fields of a section, in the order they are written."""
    known = _FIELDS.get(section)
    if known is None:
        known = _FIELDS[section] = tuple(_describe(section))
    return known


def _describe(section: type[Section]) -> Iterator[FieldInfo]:
    defaults = section()
    for key, annotation in get_type_hints(section, include_extras=True).items():
        plain = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
        docs = [item for item in get_args(annotation)[1:] if isinstance(item, Doc)]
        kind = inspect.type_info(annotation)
        yield FieldInfo(
            key=key,
            annotation=annotation,
            choices=_choices(plain),
            kind=kind.type if isinstance(kind, inspect.Metadata) else kind,
            default=getattr(defaults, key),
            doc=docs[0] if docs else Doc(""),
            section=plain if isinstance(plain, type) and issubclass(plain, Section) else None,
        )


def _choices(annotation: object) -> tuple[str, ...]:
    if get_origin(annotation) is tuple:
        return _choices(get_args(annotation)[0])
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def leaves(
    section: type[Section], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every key below ``section`` that holds a value, with its path, in the order written."""
    for info in fields_of(section):
        if info.section is None:
            yield (*path, info.key), info
        else:
            yield from leaves(info.section, (*path, info.key))


def expectation(info: FieldInfo) -> str:
    """What a value must be, in words: "a whole number from 0 to 65535"."""
    if info.choices:
        words = [f'"{choice}"' for choice in info.choices]
        if isinstance(info.kind, inspect.VarTupleType):
            return f"a list of any of {', '.join(words)}"
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    return _expectation(info.kind, info.doc.form)


def _expectation(kind: Kind, form: str | None) -> str:
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "a whole number" + _range(kind)
        case inspect.FloatType():
            return "a number" + _range(kind)
        case inspect.StrType():
            return form or "text" + _length(kind.min_length, kind.max_length, "characters")
        case inspect.VarTupleType():
            length = _length(kind.min_length, kind.max_length, "elements")
            return f"a list of {_expectation(kind.item_type, form)}{length}"
        case inspect.DictType():
            key, value = (_expectation(item, None) for item in (kind.key_type, kind.value_type))
            return f"a table from {key} to {value}"
        case _:
            return "a table"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    low = f"from {kind.ge:g}" if kind.ge is not None else ""
    if kind.gt is not None:
        low = f"above {kind.gt:g}"
    high = f"to {kind.le:.15g}" if kind.le is not None else ""
    if high and kind.gt is not None:
        high = f"up to {kind.le:.15g}"
    return "".join(f" {part}" for part in (low, high) if part)


def _length(least: int | None, most: int | None, what: str) -> str:
    if least and most:
        return f" ({least} to {most} {what})"
    if least:
        return f" (at least {least} {what})"
    if most:
        return f" (at most {most} {what})"
    return ""

"""A `Config` from a YAML file and the command line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jsonargparse
import yaml

from .config import Config, MethodConfig


class ConfigProblem(ValueError):
    """A configuration that cannot be used; the message names the key, what came and what is
    accepted."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a YAML file, changed by `overrides`.

    What neither names has its default, which for the section "method" is the published value of the
    method that is named (`MethodConfig.published`).

    Args:
        path: a file whose top level is a mapping of sections: data, teacher, student, ...
        overrides: words of a command line, "--section.key value" or "--section.key=value"; values
            are read as in YAML. The last of several for one key holds.

    Raises ConfigProblem.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigProblem(f"cannot read {path}: {reason}") from error
    content = _yaml(text, str(path))
    if not isinstance(content, dict):
        raise ConfigProblem(
            f"{path} must be a mapping of {', '.join(_sections())}, got {type(content).__name__}"
        )
    try:
        sections = _checked_sections(content)
    except ConfigProblem as problem:
        raise ConfigProblem(f"{path}: {problem}") from problem
    for key, value in _parse_overrides(overrides):
        section, _, name = key.partition(".")
        _check_name(section, _sections(), "")
        if not name:
            raise ConfigProblem(f"--{section} is a section; give a key of it, as --{section}.name")
        _check_name(name, _keys(section), f"{section}.")
        sections[section][name] = value
    return _build(sections)


def to_yaml(config: Config) -> str:
    """The text of a file that `load_config` reads as `config`."""
    plain = _plain(asdict(config))
    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key that comes twice, where PyYAML keeps the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigProblem(f"{key!r} comes twice in one section, again in line {line}")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except ConfigProblem as problem:
        raise ConfigProblem(f"{source}: {problem}") from problem
    except yaml.YAMLError as error:
        raise ConfigProblem(f"{source} is no YAML: {error}") from error


def _sections() -> list[str]:
    return [field.name for field in fields(Config)]


def _keys(section: str) -> list[str]:
    kind = get_type_hints(Config)[section]
    assert is_dataclass(kind)
    return [field.name for field in fields(kind)]


def _check_name(name: str, known: Sequence[str], prefix: str) -> None:
    if name in known:
        return
    for section in _sections() if prefix else []:
        if name in _keys(section):  # the right key in the wrong section
            raise ConfigProblem(f"{prefix}{name} is unknown; did you mean {section}.{name}?")
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known)}"
    raise ConfigProblem(f"{prefix}{name} is unknown; {hint}")


def _checked_sections(content: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {section: {} for section in _sections()}
    for section, values in content.items():
        _check_name(str(section), _sections(), "")
        if values is None:
            continue  # a heading without entries
        if not isinstance(values, dict):
            raise ConfigProblem(
                f"{section} must be a mapping of {', '.join(_keys(section))}, got {values!r}"
            )
        for name, value in values.items():
            _check_name(str(name), _keys(section), f"{section}.")
            sections[section][name] = value
    return sections


def _parse_overrides(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ConfigProblem(f"expected --section.key value, got {word!r}")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not rest:
                raise ConfigProblem(f"--{key} needs a value")
            text = rest.pop(0)
        yield key, _yaml(text, f"--{key}")


@cache
def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", type=Config)
    return parser


def _build(sections: Mapping[str, Mapping[str, Any]]) -> Config:
    kinds = get_type_hints(Config)
    for section, values in sections.items():
        hints = get_type_hints(kinds[section])
        for name, value in values.items():
            _check_choice(f"{section}.{name}", hints[name], value)
    name = sections["method"].get("name", MethodConfig().name)
    defaults = asdict(Config(method=MethodConfig.published(name)))
    content = {key: {**defaults[key], **values} for key, values in sections.items()}
    parser = _parser()
    try:
        config = parser.instantiate(parser.parse_object({"config": content})).config
    except jsonargparse.ArgumentError as error:
        found = re.search(r'"config\.(\w+)\.(\w+)', str(error))
        if found is None:
            raise ConfigProblem(str(error)) from error
        section, key = found.groups()
        kind = _described(get_type_hints(kinds[section])[key])
        raise ConfigProblem(
            f"{section}.{key} must be {kind}, got {content[section][key]!r}"
        ) from error
    except ValueError as error:
        raise ConfigProblem(str(error)) from error
    assert isinstance(config, Config)
    return config


_WORDS = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    type(None): ("null", "nulls"),
}


def _described(hint: Any, place: int = 0) -> str:
    """A type as the reader of a YAML file would call it; place 1: the plural."""
    arguments = get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint][place]
    if get_origin(hint) is Literal:
        return ", ".join(arguments)
    if get_origin(hint) is tuple:
        count = "" if arguments[-1] is ... else f"{len(arguments)} "
        return f"a list of {count}{_described(arguments[0], 1)}"
    return " or ".join(_described(argument, place) for argument in arguments)


def _check_choice(key: str, hint: Any, value: Any) -> None:
    """Refuse what is no choice of a Literal, and a missing value."""
    if value is None and type(None) not in get_args(hint):
        raise ConfigProblem(f"{key} has no value; leave the key out for its default")
    if get_origin(hint) is not Literal or value in get_args(hint):
        return
    choices = [str(choice) for choice in get_args(hint)]
    near = difflib.get_close_matches(str(value), choices, 1, 0.5)
    hint_text = f"; did you mean {near[0]}?" if near else ""
    raise ConfigProblem(f"{key} must be one of {', '.join(choices)}, got {value!r}{hint_text}")

"""Flags as people write them, brought to the form the parser takes; its complaints in one sentence."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_origin, get_type_hints

from cma_tune.errors import UserError, nearest, typed

SPELLINGS = {
    "shot": "shots",
    "seed": "seeds",
    "weight": "weights",
    "cma_weight": "weights",
    "cma_weights": "weights",
    "template": "templates",
}
"""Other spellings of flags."""

SENTENCES = {"templates", "images"}
"""List options whose entries may hold commas: one entry per use of the flag."""


def options(config: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every option of a config and its type, nested ones with their path: ``optim.lr``."""
    hints = get_type_hints(config)
    for entry in fields(config):
        kind = hints[entry.name]
        if isinstance(kind, type) and is_dataclass(kind):
            yield from options(kind, f"{prefix}{entry.name}.")
        yield f"{prefix}{entry.name}", kind


def normalize(
    arguments: Sequence[str], config: type, command: str, positional: str | None = None
) -> list[str]:
    """Dashes in names to underscores, ``1,2,4`` to lists, switches without a value to true.

    Args:
        arguments: as typed, without the command.
        config: dataclass of the command.
        command: its name, for messages.
        positional: options that arguments without a name belong to, if any: one name, or several in order
            with spaces between.

    Raises:
        UserError: a value stands where an option should, an option has none, or two spellings of one option
            are given.
    """
    kinds: dict[str, Any] = dict(options(config))
    result: list[str] = []
    loose: list[str] = []
    spelt: dict[str, str] = {}
    switch = None  # the option just before, if it is one without a value
    queue = deque(arguments)
    while queue:
        token = queue.popleft()
        if not token.startswith("--"):
            # A short option such as -h is the parser's to know or refuse; a lone dash is standard input.
            short = token.startswith("-") and token != "-" and not _is_number(token)
            if switch and not short and positional is None:
                raise UserError(f"Expected true or false after {switch}, got '{token}'.")
            (result if short else loose).append(token)
            switch = None
            continue
        switch = None
        flag, equals, value = token.partition("=")
        name = flag[2:].replace("-", "_")
        name = SPELLINGS.get(name, name)
        if spelt.setdefault(name, flag) != flag and name not in SENTENCES:
            raise UserError(f"Expected one of {spelt[name]} and {flag}, which are the same, got both.")
        if name.startswith("no_") and kinds.get(name[3:]) is bool and not equals:
            result.append(f"--{name[3:]}=false")
        elif name not in kinds:
            result += [f"--{name}{equals}{value}", *_stray_value(name, equals, queue)]
        else:
            before = len(queue)
            value = value if equals else _next_value(flag, kinds[name], queue, command)
            switch = flag if kinds[name] is bool and not equals and len(queue) == before else None
            result += _assignment(name, value, kinds[name])
    return result + _positional(loose, positional, kinds, command)


def _stray_value(name: str, equals: str, queue: deque[str]) -> list[str]:
    """The value of --config, or of an option that does not exist, goes along with it."""
    if equals or name in ("help", "print_config") or not queue or queue[0].startswith("--"):
        return []
    return [queue.popleft()]


def _next_value(flag: str, kind: Any, queue: deque[str], command: str) -> str:
    if kind is bool:
        return queue.popleft() if queue and queue[0].lower() in ("true", "false", "yes", "no") else "true"
    if not queue or queue[0].startswith("--"):
        raise UserError(f"Expected a value after {flag}, got none; see 'cma-tune {command} --help'.")
    return queue.popleft()


def _positional(loose: list[str], positional: str | None, kinds: dict[str, Any], command: str) -> list[str]:
    if not loose:
        return []
    if positional is None:
        raise UserError(
            f"Expected options like --output FOLDER, got '{loose[0]}' without one; "
            f"see 'cma-tune {command} --help'."
        )
    names = positional.split()
    if get_origin(kinds[names[0]]) is list:
        return [f"--{names[0]}={json.dumps(loose)}"]
    if len(loose) > len(names):
        raise UserError(f"Expected one {' and one '.join(names)}, got {len(loose)}: {', '.join(loose)}.")
    return [f"--{name}={value}" for name, value in zip(names, loose, strict=False)]


def _assignment(name: str, value: str, kind: Any) -> list[str]:
    is_list = get_origin(kind) is list
    if is_list and not value.startswith("["):
        if name in SENTENCES:
            return [f"--{name}+={value}"]
        value = f"[{value}]"
    return [f"--{name}={value}"]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list such as [a, b]",
}


def _wrong_value(name: str, complaint: str) -> str | None:
    """What an option of one or several types takes and what came; None if the complaint says neither."""
    given = re.search(r"G(?:ot|iven) value: (.*)$", complaint)
    words = re.findall(r"[\w-]+", " ".join(re.findall(r"Literal\[([^]]*)\]", complaint)))
    kinds = re.findall(r"Expected a <class '(\w+)'>", complaint)
    wanted = [WANTED[kind] for kind in dict.fromkeys(kinds) if kind in WANTED]
    words = list(dict.fromkeys(words))
    if words:
        wanted.append(f"one of {', '.join(words)}" if len(words) > 1 else words[0])
    if given is None or not wanted:
        return None
    quoted = " (put it in quotes)" if wanted == [WANTED["str"]] else ""  # numbers and true in YAML
    return f"Expected {' or '.join(wanted)} for {name}, got '{given[1]}'{quoted}{nearest(given[1], words)}."


def _group(name: str, complaint: str, config: type) -> str | None:
    """What to write where a value was given to a whole group of options; None if `name` is no group."""
    members = [option for option, _ in options(config) if option.startswith(f"{name}.")]
    if not members:
        return None
    given = re.search(r"config ['\"](.*?)['\"]|G(?:ot|iven) value: (.*)$", complaint)
    got = f", got '{given[1] or given[2]}' for all of --{name}" if given else ""
    return f"Expected one option of a group, such as --{members[0]}{got}; name the one that is meant."


def check_groups(parsed: Any, config: type) -> None:
    """Check that every group of options holds options, since the parser lets a file give it one value.

    Args:
        parsed: the parser's namespace.
        config: dataclass of the command.

    Raises:
        UserError: a group is one value.
    """
    groups = (entry.name for entry in fields(config) if is_dataclass(get_type_hints(config)[entry.name]))
    for name in groups:
        value = parsed[name]
        if not hasattr(value, "__dict__"):
            raise UserError(str(_group(name, f"Got value: {value}", config)))


def one_sentence(message: str, config: type, command: str, positional: str | None = None) -> str:
    """The parser's complaint in one sentence, with the nearest option where one is unknown.

    Args:
        message: the parser's.
        config, command, positional: see `normalize`.
    """

    def called(name: str) -> str:
        return name.upper() if name in (positional or "").split() else f"--{typed(name)}"

    known = [name for name, _ in options(config)]
    see = f"see 'cma-tune {command} --help'."
    unknown = re.search(r"[Uu]nrecognized arguments: (?:--)?([^\s=]+)", message)
    if unknown:
        name = unknown.group(1)
        near = nearest(name, known).replace("'", "'--", 1)
        return f"Expected options of '{command}', got --{typed(name)}{typed(near)}; {see}"
    key = re.search(r"[Oo]ption ['\"]([\w.]+)['\"] is not (?:accepted|expected)", message)
    if key:
        name = key.group(1)
        group = re.search(r"[Pp]arser key ['\"]([\w.]+)['\"]", message)
        path = f"{group.group(1)}.{name}" if group and group.group(1) in known else name
        return f"Expected keys of '{command}' in its config, got '{path}'{nearest(path, known)}; {see}"
    inner = re.search(r"[Gg]roup '([\w.]+)' does not accept option '([\w.]+)'", message)
    if inner:
        path = f"{inner.group(1)}.{inner.group(2)}"
        return f"Expected keys of '{command}' in its config, got '{path}'{nearest(path, known)}; {see}"
    missing = re.search(r"[Kk]ey ['\"]([\w.]+)['\"] is required|required.*?: *-*([\w.]+)", message)
    if missing:
        return f"Expected {called(missing.group(1) or missing.group(2))} for '{command}', got none; {see}"
    text = re.sub(r"\s+", " ", message).strip().rstrip(".")
    if text.startswith("Problems parsing config:"):
        return f"Expected YAML in the file of --config, but{text.partition(':')[2]}."
    value = re.match(r"(?:Parser key|Key) \"([\w.]+)\": ?(.*)", text)
    if value:
        sentence = _group(value[1], value[2], config) or _wrong_value(called(value[1]), value[2])
        return sentence or f"Expected a valid value for {called(value[1])}: {value[2]}."
    return text + "."

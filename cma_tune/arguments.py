"""Flags as people write them, brought to the form the parser takes; its complaints in one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from cma_tune.errors import UserError, nearest

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

    Raises:
        UserError: a value stands where an option should.
    """
    kinds: dict[str, Any] = dict(options(config))
    result: list[str] = []
    loose: list[str] = []
    queue = list(arguments)
    while queue:
        token = queue.pop(0)
        if not token.startswith("--") or token == "--":
            if token.startswith("-") and len(token) > 1 and not _is_number(token):
                result.append(token)  # -h, or a short option the parser will name as unknown
            else:
                loose.append(token)
            continue
        flag, equals, value = token.partition("=")
        name = flag[2:].replace("-", "_")
        name = SPELLINGS.get(name, name)
        if name.startswith("no_") and kinds.get(name[3:]) is bool and not equals:
            result.append(f"--{name[3:]}=false")
            continue
        if name not in kinds:
            result.append(f"--{name}{equals}{value}")
            # The value of --config, or of a flag that does not exist, goes along with it.
            if not equals and queue and not queue[0].startswith("--") and name not in ("help", "print_config"):
                result.append(queue.pop(0))
            continue
        if kinds[name] is bool and not equals:
            has_value = bool(queue) and queue[0].lower() in ("true", "false", "yes", "no")
            value = queue.pop(0) if has_value else "true"
        elif not equals:
            if not queue or (queue[0].startswith("--")):
                raise UserError(f"Expected a value after {flag}, got none; see 'cma-tune {command} --help'.")
            value = queue.pop(0)
        result += _assignment(name, value, kinds[name])
    if loose and positional is None:
        raise UserError(
            f"Expected options like --dataset NAME, got '{loose[0]}' without one; see 'cma-tune {command} --help'."
        )
    if loose:
        assert positional is not None
        if get_origin(kinds[positional]) is list:
            result.append(f"--{positional}={json.dumps(loose)}")
        elif len(loose) > 1:
            raise UserError(f"Expected one {positional}, got {len(loose)}: {', '.join(loose)}.")
        else:
            result.append(f"--{positional}={loose[0]}")
    return result


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


def one_sentence(message: str, config: type, command: str) -> str:
    """The parser's complaint in one sentence, with the nearest option where one is unknown."""
    known = [name for name, _ in options(config)]
    unknown = re.search(r"[Uu]nrecognized arguments: (--)?([^\s=]+)", message)
    if unknown:
        name = unknown.group(2)
        return (
            f"Expected options of '{command}', got --{name}{nearest(name, known)}; "
            f"see 'cma-tune {command} --help'."
        )
    key = re.search(r"(?:Option|Key|key) ['\"]([\w.]+)['\"] is not (?:accepted|expected)", message)
    if key:
        name = key.group(1)
        group = re.search(r"[Pp]arser key ['\"]([\w.]+)['\"]", message)
        path = f"{group.group(1)}.{name}" if group and group.group(1) in known else name
        return f"Expected config keys of '{command}', got '{path}'{nearest(path, known)}; mend the config file."
    missing = re.search(r"[Kk]ey ['\"]([\w.]+)['\"] is required|required.*?: *-*([\w.]+)", message)
    if missing:
        return f"Expected {missing.group(1) or missing.group(2)} for '{command}', got none; see 'cma-tune {command} --help'."
    text = re.sub(r"\s+", " ", message).strip().rstrip(".")
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    value = re.match(r"(?:Parser key|Key) \"([\w.]+)\": ?(.*)", text)
    if value:
        return f"Expected a valid value for --{value.group(1)}: {value.group(2)}."
    return text + "."

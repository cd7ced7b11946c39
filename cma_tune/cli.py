"""The command line. Nothing heavy is imported before a command that needs it is known to be well-formed."""

from __future__ import annotations

import logging
import os
import re
import sys
from argparse import SUPPRESS, Action, HelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from cma_tune.commands import COMMANDS
from cma_tune.companion_options import SupervisedConfig
from cma_tune.companion_run import method_name, unread_entries
from cma_tune.config import FewShotConfig
from cma_tune.errors import UserError, nearest, typed
from cma_tune.messages import plain_messages
from cma_tune.method_facts import unread_options

log = logging.getLogger(__name__)

EPILOG = """examples:
  cma-tune quickstart
  cma-tune few-shot --dataset folder:./flowers --backbone RN50-quickgelu --pretrained openai --shots 1,4
  cma-tune few-shot --config configs/few_shot/cma_rn50.yaml --dataset dtd --data-root ~/data --seeds 1,2,3
  accelerate launch --num_processes 2 -m cma_tune base-to-novel --dataset shapes --weights 0,0.1,0.5
  cma-tune report runs --format markdown
"""

CATALOG_HELP = "Every command takes --catalog FILE.yaml: datasets of your own by name."

CATALOG_VARIABLE = "CMA_TUNE_CATALOG"
"""Names the YAML file of own datasets; `cma_tune.data.own_catalog` reads it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake prints one sentence and exits with 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(arguments)
    except UserError as error:
        # Under several processes all of them find the mistake; one says it.
        if os.environ.get("RANK", "0") == "0":
            print(f"cma-tune: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("cma-tune: interrupted; the same command goes on where it stopped", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone, as in `cma-tune report | head`
        raise SystemExit(141) from None


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("cma_tune"))
        return
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise UserError(
            f"Expected a command out of {', '.join(COMMANDS)}, got '{name}'{nearest(name, COMMANDS)}."
        )
    config = parse(name, _without_catalog(rest))
    # Tensors cross process borders in training; their own warnings about forking are noise here.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with plain_messages():
        _warn_of_unread(config)
        config = _without_unused_weights(config)
        COMMANDS[name].run(config)


def _warn_of_unread(config: object) -> None:
    """A forgotten --learner must not pass for the method that an option belongs to."""
    if os.environ.get("RANK", "0") != "0":
        return
    if isinstance(config, FewShotConfig):
        _warn_of_choices(config)
        what, unread = f"--learner {config.learner}", unread_options(config, config.learner)
    elif isinstance(config, SupervisedConfig):
        what, unread = f"this training ({method_name(config)})", unread_entries(config)
    else:
        return
    if unread:
        log.warning("nothing of %s is changed by %s", what, ", ".join(f"--{typed(name)}" for name in unread))


def _warn_of_choices(config: FewShotConfig) -> None:
    """What is allowed, and hardly meant."""
    if config.optim.steps_per_shot is not None and config.optim.epochs is not None:
        log.warning("--optim.steps-per-shot takes the place of --optim.epochs, which changes nothing")
    if config.learner == "linear_probe" and any(weight != 0 for weight in config.weights):
        log.warning(
            "the CMA loss spoils linear_probe, whose rows start at zero and have no direction to align yet; "
            "--learner linear_probe_text starts from the class names"
        )
    if config.learner == "lp_plus_plus" and (config.train_features != "stored" or config.views):
        log.warning(
            "lp_plus_plus takes its start and its steps from one feature an image, and crops change what it "
            "is trained on: --train-features stored without --views is what they are for"
        )
    context = config.context
    if context.words is not None and context.tokens != type(context)().tokens:
        log.warning("--context.words brings its own tokens: nothing is changed by --context.tokens")


def _without_unused_weights(config: Any) -> Any:
    """A backbone that brings its weights is the same one with or without a tag of other weights beside it."""
    beside = [name for name in ("pretrained", "model_config") if getattr(config, name, None) is not None]
    if not beside:
        return config
    from cma_tune.clip.sources import brings_weights

    if not brings_weights(config.backbone):
        return config
    if os.environ.get("RANK", "0") == "0":
        flags = ", ".join(f"--{typed(name)}" for name in beside)
        log.warning(
            "--backbone %s brings its own weights: nothing of it is changed by %s", config.backbone, flags
        )
    return replace(config, **dict.fromkeys(beside))


def _without_catalog(arguments: list[str]) -> list[str]:
    """Take ``--catalog FILE`` out, which every command knows, and leave it where started processes see it."""
    rest: list[str] = []
    queue = iter(arguments)
    for token in queue:
        flag, equals, value = token.partition("=")
        if flag != "--catalog":
            rest.append(token)
            continue
        value = value if equals else next(queue, "")
        if not value or value.startswith("--"):
            raise UserError("Expected a file after --catalog, got none; name a YAML file of datasets.")
        os.environ[CATALOG_VARIABLE] = os.path.abspath(os.path.expanduser(value))
    return rest


def _help() -> str:
    about = {name: (command.config.__doc__ or "").splitlines()[0] for name, command in COMMANDS.items()}
    lines = ["usage: cma-tune COMMAND [options]", "", "Adapt CLIP with few labels.", "", "commands:"]
    lines += [
        _two_columns(about),
        "",
        "'cma-tune COMMAND --help' lists its options, '--print-config' prints them as YAML.",
        CATALOG_HELP,
        "",
        EPILOG,
    ]
    return "\n".join(lines).rstrip()


def _two_columns(about: Mapping[str, str]) -> str:
    width = max(map(len, about))
    return "\n".join(f"  {name:{width}}  {what}" for name, what in about.items())


def _about(action: Action) -> str:
    """What an option takes, in one line, without its type's name."""
    text = re.sub(r" \((required, )?type: .*", "", " ".join((action.help or "").split()))
    choices = action.metavar if isinstance(action.metavar, str) else ""
    if not choices.startswith("{"):
        return text
    return f"{text.rstrip('.')}: {', '.join(choices.strip('{}').split(','))}"


def parse(name: str, arguments: Sequence[str]) -> Any:
    """The config of a command from flags and YAML files.

    Raises:
        UserError: an option or key is unknown, or a value is of the wrong kind.
    """
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    from cma_tune.arguments import check_groups, normalize, one_sentence

    command = COMMANDS[name]

    class Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the lines of the description."""

    class Parser(ArgumentParser):
        def format_help(self, formatter: HelpFormatter | None = None) -> str:
            return re.sub(r"--[a-z][\w.]*", lambda flag: typed(flag[0]), super().format_help(formatter))

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UserError(one_sentence(message, command.config, name, command.positional))

    parser = Parser(
        prog=f"cma-tune {name}",
        description=(command.config.__doc__ or "").splitlines()[0],
        epilog=CATALOG_HELP,
        formatter_class=Formatter,
    )
    parser.add_argument("--config", action="config", help="YAML file; flags after it override it")
    parser.add_class_arguments(command.config, None, as_group=False)
    if command.positional is not None:
        about = {}
        for action in parser._actions:
            if action.dest in command.positional.split():
                about[action.dest.upper()] = _about(action)
                action.help = SUPPRESS  # it is shown as it is typed
        parser.usage = f"cma-tune {name} {command.words or ' '.join(about)} [options]"
        parser.description = f"{parser.description}\n\narguments:\n{_two_columns(command.about or about)}"
    if command.choice is not None:
        parser.set_defaults({command.choice: None})
    parsed = parser.parse_args(normalize(arguments, command.config, name, command.positional))
    check_groups(parsed, command.config)
    values = dict(vars(parser.instantiate(parsed)))
    values.pop("config", None)
    if command.choice is not None and values[command.choice] is None:
        wanted = command.choice.upper()
        raise UserError(f"Expected {wanted} after 'cma-tune {name}', got none; see 'cma-tune {name} --help'.")
    return command.config(**values)

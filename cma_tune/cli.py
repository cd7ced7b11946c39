"""The command line. Nothing heavy is imported before a command that needs it is known to be well-formed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Optional

from cma_tune.config import BaseToNovelConfig, FeaturesConfig, FewShotConfig, ZeroShotConfig
from cma_tune.errors import UserError, nearest


@dataclass
class ReportConfig:
    """Tables and figures from the records below a folder.

    Attributes:
        folder: folder with records.
        format: of the table.
        figures: folder for the figures; by default the records' folder.
    """

    folder: str
    format: Literal["text", "csv", "markdown", "latex"] = "text"
    figures: Optional[str] = None  # noqa: UP045


@dataclass
class PredictConfig:
    """Labels with probabilities for images, from a learned prompt.

    Attributes:
        images: image files.
        prompt: folder of the learned prompt.
        classes: file with class names, one a line; by default the names it was learned on.
        top: labels per image.
    """

    images: list[str]
    prompt: str
    classes: Optional[str] = None  # noqa: UP045
    top: int = 5


@dataclass
class WordsConfig:
    """Nearest words of a prompt's learned tokens.

    Attributes:
        prompt: folder of the learned prompt.
        count: words per token.
    """

    prompt: str
    count: int = 5


@dataclass
class QuickstartConfig:
    """The whole line on embedded data in about a minute: runs, table, figures.

    Attributes:
        output: folder of the results.
    """

    output: str = "runs/quickstart"


@dataclass(frozen=True)
class Command:
    """One subcommand: what it takes, what it does, how its positional argument is called."""

    config: type
    run: Callable[[Any], None]
    positional: str | None = None


def _zero_shot(config: ZeroShotConfig) -> None:
    from cma_tune.protocols.zero_shot import zero_shot

    zero_shot(config)


def _few_shot(config: FewShotConfig) -> None:
    from cma_tune.protocols.few_shot import few_shot

    few_shot(config)


def _base_to_novel(config: BaseToNovelConfig) -> None:
    from cma_tune.protocols.base_to_novel import base_to_novel

    base_to_novel(config)


def _features(config: FeaturesConfig) -> None:
    from cma_tune.protocols.features import features

    features(config)


def _report(config: ReportConfig) -> None:
    from cma_tune.report import report

    report(config.folder, config.format, config.figures)


def _predict(config: PredictConfig) -> None:
    from cma_tune.predict import predict

    predict(config.images, config.prompt, config.classes, config.top)


def _words(config: WordsConfig) -> None:
    from cma_tune.predict import words

    words(config.prompt, config.count)


def _quickstart(config: QuickstartConfig) -> None:
    from cma_tune.protocols.quickstart import quickstart

    quickstart(config.output)


COMMANDS: dict[str, Command] = {
    "zero-shot": Command(ZeroShotConfig, _zero_shot),
    "few-shot": Command(FewShotConfig, _few_shot),
    "base-to-novel": Command(BaseToNovelConfig, _base_to_novel),
    "features": Command(FeaturesConfig, _features, "action"),
    "report": Command(ReportConfig, _report, "folder"),
    "predict": Command(PredictConfig, _predict, "images"),
    "words": Command(WordsConfig, _words),
    "quickstart": Command(QuickstartConfig, _quickstart),
}

EPILOG = """examples:
  cma-tune quickstart
  cma-tune few-shot --dataset folder:./flowers --backbone RN50-quickgelu --pretrained openai --shots 1,4
  cma-tune few-shot --config configs/few_shot/cma_rn50.yaml --dataset dtd --data-root ~/data --seeds 1,2,3
  accelerate launch --num_processes 2 -m cma_tune base-to-novel --dataset shapes --weights 0,0.1,0.5
  cma-tune report runs --format markdown
"""


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
    config = parse(name, rest)
    # Tensors cross process borders in training; their own warnings about forking are noise here.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    COMMANDS[name].run(config)


def _help() -> str:
    lines = ["usage: cma-tune COMMAND [options]", "", "Adapt CLIP with few labels.", "", "commands:"]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:14} {(command.config.__doc__ or '').splitlines()[0]}")
    lines += [
        "",
        "'cma-tune COMMAND --help' lists its options, '--print_config' prints them as YAML.",
        "",
        EPILOG,
    ]
    return "\n".join(lines).rstrip()


def parse(name: str, arguments: Sequence[str]) -> Any:
    """The config of a command from flags and YAML files.

    Raises:
        UserError: an option or key is unknown, or a value is of the wrong kind.
    """
    from jsonargparse import ArgumentParser

    from cma_tune.arguments import normalize, one_sentence

    command = COMMANDS[name]

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UserError(one_sentence(message, command.config, name))

    parser = Parser(prog=f"cma-tune {name}", description=(command.config.__doc__ or "").splitlines()[0])
    parser.add_argument("--config", action="config", help="YAML file; flags after it override it")
    parser.add_class_arguments(command.config, None, as_group=False)
    parsed = parser.parse_args(normalize(arguments, command.config, name, command.positional))
    values = dict(vars(parser.instantiate(parsed)))
    values.pop("config", None)
    return command.config(**values)

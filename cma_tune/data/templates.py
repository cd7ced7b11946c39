"""Prompt templates: what they have to look like."""

from __future__ import annotations

from collections.abc import Iterable

from cma_tune.errors import UserError


def check_templates(templates: Iterable[str], whose: str = "") -> None:
    """Check prompt templates: one ``{}`` each, for the class name, and no other braces.

    Args:
        templates: the templates.
        whose: where they come from, for the message, such as " of 'birds' in own.yaml".

    Raises:
        UserError: naming the first template of another form.
    """
    for template in templates:
        if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
            raise UserError(
                f"Expected one '{{}}' for the class name and no other braces in a template{whose}, "
                f"got '{template}'; write it like 'a photo of a {{}}.'."
            )

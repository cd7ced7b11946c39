"""What a text needs before it stands in Markdown or LaTeX."""

from __future__ import annotations


def markdown_escaped(text: str) -> str:
    """`text` as it reads in Markdown's own words, signs that mean something there escaped."""
    return "".join(f"\\{character}" if character in "\\|*_`<[]" else character for character in text)


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "λ": r"$\lambda$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "√": r"$\surd$",
    "–": "--",
    "−": r"$-$",
}


def latex_escaped(text: str) -> str:
    """`text` for LaTeX with the package textcomp, in ASCII but for letters of other scripts."""
    # A line may not break before a sign of per cent.
    return "".join(_LATEX.get(character, character) for character in text).replace(r" \%", r"~\%")

"""How the commands print sequences as the model sees them, with the tokens that the loss is computed on set off."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from harness.core.records import SeenSequence
from harness.core.terminal import visible

# How the tokens that the loss is computed on are set off: with marks, or without.
SET_OFF = {True: " (trained on: what is between ⟦ and ⟧)", False: " (trained on: what is bold and underlined)"}


def sequence_parts(
    sequences: Sequence[SeenSequence], *, marked: bool, longest: int | None = None
) -> Iterable[RenderableType]:
    """Yield sequences. Style or (`marked`) brackets set off the tokens that the loss is computed on.

    Of a part with more than `longest` characters, the middle is left out.
    """
    for number, sequence in enumerate(sequences, start=1):
        about = f"{sequence.role}: {sequence.tokens} tokens, {sequence.trained} trained on"
        yield Text(visible(f"\n{number}  {about}"), style="cyan")
        parts = [(_shortened(part.text, longest), part.trained) for part in sequence.parts]
        if marked:  # not wrapped, so that a file holds exactly what the model sees
            yield Text("".join(f"⟦{_unmarked(part)}⟧" if of_loss else _unmarked(part) for part, of_loss in parts))
        else:
            styled = [(visible(part), "bold underline" if of_loss else "dim") for part, of_loss in parts]
            yield Padding(Text.assemble(*styled), (0, 0, 0, 2), expand=False)


def _shortened(text: str, longest: int | None) -> str:
    if longest is None or len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} (... {len(text) - 2 * half:,} characters ...) {text[-half:]}"


def _unmarked(text: str) -> str:
    """Return visible text whose own ⟦ and ⟧ are escaped, so that they cannot be mistaken for marks."""
    return re.sub("[⟦⟧]", lambda bracket: f"\\u{ord(bracket.group()):04x}", visible(text))

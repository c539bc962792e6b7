"""Writes the cards of the published models: NAME.md for every entry of cards.yaml.

    python model_cards/make.py

Texts are in cards.yaml, figures in `kakao_models.evaluate.published`. The card of align-small lies beside its weights; its figures
are filled in by `examples/evaluate_align_small.py`.
"""

from pathlib import Path

import yaml

from kakao_models.conversion.card import Card
from kakao_models.evaluate.published import PUBLISHED

FOLDER = Path(__file__).parent


def cards() -> dict[str, str]:
    """name → the text of its card."""
    entries = yaml.safe_load((FOLDER / "cards.yaml").read_text(encoding="utf-8"))
    return {name: _card(**entry).render(name) for name, entry in entries.items()}


def _card(published: list[str], note: str | None = None, in_transformers: bool = True, **fields) -> Card:
    figures = [figure for figure in PUBLISHED if figure.model in published and note in (None, figure.note)]
    return Card(published=figures, in_transformers=in_transformers, **fields)


def main() -> None:
    for name, text in cards().items():
        (FOLDER / f"{name}.md").write_text(text, encoding="utf-8")
        print(FOLDER / f"{name}.md")


if __name__ == "__main__":
    main()

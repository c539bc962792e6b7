import numpy as np
import pytest
import tiny
from PIL import ImageColor, ImageDraw, ImageFont

from kakao_models.inference import picture
from kakao_models.inference.picture import draw_files, draw_scores

RESULT = [{"score": 0.75, "label": "cat"}, {"score": 0.25, "label": "dog"}, {"score": 0.0, "label": "car"}]


def lengths(image, color: str) -> list[int]:
    """Widths of the bars of this colour, from top to bottom, to the pixel."""
    rows = (np.abs(np.asarray(image).astype(int) - ImageColor.getrgb(color)).max(-1) <= 2).sum(1)
    starts = [at for at in range(1, len(rows)) if rows[at] > 20 and rows[at - 1] <= 20]
    return [int(rows[start : start + 6].max()) for start in starts]


def test_bars_are_as_long_as_scores():
    image = draw_scores([("cat.jpg", tiny.picture(0), RESULT)])
    assert lengths(image, picture.BEST) == [pytest.approx(0.75 * picture.BARS, abs=3)]
    assert lengths(image, picture.OTHER) == [pytest.approx(0.25 * picture.BARS, abs=3)]


def test_photos_are_laid_out_in_a_grid():
    one, nine = (draw_scores([("a", tiny.picture(0), RESULT)] * count) for count in (1, 9))
    card = one.width - picture.PAD, one.height - picture.PAD
    assert nine.size == (3 * card[0] + picture.PAD, 3 * card[1] + picture.PAD)
    assert draw_scores([("a", tiny.picture(0), RESULT)] * 50).height == 10 * card[1] + picture.PAD  # the first thirty
    assert np.asarray(one)[picture.PAD + 60, picture.PAD + 60].tolist() != [255, 255, 255]


def test_any_label_can_be_drawn():
    labels = ["x" * 500, "café", "고양이", "", "🐈"]
    result = [{"score": 0.2, "label": label} for label in labels]
    plain = draw_scores([("a", tiny.picture(0), [{"score": 0.2, "label": ""}] * 5)])
    image = draw_scores([("a", tiny.picture(0), result)])
    changed = np.abs(np.asarray(image).astype(int) - np.asarray(plain)).max((1, 2)) > 50
    top = picture.PAD * 2 + 28
    assert changed[top : top + 20].any() and changed[top + picture.ROW : top + picture.ROW + 20].any()
    right = picture.PAD + picture.PHOTO + 2 * picture.PAD + picture.BARS  # a long label stops before its percentage
    assert (np.asarray(image)[top : top + 18, right + 1 :] == np.asarray(plain)[top : top + 18, right + 1 :]).all()


def test_files_without_results_are_left_out(tmp_path):
    paths = [str(path) for path in tiny.picture_folder(tmp_path / "photos", 2)]
    draw_files(tmp_path / "out.png", [*paths, "absent.png"], [*paths, "absent.png"], [RESULT, RESULT, None])
    assert (tmp_path / "out.png").stat().st_size > 1000
    draw_files(tmp_path / "none.png", ["absent.png"], ["absent.png"], [None])
    assert not (tmp_path / "none.png").exists()
    with pytest.raises(ValueError, match="got no images"):
        draw_scores([])


def test_texts_that_do_not_fit_a_line(monkeypatch):
    drawn, measured = [], []
    getlength = ImageFont.FreeTypeFont.getlength
    monkeypatch.setattr(
        ImageFont.FreeTypeFont, "getlength", lambda self, text: measured.append(len(text)) or getlength(self, text)
    )
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, at, text, **kwargs: drawn.append(text))
    draw_scores([("two\nlines", tiny.picture(0), [{"score": 0.5, "label": "x" * 100_000}])])
    assert drawn[0] == "two lines" and drawn[1].endswith("x...") and len(drawn[1]) < 100
    assert max(measured) < 1000  # each letter less is measured again

"""Pictures of hits: where an index says they are, and nowhere that they must not be."""

import image_tables as tables
import pytest
import tiny

from kakao_models.pixels.images import ImageError, load_image
from kakao_models.search import Hit, hit_picture, pictures
from kakao_models.search.results import hits_page


@pytest.fixture
def shown(tmp_path):
    (tmp_path / "shown").mkdir()
    tiny.picture(1).save(tmp_path / "shown" / "a.png")
    tiny.picture(2).save(tmp_path / "secret.png")
    (tmp_path / "shown" / "t.csv").write_text("image,caption\na.png,a picture\n")
    (tmp_path / "shown" / "link.png").symlink_to(tmp_path / "secret.png")
    return tmp_path / "shown"


def test_a_file(shown):
    assert hit_picture(Hit("1", 1.0, path=str(shown / "a.png")), roots=[shown]).tobytes() == tiny.picture(1).tobytes()
    assert hit_picture(str(shown / "a.png")).size == (60, 48)


@pytest.mark.parametrize(
    "path, said",
    [
        ("{shown}/../secret.png", "is outside of the folders that may be shown"),
        ("{shown}/link.png", "is outside of the folders that may be shown"),
        ("{shown}-too/a.png", "is outside of the folders that may be shown"),
        ("/etc/passwd", "is outside of the folders that may be shown"),
        ("/dev/zero", "is outside of the folders that may be shown"),
        ("a.png", "no absolute path"),
        ("../a.png", "no absolute path"),
        ("", "no absolute path"),
        ("{shown}/a.png\0.jpg", "no absolute path"),
        ("http://127.0.0.1/x.png", "only files can be shown"),
        ("file:///etc/passwd", "only files can be shown"),
        ("{shown}/missing.png", "no such file"),
        ("{shown}/missing.tar::a", "No such file"),
        ("{shown}/a.png::3", "a.png"),
        ("{shown}/../secret.tar::a", "is outside of the folders that may be shown"),
        ("{shown}/t.csv::0", "has no image"),
        ("{shown}/t.csv::7", "no longer in this table, which has 1 rows"),
        ("{shown}/t.csv::" + "9" * 5000, "limit"),
    ],
)
def test_what_is_not_shown(shown, path, said):
    with pytest.raises(ImageError, match=said):
        hit_picture(path.format(shown=shown), roots=[shown])


def test_a_picture_of_too_many_pixels_is_not_opened(shown, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_SHOWN_PIXELS", 60 * 48 - 1)
    with pytest.raises(ImageError, match="image too large: 60 x 48 pixels"):
        hit_picture(str(shown / "a.png"))


def test_no_file_of_the_system_is_read_without_roots_either():
    for path, said in (("/etc/passwd", "not an image"), ("/dev/zero", "not a regular file")):
        with pytest.raises(ImageError, match=said):
            hit_picture(path)


def test_a_page_shows_what_it_may_and_says_what_it_may_not(shown):
    hits = [
        Hit("1", 0.75, path=str(shown / "a.png"), caption="<script>alert(1)</script>", metadata={"<b>": "<i>"}),
        Hit("2", 0.5, path=str(shown / "link.png")),
    ]
    page, lost = hits_page(hits, "<red>", roots=[shown])
    assert (
        lost == 1
        and page.count("data:image/jpeg;base64,") == 1
        and "is outside of the folders that may be shown" in page
    )
    assert "<script>" not in page and "<i>" not in page and "<red>" not in page and "0.75" in page


def test_a_tar_in_capitals(tmp_path):
    """Its kind is told by its ending in any case, as everywhere else."""
    tables.write_tar(tmp_path / "A.TAR", [("k.png", tables.content(0))])
    assert hit_picture(f"{tmp_path}/A.TAR::k").size == load_image(tables.content(0)).size

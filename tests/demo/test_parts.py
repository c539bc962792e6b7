"""The page's parts, without the page."""

import html
import json
import re
import signal
import threading

import numpy as np
import pytest
import tiny
from PIL import Image

from kakao_models import cli
from kakao_models.demo import actions, render
from kakao_models.demo.catalogue import Catalogue
from kakao_models.demo.models import Models
from kakao_models.demo.photos import BUNDLED, bundled_labels, bundled_photos, overlay
from kakao_models.demo.projection import project
from kakao_models.demo.serve import _launch, serve


def quiet(name: str) -> None:
    pass


def test_every_bundled_photograph_has_an_author_and_a_licence():
    rows = [line for line in (BUNDLED / "README.md").read_text().splitlines() if line.startswith("| `")]
    assert [re.match(r"\| `(.+?)`", row)[1] for row in rows] == [path.name for path in bundled_photos()]
    assert all(re.search(r"CC0|CC BY 4.0|public domain", row) for row in rows)
    assert len(bundled_labels()) == 15 and "a cat" in bundled_labels()


def test_models_are_kept_up_to_a_bound_and_the_oldest_goes(monkeypatch):
    loaded = []
    monkeypatch.setattr("kakao_models.demo.models.pipeline", lambda task, name, **options: loaded.append(name) or name)
    models = Models(["a", "b"], "v", kept=2)
    told = []
    for name in ("a", "b", "a", "c", "a", "b"):
        assert models.get("task", name, told.append) == name
    assert loaded == told == ["a", "b", "c", "b"]  # b went for c, c for b


def test_only_what_is_offered_runs_where_visitors_may_not_choose(vit):
    models = Models(["align-small"], vit, others=False)
    with pytest.raises(ValueError, match="/etc: this page runs align-small, .* only"):
        models.get("zero-shot-image-classification", "/etc")
    with pytest.raises(ValueError, match="Name a model"):
        models.get("zero-shot-image-classification", "  ")
    assert models.get("image-classification", vit).embedder.name == vit


def test_bars_escape_and_keep_classes_of_the_same_name_apart():
    found = render.bars([("<m>", [{"label": "crane", "score": 0.75}, {"label": "crane", "score": 0.25}])])
    assert "&lt;m&gt;" in found and found.index("75.0%") < found.index("25.0%")
    pair = [
        [{"label": "x", "score": 0.9}, {"label": "y", "score": 0.1}],
        [{"label": "y", "score": 1.0}, {"label": "x", "score": 0.0}],
    ]
    cells = re.findall(r"[\d.]+%", render.bars(list(zip("ab", pair))))
    assert cells == ["90.0%", "0.0%", "10.0%", "100.0%"]
    many = [{"label": str(n), "score": 0.0} for n in range(1_040)]
    assert "and 1,010 labels" in render.bars([("m", many)])


def test_what_photographs_and_labels_are_called_is_no_html():
    captions = re.findall(r"<span>(.*?)</span>", render.strip(["<i>n"] * 2, ["data:<"] * 2, ["<b>c", ""]))
    assert captions == ["&lt;b&gt;c"]  # and none where there is none
    drawn = [
        render.strip(["<i>n"], ["data:<"], ["<b>c"]),
        render.scatter(np.zeros((1, 2)), ["<i>n"], ["data:<"]),
        render.bars([("<i>m", [{"label": "<b>c", "score": 1.0}])]),
        render.note("<b>"),
    ]
    assert not any(re.search("<[ib]>|data:<", html) for html in drawn)


def test_the_same_words_twice_are_added_up(catalogue):
    with pytest.raises(ValueError, match="Write what to search for"):
        actions.search(catalogue, "mountains", 2, None, 1, " mountains", -2, 3, 0.5, quiet)


def test_messages_are_escaped_and_cut():
    assert "<b>" not in render.message("<b>" * 1_000) and len(render.message("x" * 10**6)) < 1_000


def test_too_many_sentences_are_refused(models):
    labels = "\n".join(map(str, range(1_001)))
    with pytest.raises(ValueError, match="1,001 labels in 2 templates are more than the 2,000"):
        actions.zero_shot(models, str(bundled_photos()[0]), labels, "{}\na {}", "align-small", "", quiet)


@pytest.mark.filterwarnings("ignore::kakao_models.warn.KakaoWarning")
def test_labels_that_the_model_can_t_read_are_named_on_the_page(models):
    shown = actions.zero_shot(models, str(bundled_photos()[0]), "a cat\n고양이\nA cat", "", "align-small", "", quiet)
    assert "The tokenizer of align-small knows no word of &#x27;고양이&#x27;, so its score means nothing" in shown
    assert "&#x27;a cat&#x27;, &#x27;A cat&#x27; are the same tokens to align-small" in shown


def test_pca_finds_the_plane_that_points_lie_in():
    random = np.random.default_rng(0)
    flat = random.normal(size=(50, 2)) * (5, 1)
    axes = np.linalg.qr(random.normal(size=(16, 2)))[0]
    points, said = project((flat @ axes.T + 3).astype(np.float32), "PCA")
    assert "100%" in said
    between = lambda rows: np.linalg.norm(rows[:, None] - rows[None], axis=-1)  # noqa: E731
    np.testing.assert_allclose(between(points), between(flat), atol=1e-5)
    np.testing.assert_array_equal(project((flat @ axes.T + 3).astype(np.float32), "PCA")[0], points)


def test_tsne_keeps_two_clusters_apart():
    random = np.random.default_rng(0)
    rows = np.concatenate([random.normal(size=(20, 8)) + 8 * np.eye(8)[side] for side in (0, 1)]).astype(np.float32)
    points, _ = project(rows, "t-SNE")
    nearest = np.linalg.norm(points[:, None] - points[None] + np.eye(40)[..., None] * 1e9, axis=-1).argmin(1)
    assert ((nearest < 20) == (np.arange(40) < 20)).all()
    with pytest.raises(ValueError, match="at least 5 images, got 4"):
        project(rows[:4], "t-SNE")


@pytest.mark.parametrize("count", [1, 2])
def test_few_photographs_have_a_map_too(count):
    points, _ = project(np.eye(4, dtype=np.float32)[:count], "PCA")
    assert np.isfinite(points).all() and "km-map" in render.scatter(points, ["a"] * count, ["data:"] * count)


def test_the_overlay_glows_where_the_heat_is():
    heat = np.zeros((4, 4))
    heat[1, 2] = 1
    seen = np.asarray(overlay(Image.new("RGB", (80, 40), (90, 90, 90)), heat)).astype(int)
    colour = np.ptp(seen, axis=2)
    assert np.unravel_index(colour.argmax(), colour.shape)[0] in range(10, 20) and colour[:, 40:60].max() > 100
    assert colour[25:, :20].max() == 0
    assert np.ptp(np.asarray(overlay(Image.new("RGB", (8, 8)), np.ones((2, 2)))), axis=2).max() == 0


def test_the_overlay_is_of_the_part_that_the_model_sees(vit, tmp_path):
    from kakao_models import ViTImageProcessor

    path = tmp_path / "wide.png"
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 255
    Image.fromarray(picture).save(path)
    crops = ViTImageProcessor(size={"shortest_edge": 20}, do_center_crop=True, crop_size=20)
    seen = np.asarray(actions._as_seen(path, crops))
    assert seen.shape == (40, 40, 3) and seen.min() == 255
    assert actions._as_seen(path, ViTImageProcessor(size=20)).size == (80, 40)


def test_what_does_not_fit_is_grey_and_counted(catalogue):
    def found(least: float, image: str | None = None) -> str:
        return actions.search(catalogue, "mountains", 2, image, 1, "", -1, 8, least, quiet)[0]

    index = catalogue.open(quiet)
    scores = index.relevance([hit.score for hit in index.search("mountains", 8)])
    middle = float(scores[:2].mean())
    assert "km-faded" not in found(0) and "8 of 8 have a relevance of 0% or more." in found(0)
    kept = int((scores >= middle).sum())
    assert 1 <= kept < 8 and found(middle).count("km-faded") == 8 - kept
    assert f"{kept} of 8 have a relevance of" in found(middle) and f"the other {8 - kept} are grey" in found(middle)
    assert found(1).count("km-faded") == 8 and 'role="alert">Nothing fits' in found(1)
    by_image = found(1, str(BUNDLED / "cat.jpg"))
    assert "km-faded" not in by_image and "Relevance is known only for texts" in by_image
    with pytest.raises(ValueError, match="expected a probability"):
        found(2)


def test_the_slider_of_relevance_searches_again(models, catalogue):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'kakao-models[demo]'")
    from kakao_models.demo.app import build

    config = build(models, catalogue).get_config_file()
    sliders = [part["id"] for part in config["components"] if "Relevance" in str(part["props"].get("label"))]
    [search] = [event for event in config["dependencies"] if event["api_name"] == "search"]
    assert [sliders[0], "release"] in [list(target) for target in search["targets"]] and sliders[0] in search["inputs"]


def test_a_page_without_a_calibration_says_so(catalogue, monkeypatch):
    monkeypatch.setitem(catalogue.open(quiet).embedder.__dict__, "relevance", None)
    monkeypatch.delitem(catalogue.open(quiet)._metadata, "relevance", raising=False)
    found, _ = actions.search(catalogue, "mountains", 2, None, 1, "", -1, 8, 1, quiet)
    assert "km-faded" not in found and "Relevance is not known: the model has no calibration" in found


def test_pictures_outside_of_the_folders_are_not_shown(models, tmp_path):
    """Whoever wrote an index chose its paths."""
    from kakao_models.search import SearchIndex

    shown, secret = tmp_path / "shown", tmp_path / "secret"
    inside, outside = tiny.picture_folder(shown, 1)[0], tiny.picture_folder(secret, 1)[0]
    (shown / "link.png").symlink_to(outside)
    paths = [
        str(inside),
        str(outside),
        f"{shown}/../secret/000.png",
        str(shown / "link.png"),
        "/etc/passwd",
        "000.png",
        "a\0b",
    ]
    embedder = models.get("zero-shot-image-classification", "align-small").embedder
    uri = str(tmp_path / "hostile.db")
    with SearchIndex.open(uri, embedder, create=True) as index:
        rows = np.random.default_rng(0).normal(size=(len(paths), index.dim)).astype(np.float32)
        index.add([f"{n:064}" for n in range(len(paths))], rows, [{"path": path} for path in paths])
    catalogue = Catalogue(models, tmp_path, uri, roots=[shown])
    reasons = [catalogue.thumbnail(path)[1] for path in paths]
    assert reasons[0] == "" and all(reasons[1:])
    found, hits = actions.search(catalogue, "a dog", 2, None, 1, "", -1, 10, 0.5, quiet)
    assert f"{len(paths) - 1} images can't be shown" in html.unescape(found) and set(hits) == set(paths)
    with pytest.raises(ValueError, match="outside of the folders"):
        actions.found_picture(catalogue, [str(outside)], 0)
    with pytest.raises(ValueError, match="search again"):
        actions.found_picture(catalogue, hits, 99)
    catalogue.close()


def test_closing_does_not_wait_for_a_model_that_is_loading(models, tmp_path):
    """A download may take minutes; what comes of it after the page was ended opens no index again."""
    loading, done, said = threading.Event(), threading.Event(), []

    class Slow:
        offered = models.offered

        def get(self, *arguments):
            loading.set()
            done.wait()
            return models.get(*arguments)

    catalogue = Catalogue(Slow(), tmp_path)

    def warm_up() -> None:
        with pytest.raises(ValueError, match="is being closed") as refused:
            catalogue.open(quiet)
        said.append(refused.value)

    visitor = threading.Thread(target=warm_up)
    visitor.start()
    loading.wait()
    catalogue.close()  # forever, if it waited
    done.set()
    visitor.join()
    assert said and not list(tmp_path.iterdir())


def test_the_page_runs_models_by_the_engine_and_type_that_are_named(monkeypatch, capsys):
    given = {}
    monkeypatch.setattr("kakao_models.demo.serve.serve", lambda names, **options: given.update(options, names=names))
    cli.app(["demo", "--engine", "openvino", "--dtype", "bfloat16", "--device", "cpu"], standalone_mode=False)
    assert given["names"] == ["align-small"]
    models = Models(given["names"], **{name: given[name] for name in ("engine", "dtype", "device", "framework")})
    monkeypatch.setattr("kakao_models.demo.models.pipeline", lambda task, name, **options: options)
    options = models.get("image-classification", "align-small")
    assert (options["engine"], options["dtype"], options["device"]) == ("openvino", "bfloat16", "cpu")


def test_an_index_that_can_not_be_shown_is_named_at_once(capsys, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", "--index", str(tmp_path / "none.db")])
    assert ended.value.code == 2 and "none.db" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before  # who imports the package ends as before


def test_a_model_that_is_not_there_is_named_at_once(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", "--model", "no/such/model"])
    assert ended.value.code == 2 and "no/such/model: no such folder" in capsys.readouterr().err


def test_what_is_temporary_goes_when_the_page_is_interrupted(monkeypatch, tmp_path):
    pytest.importorskip("gradio")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    told = []

    def ready(url: str) -> None:
        told.append((url, [path.name for path in tmp_path.iterdir()]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve(["align-small"], ready=ready)
    ((url, folders),) = told
    assert url.startswith("http://127.0.0.1:") and folders[0].startswith("kakao-models-demo-")
    assert list(tmp_path.iterdir()) == []


class _Page:
    """A page that gradio can't reach the first times."""

    def __init__(self, failures: int):
        self.failures, self.closed = failures, 0

    def launch(self, **options):
        if self.closed < self.failures:
            raise ValueError("When localhost is not accessible, a shareable link must be created.")
        return None, "http://127.0.0.1:7860/", None

    def close(self, verbose: bool) -> None:
        self.closed += 1


def test_a_page_that_is_slow_to_answer_is_tried_again():
    pytest.importorskip("gradio")
    page = _Page(2)
    assert _launch(page, "127.0.0.1", None) == "http://127.0.0.1:7860/" and page.closed == 2
    page = _Page(3)
    with pytest.raises(OSError, match="NO_PROXY=localhost,127.0.0.1"):
        _launch(page, "127.0.0.1", None)
    assert page.closed == 3


def test_the_map_of_a_large_index_is_a_sample_that_stays_the_same():
    """Of ids in order neither the first ones nor others at the next time; a new row changes little."""
    from types import SimpleNamespace

    from kakao_models.demo.catalogue import Catalogue
    from kakao_models.search import Hit

    def drawn(count, limit=100):
        def vectors(filter):
            assert filter.startswith("sha256 in ")
            chosen = json.loads(filter.removeprefix("sha256 in "))
            yield [Hit(key, 1.0) for key in chosen], np.eye(len(chosen), dtype=np.float32)

        index = SimpleNamespace(all_ids=lambda: ((f"{n:06}", "") for n in range(count)), vectors=vectors)
        catalogue = SimpleNamespace(open=lambda loading: index, name="x.db")
        hits, rows = Catalogue.rows(catalogue, limit, print)
        assert len(hits) == len(rows) == min(limit, count)
        return {int(hit.id) for hit in hits}

    sample = drawn(100_000)
    assert sample == drawn(100_000) and 30_000 < np.mean(list(sample)) < 70_000
    assert len(sample - drawn(100_001)) <= 1 and drawn(7) == set(range(7))
    with pytest.raises(ValueError, match="the index is empty"):
        drawn(0)

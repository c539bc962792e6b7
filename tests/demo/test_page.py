"""The page in a real browser."""

import io
import re

import hostile
import numpy as np
import pytest
from PIL import Image

from kakao_models.demo.app import QUERIES
from kakao_models.demo.photos import bundled_photos

SVG = b"""<svg xmlns="http://www.w3.org/2000/svg" onload="document.title='run'"><script>document.title='run'</script></svg>"""
HOSTILE = {
    "bomb.png": (hostile.bomb(), "image too large"),
    "picture.svg": (SVG, "unsupported image format"),
    "empty.jpg": (b"", "empty (0 bytes)"),
    "text.png": (b"MZ this is no picture" * 9, "unsupported image format"),
    "short.png": (hostile.png(0)[:200], "cannot be decoded"),
}


def tab(page, name: str):
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel").filter(visible=True)


def upload(panel, name: str, content: bytes, kind: str = "image/png") -> None:
    file = {"name": name, "mimeType": kind, "buffer": content}
    remove = panel.get_by_role("button", name="Remove Image")
    if panel.locator("input[type=file]").count() == 0:  # the photograph that the page opens with
        remove.click()
    panel.locator("input[type=file]").first.set_input_files(files=[file])
    panel.get_by_role("button", name="Remove Image").wait_for()  # it has arrived


def take(panel, example: str) -> None:
    panel.get_by_role("button", name=f"Example: {example}").click()
    panel.locator(f"img[src*='{example}.jpg']").wait_for()


def rows(panel, containing: str = "") -> list[list[str]]:
    panel.locator(".km-bars").filter(has_text=containing).wait_for()
    return [row.locator("th, td").all_inner_texts() for row in panel.locator(".km-bars tbody tr").all()]


def fits(page) -> bool:
    """Whether the page, once it has settled, need not be scrolled sideways."""
    page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")
    return True


def test_the_page_opens_with_a_photograph_that_is_classified(opened):
    with opened() as page:
        panel = tab(page, "Zero-shot")
        found = rows(panel)
        assert found[0][0] == "a cat" and len(found) == 10
        page.set_viewport_size({"width": 1366, "height": 768})
        last = panel.locator(".km-bars tbody tr").last.bounding_box()
        assert last["y"] + last["height"] <= 768  # seen without scrolling
        assert "kakaobrain/align-base" in panel.inner_text()
        take(panel, "mountains")  # which runs
        panel.locator(".km-bars tbody tr").first.filter(has_text="mountains").wait_for()


def test_example_queries_run(opened):
    with opened() as page:
        panel = tab(page, "Search")
        for query, photo in zip(QUERIES, ("mountains.jpg", "dogs.jpg", "photographer.jpg")):
            panel.get_by_role("button", name=query).click()
            panel.locator(".km-strip li:first-child").filter(has_text=photo).wait_for()
            assert panel.get_by_label("Text", exact=True).input_value() == query


def test_labels_of_the_visitor_get_bars(opened, models):
    photo = next(path for path in bundled_photos() if path.stem == "mountains")
    with opened() as page:
        panel = tab(page, "Zero-shot")
        upload(panel, "mine.jpg", photo.read_bytes(), "image/jpeg")
        panel.locator(".km-bars tbody tr").first.filter(has_text="mountains").wait_for()  # an upload runs too
        panel.get_by_label("Labels").fill("a motorcycle\n\nmountains\n<b>a ship</b>")
        panel.get_by_label("Templates").fill("a photo of {}.\n{}")
        panel.get_by_role("button", name="Classify").click()
        found = rows(panel, "<b>a ship</b>")
    classify = models.get("zero-shot-image-classification", "align-small")
    wanted = classify(
        photo,
        candidate_labels=["a motorcycle", "mountains", "<b>a ship</b>"],
        hypothesis_template=["a photo of {}.", "{}"],
    )
    assert found == [[entry["label"], f"{entry['score']:.1%}"] for entry in wanted]
    assert found[0][0] == "mountains"


def test_two_models_are_compared_on_an_example(opened, align):
    with opened() as page:
        panel = tab(page, "Zero-shot")
        take(panel, "cat")
        other = panel.get_by_label("Compare with")
        other.fill(align)
        other.press("Enter")
        panel.get_by_role("button", name="Classify").click()
        found = rows(panel, align)
        head = panel.locator(".km-bars thead th").all_inner_texts()
    assert head == ["label", "align-small", align] and len(found) == 10
    for column in (1, 2):
        assert sum(float(row[column].rstrip("%")) for row in found) == pytest.approx(100, abs=0.5)


def test_what_can_not_be_done_is_said(opened):
    with opened() as page:
        panel = tab(page, "Zero-shot")
        button, alert = panel.get_by_role("button", name="Classify"), panel.get_by_role("alert")
        rows(panel)
        panel.get_by_role("button", name="Remove Image").click()
        panel.get_by_role("button", name="Remove Image").wait_for(state="detached")
        panel.locator(".km-bars").wait_for(state="detached")  # the scores were of that photograph
        button.click()
        alert.filter(has_text="Choose an image first").wait_for()
        take(panel, "cat")
        rows(panel)
        panel.get_by_label("Templates").fill("no place for it")
        button.click()
        alert.filter(has_text="must contain exactly one").wait_for()
        panel.get_by_label("Labels").fill(" \n")
        button.click()
        alert.filter(has_text="Write the labels").wait_for()
        panel.get_by_label("Labels").fill("a cat")
        panel.get_by_label("Templates").fill("")
        panel.get_by_label("Model").fill("no/such/<i>model</i>")
        panel.get_by_label("Model").press("Enter")
        button.click()
        alert.filter(has_text="no/such/<i>model</i>: no such folder").wait_for()
        assert "Traceback" not in page.content()


def test_hostile_uploads_are_named_and_the_page_goes_on(opened):
    with opened() as page:
        panel = tab(page, "Zero-shot")
        for name, (content, reason) in HOSTILE.items():
            upload(panel, name, content, "image/svg+xml" if name.endswith("svg") else "image/png")
            alert = panel.get_by_role("alert").filter(has_text=f"{name}: ").filter(has_text=reason)
            alert.wait_for()
            assert alert.inner_text().startswith(f"{name}: ")  # and no path
            assert page.title() == "kakao-models"
            panel.get_by_role("button", name="Remove Image").click()
            panel.get_by_role("button", name="Remove Image").wait_for(state="detached")
        take(panel, "cat")
        panel.get_by_role("button", name="Classify").click()
        assert rows(panel)


def test_a_vit_says_its_five_classes_and_where_they_came_from(opened, vit):
    with opened() as page:
        panel = tab(page, "ViT")
        take(panel, "deer")
        panel.get_by_role("button", name="Classify").click()
        found = rows(panel)
        seen = panel.get_by_alt_text("The photograph in grey")
        seen.wait_for(state="attached")  # it is below the window, and loaded when it comes into it
        shown = np.asarray(Image.open(io.BytesIO(page.request.get(seen.get_attribute("src")).body())).convert("RGB"))
        panel.get_by_label("ViT").fill("align-small")
        panel.get_by_role("button", name="Classify").click()
        panel.get_by_role("alert").filter(has_text="has no classifier").wait_for()
        take(panel, "cat")
        panel.get_by_role("alert").wait_for(state="detached")  # it was about the photograph before
    assert len(found) == 5
    width, height = Image.open(next(path for path in bundled_photos() if path.stem == "deer")).size
    assert shown.shape == (height, width, 3)
    colour = np.ptp(shown.astype(int), axis=2)
    assert np.quantile(colour, 0.01) < 25 and np.quantile(colour, 0.99) > 60  # grey in places, orange in others


def test_search_by_text_and_by_what_was_found(opened):
    with opened() as page:
        panel = tab(page, "Search")
        text = panel.get_by_label("Text", exact=True)
        text.fill("mountains with snow")
        text.press("Enter")
        hits = panel.get_by_role("button", name=re.compile("^Search with"))
        hits.first.wait_for()
        assert hits.count() == 8 and "mountains.jpg" in hits.first.inner_text()
        hits.filter(has_text="cat.jpg").click()
        panel.locator("img[src*='image.png']").wait_for()  # it is the query's image now, alone, and is searched at once
        panel.locator(".km-strip li:first-child").filter(has_text="cat.jpg").wait_for()
        score = float(hits.first.inner_text().split()[1])
        assert score == 1  # the same photograph, pixel by pixel
        panel.get_by_label("Second text", exact=True).fill("a cat")
        panel.get_by_role("button", name="Search", exact=True).click()
        panel.locator(".km-strip li:first-child").filter(has_not_text=f"{score:.3f}").wait_for()
        assert float(hits.first.inner_text().split()[1]) < score  # a cat was taken away from it


@pytest.mark.parametrize("width, height", [(1366, 768), (390, 844)])
def test_results_stand_in_sight(opened, width, height):
    with opened(width, height) as page:
        panel = tab(page, "Search")
        panel.get_by_label("Text", exact=True).fill("qzxv jkwq")
        panel.get_by_role("button", name="Search", exact=True).click()
        panel.get_by_role("alert").filter(has_text="Nothing fits").wait_for()
        form, box = (panel.locator(part).bounding_box() for part in (".km-ask", ".km-found"))
        assert box["y"] < 0.75 * height and box["x"] + box["width"] <= width
        if width > height:
            assert box["x"] >= form["x"] + form["width"] and abs(box["y"] - form["y"]) < 20  # beside the form
        assert panel.locator("li.km-faded").count() == 8


def test_a_query_of_ten_thousand_words(opened):
    with opened() as page:
        panel = tab(page, "Search")
        panel.get_by_label("Text", exact=True).fill("mountains " + "and snow " * 5_000)
        panel.get_by_role("button", name="Search", exact=True).click()
        panel.get_by_text("is longer than 64 tokens").wait_for()
        panel.get_by_label("Text", exact=True).fill("snow " * 30_000)
        panel.get_by_role("button", name="Search", exact=True).click()
        panel.get_by_role("alert").filter(has_text="are more than this page accepts (100,000)").wait_for()


@pytest.mark.parametrize("method", ["PCA", "t-SNE"])
def test_the_map_shows_a_photograph_under_the_mouse_and_with_the_focus(opened, method):
    with opened() as page:
        panel = tab(page, "Map")
        panel.get_by_label(method).check()
        panel.get_by_role("button", name="Draw").click()
        points = panel.locator(".km-map li")
        points.first.wait_for()
        panel.get_by_text(f"8 of 8 photographs. {method}").wait_for()
        assert points.count() == 8
        frame = panel.locator(".km-map").bounding_box()
        for point in points.all():
            box = point.bounding_box()
            assert frame["x"] <= box["x"] and box["x"] + box["width"] <= frame["x"] + frame["width"] + 1
        small = points.nth(3).bounding_box()["width"]
        points.nth(3).hover()
        page.wait_for_function(
            "width => document.querySelectorAll('.km-map li')[3].offsetWidth > 1.5 * width", arg=small
        )
        points.nth(4).focus()
        page.wait_for_function(
            "width => document.querySelectorAll('.km-map li')[4].offsetWidth > 1.5 * width", arg=small
        )
        assert points.nth(4).locator("span").is_visible()


def test_the_keyboard_is_enough(opened):
    with opened() as page:
        page.get_by_role("tab", name="Zero-shot").focus()
        reached = []
        for _ in range(40):
            page.keyboard.press("Tab")
            name = page.evaluate(
                "e => (e = document.activeElement).ariaLabel || e.innerText || e.closest('label')?.innerText"
            )
            reached.append((name or "").strip().split("\n")[0])
            if reached[-1] == "Example: deer":
                page.keyboard.press("Enter")
                page.locator("img[src*='deer.jpg']").first.wait_for()
            if reached[-1] == "Classify":
                page.keyboard.press("Enter")
            if reached[-1].startswith("Compare with"):
                break
        page.locator(".km-bars").wait_for()
    order = ["Example: cat", "Example: woman", "Labels", "Classify", "Templates", "Model", "Compare with"]
    places = [next(n for n, name in enumerate(reached) if name.startswith(label)) for label in order]
    assert places == sorted(places)


def test_everything_has_a_name(opened):
    with opened() as page:
        for name in ("Zero-shot", "ViT", "Search", "Map"):
            panel = tab(page, name)
            nameless = panel.evaluate(
                """panel => [...panel.querySelectorAll("button, input, textarea, select, img")]
                     .filter(e => e.checkVisibility() && e.type !== "file")
                     .filter(e => !(e.ariaLabel || e.title || e.innerText?.trim() || e.labels?.length
                                    || e.getAttribute("aria-labelledby") || e.hasAttribute("alt")))
                     .map(e => e.outerHTML.slice(0, 200))"""
            )
            assert nameless == [], name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_on_a_phone_by_day_and_night(opened, scheme):
    with opened(390, 844, color_scheme=scheme, is_mobile=True, has_touch=True) as page:
        panel = tab(page, "Zero-shot")
        take(panel, "woman")
        panel.get_by_label("Labels").fill("a woman\n" + "w" * 300)
        panel.get_by_role("button", name="Classify").click()
        rows(panel, "www")
        page.wait_for_function(
            "document.querySelectorAll('.km-bars tbody tr').length == 2"
        )  # not those of the first photograph
        assert fits(page)
        page.wait_for_function(  # colours change by and by
            """() => {
              const light = colour => {
                const [r, g, b] = colour.match(/[\\d.]+/g).map(v => v / 255)
                  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
              };
              const behind = e => {
                for (; e; e = e.parentElement) {
                  const colour = getComputedStyle(e).backgroundColor;
                  if (!/, 0\\)$|transparent/.test(colour)) return colour;
                }
                return "rgb(255, 255, 255)";
              };
              const found = [...document.querySelectorAll(".km-bars th, .km-bars td span, .km-head h1, .km-head p")]
                .filter(e => e.innerText.trim()).map(e => {
                  const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
                  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
                });
              return found.length > 4 && Math.min(...found) >= 4.5;  // WCAG 2.2 AA
            }"""
        )
        for name in ("ViT", "Search", "Map"):
            tab(page, name)
            assert fits(page), name

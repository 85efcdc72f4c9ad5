"""An episode as a page: complete, closed in itself, and harmless whatever a model writes."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from envs.core import InputError
from planners.episode.page import MOST, page, safe, save_film, write_page
from planners.episode.story import Choice, Proposal, StoryStep
from planners.read.team import COUNTS

VOID = {"meta", "img", "br"}
EVIL = [
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</pre></details></article>",
    '" onmouseover="alert(1)" x=\'',
    "&lt;script&gt; &amp; &#60;b&#62;",
    "<img src=x onerror=alert(1)>",
    "<!-- no end",
    "]]> <![CDATA[ <?php",
    "\x00\x07\x1b[31mred\x9b\u202eback\ud800",
    "javascript:alert(1)",
    "snow ☃ Ω 猫 🐈",
]


class Read(HTMLParser):
    """Elements, attributes and texts of a page; fails where an element is not closed in its order."""

    def __init__(self, document: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


def counts(**given: int) -> dict[str, int]:
    return {**dict.fromkeys(COUNTS, 0), **given}


def told(number: int = 1, *, text: str = "north", words: str = "Here.", **given: Any) -> StoryStep:
    proposals = (
        Proposal(text, None, "no plan"),
        Proposal("east", -0.25, "sent back"),
        Proposal("stay", 0.5, "accepted"),
    )
    spent = counts(queries=3, illegal=1, sent_back=1, tokens_read=1000, tokens_written=9)
    choices = (
        Choice(("ann",), proposals, "stay", "accepted", spent),
        Choice(("bob",), (), "go", "the only plan", counts()),
    )
    return StoryStep(number, words, choices, {"ann": "stay", "bob": "go"}, {"soup": 0.0, "shaping": 0.0}, **given)


def picture(shade: int) -> np.ndarray:
    return np.full((40, 60, 3), shade, dtype=np.uint8)


def test_a_page_tells_how_it_ended_what_it_took_and_each_step() -> None:
    last = dataclasses.replace(told(2), reward={"soup": 20.0, "shaping": -1.5}, ending="truncated")
    read = Read(page("Two cooks", [told(1), last]))
    assert "Two cooks Earned soup +20, shaping -1.5" in read.text
    assert (
        "steps 2 queries 6 sent back 2 no plan 2 nothing acceptable 0 tokens read 2,000 tokens written 18" in read.text
    )
    assert "Cut off by a limit of time after step 2." in read.text
    assert [a["id"] for tag, a in read.tags if tag == "article"] == ["step-1", "step-2"]
    assert read.text.count("north no plan east −0.25 sent back stay +0.50 accepted bob go the only plan") == 2
    assert read.text.count("Executed: ann stay · bob go") == 2
    assert len(read.of_class("earned")) == 2
    assert len(read.of_class("lost")) == 1
    links = [a for tag, a in read.tags if tag == "a" and a["href"] in ("#step-1", "#step-2")]
    assert [a.get("class") for a in links[:2]] == ["back", "earned"]
    assert "Served at last." in Read(page("Two cooks", [last], "Served at last.")).text
    assert "Nothing was earned" in Read(page("Two cooks", [told()])).text


def test_decisions_in_which_nothing_was_acceptable_show() -> None:
    taken = Proposal("east", -0.1, "best of what was proposed")
    best = Choice(("ann",), (taken,), "east", "best of what was proposed", counts(nothing_acceptable=1))
    none = Choice(("bob",), (Proposal(" ", None, "no plan"),), "go", "any plan", counts(nothing_acceptable=1))
    drawn = Choice(
        ("cat",), (Proposal("go", 1.0, "not drawn"), Proposal("up", 0.0, "drawn")), "up", "drawn", counts(), 1234
    )
    step = dataclasses.replace(told(), choices=(best, none, drawn))
    read = Read(page("", [step]))
    assert "east −0.10 best of what was proposed" in read.text
    assert "(nothing) no plan go any plan, since none was proposed" in read.text
    assert "1,234 more were weighed." in read.text
    assert len(read.of_class("taken")) == 3
    assert len(read.of_class("forced")) == 3


@pytest.mark.parametrize("evil", EVIL, ids=range(len(EVIL)))
def test_whatever_is_written_stays_text(evil: str) -> None:
    choice = Choice(
        (evil,), (Proposal(evil, 1.0, "accepted"), Proposal(evil, None, "no plan")), evil, "any plan", counts()
    )
    step = StoryStep(1, evil, (choice,), {evil: evil}, {evil: 1.0}, "terminated")
    document = page(evil, [step], evil, film=f"{evil}.gif".replace("\ud800", ""))
    plain = Read(page("x", [dataclasses.replace(step, words="x")], "x", film="x.gif"))
    read = Read(document)
    assert document.isascii()
    assert not set(map(chr, range(32))) - {"\n"} & set(document)
    assert [tag for tag, _ in read.tags] == [tag for tag, _ in plain.tags]
    assert "script" not in {tag for tag, _ in read.tags}
    assert {name for _, attributes in read.tags for name in attributes} == {
        name for _, attributes in plain.tags for name in attributes
    }
    addresses = [str(a.get("href", a.get("src"))) for tag, a in read.tags if tag in ("a", "img")]
    assert all(address.startswith("#") or ":" not in address for address in addresses)
    if evil.isprintable():
        assert " ".join(evil.split()) in read.text


def test_long_texts_are_cut_which_is_said() -> None:
    document = page("x", [told(text="<" * 100_000, words="&" * 100_000)])
    assert "[98,000 more characters]" in document
    assert "[80,000 more characters]" in document
    assert document.count("&lt;") == MOST
    assert len(document) < 200_000
    assert safe("a" * MOST) == "a" * MOST


def test_a_page_needs_nothing_from_elsewhere_but_its_own_film(tmp_path: Path) -> None:
    steps = [told(number, picture=picture(60 * number)) for number in (1, 2, 3)]
    write_page(tmp_path / "new" / "an episode.html", "x", steps)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["an episode.gif", "an episode.html"]
    document = (tmp_path / "new" / "an episode.html").read_text()
    read = Read(document)
    sources = [str(a["src"]) for tag, a in read.tags if tag == "img"]
    assert sources[0] == "an%20episode.gif"
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources[1:])
    assert all("alt" in a for tag, a in read.tags if tag == "img")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in read.tags}
    assert "url(" not in document
    assert "@import" not in document
    assert "prefers-color-scheme: dark" in document
    assert "width=device-width" in document
    with Image.open(tmp_path / "new" / "an episode.gif") as film:
        assert film.n_frames >= 3  # type: ignore[attr-defined]


def test_without_pictures_there_is_no_film_and_words_are_open(tmp_path: Path) -> None:
    write_page(tmp_path / "episode.html", "x", [told()])
    assert [path.name for path in tmp_path.iterdir()] == ["episode.html"]
    read = Read((tmp_path / "episode.html").read_text())
    assert not [tag for tag, _ in read.tags if tag == "img"]
    assert [a for tag, a in read.tags if tag == "details"] == [{"open": None}]


def test_no_steps_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no step to tell\. Play an episode with a witness first"):
        write_page(tmp_path / "episode.html", "x", [])
    with pytest.raises(InputError, match=r"name ends with \.html; got 'episode\.gif'"):
        write_page(tmp_path / "episode.gif", "x", [told()])
    assert list(tmp_path.iterdir()) == []


def test_bars_are_as_long_as_advantages_are_large_and_the_largest_fills_half() -> None:
    proposals = (Proposal("east", -2.0, "sent back"), Proposal("stay", 0.5, "accepted"))
    choice = Choice(("ann",), proposals, "stay", "accepted", counts())
    read = Read(page("x", [dataclasses.replace(told(), choices=(choice,))]))
    bars = [(attributes["class"], attributes["style"]) for tag, attributes in read.tags if tag == "i"]
    assert bars == [("down", "width:50.0%"), ("up", "width:12.5%")]


def test_a_film_ends_with_its_last_picture(tmp_path: Path) -> None:
    path = save_film(tmp_path / "film.gif", [told(number, picture=picture(60 * number)) for number in (1, 2, 3)])
    assert path is not None
    with Image.open(path) as film:
        film.seek(film.n_frames - 1)  # type: ignore[attr-defined]
        assert np.asarray(film.convert("L")).mean() == pytest.approx(180, abs=5)


def test_what_would_turn_a_line_around_is_not_shown() -> None:
    assert safe("\u202e\u2066\u200f") == "\N{REPLACEMENT CHARACTER}" * 3

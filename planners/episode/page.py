"""An episode as one HTML page to look at: a card a step, without scripts and without anything from elsewhere."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from envs.core import InputError
from marl.evaluation.plots import save_gif
from marl.output.files import write_atomically
from planners.episode.story import Choice, Proposal, StoryStep, signed

STYLE = Path(__file__).parent / "page.css"
MOST = 2_000  # characters of a text that a model wrote
MOST_WORDS = 20_000  # of a situation
WIDTH = 240  # pixels of a step's picture
SPEED = 3  # pictures of the film a second
HELD = 6  # times that the last picture is shown
# Nothing to see, or what would turn the rest of a line around.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
MARKS = {
    "accepted": "taken",
    "drawn": "taken",
    "sent back, accepted later": "taken",
    "best of what was proposed": "taken forced",
    "no plan": "none",
    "not drawn": "",
}  # of proposals, by verdict; else "back"
UNPROPOSED = {"any plan": "any plan, since none was proposed"}
ENDINGS = {"terminated": "The task was over", "truncated": "Cut off by a limit of time", None: "Not played to its end"}
FACTS = {
    "queries": "queries",
    "sent back": "sent_back",
    "no plan": "illegal",
    "nothing acceptable": "nothing_acceptable",
    "tokens read": "tokens_read",
    "tokens written": "tokens_written",
}  # of the page's head, by what decisions count


def write_page(path: Path, title: str, steps: Sequence[StoryStep], outcome: str | None = None) -> None:
    """Write an episode as a page, and beside it, where there are pictures, as a film: the same name, ending in .gif.

    steps: of a `Witness`. outcome: how the episode went, such as "Served after 15 steps"; by default, what was earned.
    All text is escaped, what a model wrote is cut after 2,000 characters. Raises InputError for no steps.
    """
    if path.suffix != ".html":
        raise InputError(f"An episode is written as a page, whose name ends with .html; got {path.name!r}.")
    if not steps:
        raise InputError(
            "There is no step to tell. Play an episode with a witness first: play(env, planner, …) with "
            "env = Witness(…, planner); then env.steps are its steps."
        )
    film = save_film(path.with_suffix(".gif"), steps)
    write_atomically(path, page(title, steps, outcome, film.name if film else None))


def save_film(path: Path, steps: Sequence[StoryStep]) -> Path | None:
    """The pictures of the steps as a GIF, the last one held for a moment; None where there are none."""
    pictures = [step.picture for step in steps if step.picture is not None]
    if not pictures:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_gif(pictures + [pictures[-1]] * HELD, path, frames_per_second=SPEED)


def page(title: str, steps: Sequence[StoryStep], outcome: str | None = None, film: str | None = None) -> str:
    """The document, in ASCII. film: name of a picture beside it."""
    head = "".join(
        [
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"script-src 'none'; object-src 'none'\">",
            f"<title>{safe(title)}</title>",
            f"<style>{STYLE.read_text(encoding='ascii')}</style>",
        ]
    )
    cards = "\n".join(_card(step) for step in steps)
    body = f"{_top(title, steps, outcome, film)}\n{_index(steps)}\n<main>\n{cards}\n</main>"
    document = f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'
    return document.encode("ascii", "xmlcharrefreplace").decode("ascii")


def safe(text: object, most: int = MOST) -> str:
    """A text that anybody may have written, as a part of a page; a long one is cut, which is said."""
    told = str(text)
    left = len(told) - most
    shown = html.escape(UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", told[:most]))
    return f"{shown}… [{left:,} more characters]" if left > 0 else shown


def _top(title: str, steps: Sequence[StoryStep], outcome: str | None, film: str | None) -> str:
    total = {name: sum(step.reward[name] for step in steps) for name in steps[0].reward}
    earned = ", ".join(f"{name} {reward:+.4g}" for name, reward in total.items() if reward)
    told = outcome or (f"Earned {earned}" if earned else "Nothing was earned")
    mark = " earned" if max(total.values(), default=0) > 0 else ""
    facts: dict[str, int | float] = {"steps": len(steps)}
    facts |= {shown: sum(step.count(name) for step in steps) for shown, name in FACTS.items()}
    cells = "".join(f"<div><dt>{name}</dt><dd>{count:,}</dd></div>" for name, count in facts.items())
    ending = f"{ENDINGS[steps[-1].ending]} after step {steps[-1].number}."
    also = f" Rewards are means over agents: {safe(earned)}." if outcome and earned else ""
    words = (
        f'<h1>{safe(title)}</h1>\n<p class="outcome{mark}">{safe(told)}</p>\n<dl class="facts">{cells}</dl>\n'
        f'<p class="soft">{ending}{also} Scores are advantages, in the critic\'s scale.</p>'
    )
    return f'<header class="top">\n<div>{words}</div>\n{_film(film)}</header>'


def _film(name: str | None) -> str:
    if name is None:
        return ""
    address = html.escape(quote(name))
    return f'<a href="{address}"><img class="film" src="{address}" alt="Film of this episode"></a>\n'


def _index(steps: Sequence[StoryStep]) -> str:
    """Links to all steps; they show where something was earned or went back."""
    links = "".join(f'<a href="#step-{step.number}"{_attributes(step)}>{step.number}</a>' for step in steps)
    key = "Filled: something was earned. Dashed: plans were sent back. Double: nothing was acceptable."
    return f'<p class="soft">{key}</p>\n<nav aria-label="Steps">{links}</nav>'


def _attributes(step: StoryStep) -> str:
    told = {
        "earned": any(reward > 0 for reward in step.reward.values()),
        "forced": step.count("nothing_acceptable") > 0,
        "back": step.count("sent_back") + step.count("illegal") > 0,
    }
    mark = next((name for name, holds in told.items() if holds), None)
    return f' class="{mark}"' if mark else ""


def _card(step: StoryStep) -> str:
    place = f"step-{step.number}"
    choices = "\n".join(_choice(choice) for choice in step.choices)
    executed = " · ".join(f"{safe(agent)} <b>{safe(plan)}</b>" for agent, plan in step.executed.items())
    ending = f' <span class="soft">{ENDINGS[step.ending]}.</span>' if step.ending else ""
    return (
        f'<article id="{place}">\n'
        f'<header><h2><a href="#{place}">Step {step.number}</a></h2>{_reward(step)}{ending}</header>\n'
        f'<div class="scene">{_picture(step.picture)}<div class="choices">\n{choices}\n</div></div>\n'
        f'<p class="executed"><span class="soft">Executed:</span> {executed}</p>\n'
        f"<details{'' if step.picture is not None else ' open'}><summary>The situation in words</summary>"
        f"<pre>{safe(step.words, MOST_WORDS)}</pre></details>\n</article>"
    )


def _reward(step: StoryStep) -> str:
    told = []
    for name, reward in step.reward.items():
        if reward:
            mark = "reward" if reward > 0 else "reward lost"
            told.append(f'<span class="{mark}">{safe(name)} {reward:+.4g}</span>')
    return "".join(told)


def _choice(choice: Choice) -> str:
    who = safe(", ".join(choice.agents))
    most = max((abs(one.score) for one in choice.proposals if one.score is not None), default=0.0)
    items = [_proposal(one, most) for one in choice.proposals]
    if not any(one.taken for one in choice.proposals):
        mark = "taken forced" if choice.why == "any plan" else "taken"
        items.append(_item(mark, safe(choice.plan), "", "", UNPROPOSED.get(choice.why, choice.why)))
    more = f'<p class="soft">{choice.left_out:,} more were weighed.</p>' if choice.left_out else ""
    return f"<section><h3>{who}</h3><ol>{''.join(items)}</ol>{more}</section>"


def _proposal(one: Proposal, most: float) -> str:
    """most: the largest advantage of the decision, in size, which fills half of a bar."""
    if one.score is None:
        bar, score = "", ""
    else:
        share = 50 * abs(one.score) / most if most else 0
        bar = f'<i class="{"up" if one.score > 0 else "down"}" style="width:{share:.1f}%"></i>'
        score = signed(one.score).replace("-", "\N{MINUS SIGN}")
    text = safe(one.text) if one.text.strip() else '<span class="soft">(nothing)</span>'
    return _item(MARKS.get(one.verdict, "back"), text, bar, score, one.verdict)


def _item(mark: str, text: str, bar: str, score: str, verdict: str) -> str:
    gauge = f'<span class="{"bar" if bar else "bar empty"}" aria-hidden="true">{bar}</span>'
    return (
        f'<li class="{mark}"><span class="plan">{text}</span>{gauge}<span class="score">{score}</span>'
        f'<span class="verdict">{verdict}</span></li>\n'
    )


def _picture(picture: Any) -> str:
    """A picture [height,width,3] uint8 as a small one within the page."""
    if picture is None:
        return ""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture))
    height = max(1, round(WIDTH * image.height / image.width))
    buffer = io.BytesIO()
    image.resize((WIDTH, height), Image.Resampling.LANCZOS).quantize(64).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img src="data:image/png;base64,{data}" alt="The world before this step" width="{WIDTH}" height="{height}">'
    )

"""The page in a browser: it works, asks for nothing, and no text of a model is more than text in it."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from etils import epath

from selfreward_jax.report.make import write_report
from tests import tiny
from tests.report.test_results import add_results

pytestmark = pytest.mark.slow

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(not BROWSER, reason="neither chromium nor google-chrome is installed")

OWN = "document.title='owned'"
HOSTILE = {
    "prompts": f"<script>{OWN}</script> Say <b>bold</b> & {{{{7*7}}}} {{% raise %}} $x^2$",
    "responses": f"""</script><script>{OWN}</script><img src=x onerror="{OWN}"> <!-- <script> ]]> '"&amp; """
    "line\u2028sep \u202egnp.exe \x07\x00 שלום " + "W" * 3000,
    "judgements": f"</div></textarea></style><svg onload={OWN}> {{{{ config }}}} Score: 5",
}
TOPICS = ("bread", "rivers", "chess", "planets", "gardens", "music")
FIELDS = {"responses": "text", "judgements": "text"}


def poison(run: Path, name: str, text: str) -> None:
    """Puts a text before that of every row of M2's and of the last model's data."""
    for path in run.glob(f"m*/**/{name}.jsonl"):
        rows = tiny.read_jsonl(path)
        for n, row in enumerate(rows):
            if name == "prompts":
                row["messages"][-1]["content"] = f"{text} {TOPICS[n]} {path.parent.name}"
            else:
                row[FIELDS[name]] = text + row[FIELDS[name]]
        tiny.write_jsonl(path, rows)
        tiny.forget(run, str(path.relative_to(run)))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """The report of a run whose models wrote what they should not, in a folder with such a name, evaluated as well."""
    finished = tiny.shared_run(tmp_path_factory.getbasetemp())
    ignore = shutil.ignore_patterns("checkpoints", "tb", "tokenizer.json")
    run = shutil.copytree(finished, tmp_path_factory.mktemp("page") / "a<i>b&c", ignore=ignore)
    for name, text in HOSTILE.items():
        poison(run, name, text)
    add_results(run / "eval")
    write_report(epath.Path(run), epath.Path(run / "report.html"))
    return run / "report.html"


# A browser that starts anew is to ask for nothing in the network, which it would wait for where there is none.
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-extensions",
    "--disable-sync", "--virtual-time-budget=3000",
]  # fmt: skip


def dump(path: Path) -> str:
    """The page as it stands in the browser when its scripts have run."""
    assert BROWSER
    words = [BROWSER, *FLAGS, f"--user-data-dir={path.parent / 'profile'}", "--dump-dom", path.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout


def title(dom: str) -> str:
    return re.findall(r"<title>(.*?)</title>", dom)[0]


LOOKS = {
    "texts": """
        out.prompt = document.querySelector(".prompt .text").textContent;
        out.answer = document.querySelector(".answer > .text").textContent;
        out.judgement = document.querySelector(".answer li .text").textContent;
        out.elements = document.querySelectorAll("#sample script, #sample img, #sample svg, #sample b b").length;
        """,
    "samples": """
        const id = (x) => document.getElementById(x), count = () => id("count").textContent;
        const set = (x, value, type) => { id(x).value = value; id(x).dispatchEvent(new Event(type)); };
        const prompt = () => document.querySelector(".prompt").textContent;
        out.first = count(); out.before = id("before").disabled; out.one = prompt();
        id("next").click(); out.second = count(); out.two = prompt();
        id("before").click(); out.back = prompt();
        set("where", "M2 → M3", "change"); out.where = [count(), prompt()]; set("where", "", "change");
        set("outcome", "pair", "change"); out.pairs = count();
        set("order", "largest margin", "change"); out.margin = prompt();
        out.cards = [...document.querySelectorAll(".answer")].map((x) => x.className);
        set("outcome", "", "change"); set("search", "no such words", "input"); out.none = count();
        set("search", "", "input"); id("open").click(); out.open = document.querySelector(".answer details").open;
        """,
    "widths": """
        document.body.style.width = "360px";
        const own = (x) => ["auto", "scroll"].includes(getComputedStyle(x).overflowX);
        const scrolls = (x) => x && (own(x) || scrolls(x.parentElement));
        const right = document.body.getBoundingClientRect().right;
        out.wide = [...document.querySelectorAll("main *")]
          .filter((x) => x.getBoundingClientRect().right > right + 1 && !scrolls(x.parentElement) && !x.closest("svg"))
          .map((x) => x.tagName + "." + x.className);
        """,
}


@pytest.fixture(scope="module")
def seen(page) -> tuple[str, dict]:
    """The page in the browser, and what the looks, a script let in by its hash, find there one after another."""
    looks = "".join(f"((out) => {{ {look} }})(found.{name} = {{}});" for name, look in LOOKS.items())
    script = f"const found = {{}}; {looks} document.body.setAttribute('data-found', JSON.stringify(found));"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = page.read_text().replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    visited = page.parent / "visited.html"
    visited.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    dom = dump(visited)
    return dom, json.loads(html.unescape(re.findall(r'data-found="(.*?)"', dom)[0]))


# ---------------------------------------------------------------------------------------------------------------------
# Text stays text


@needs_browser
def test_no_script_of_a_model_runs(seen):
    assert title(seen[0]) == "a&lt;i&gt;b&amp;c · self-rewarding run"


@needs_browser
def test_a_script_that_stood_in_the_page_would_be_stopped_by_its_policy(page):
    """And without the policy it would run, so that the test above can fail."""
    unescaped = page.read_text().replace("<main>", f"<main><script>{OWN}</script><img src=x onerror={OWN}>")
    path = page.parent / "unescaped.html"
    path.write_text(unescaped)
    assert "owned" not in title(dump(path))
    path.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", unescaped))
    assert title(dump(path)) == "owned"


@needs_browser
def test_what_models_wrote_is_shown_as_they_wrote_it(seen):
    out = seen[1]["texts"]
    assert out["prompt"].startswith(HOSTILE["prompts"])
    assert out["judgement"].startswith(HOSTILE["judgements"])
    named = HOSTILE["responses"].replace("\u202e", "[U+202E]").replace("\x07", "\u2407").replace("\x00", "\u2400")
    assert out["answer"].startswith(named)
    assert out["elements"] == 0


def test_no_text_of_a_model_is_markup_in_the_file(page):
    text = page.read_text()
    assert text.count("<script") == text.count("</script>") == 2  # the data, and the page's own
    assert "<img" not in text
    assert "onerror" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "49" not in re.findall(r"Say .{0,60}", text)[0]  # the template is not run over it


def test_the_policy_names_the_one_script_by_its_hash(page):
    text = page.read_text()
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="(.*?)"', text)[0])
    script = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"


def test_the_page_asks_for_nothing(page):
    text = re.sub(r'<script type="application/json".*?</script>', "", page.read_text(), flags=re.DOTALL)
    assert not re.findall(r"https?://|@import|src=|url\((?!#)", text)
    assert {link for link in re.findall(r'href="(.*?)"', text) if link[0] != "#"} == {"data:,"}


# ---------------------------------------------------------------------------------------------------------------------
# The page works


@needs_browser
def test_every_section_has_its_figures(seen):
    dom = seen[0]
    assert dom.count("<section") == 11
    for name in ("scores", "length", "judge", "wins", "training", "funnel", "prompts"):
        section = re.findall(rf'<section id="{name}">(.*?)</section>', dom, flags=re.DOTALL)[0]
        assert "<svg" in section, name
        assert name != "wins" or "a&lt;b&gt;" in section


@needs_browser
def test_the_browser_of_samples_pages_filters_sorts_and_searches(page, seen):
    out = seen[1]["samples"]
    samples = json.loads(re.findall(r'id="samples-data">(.*?)</script>', page.read_text())[0])
    assert out["first"] == f"1 of {len(samples)}"
    assert out["before"] is True
    assert out["second"] == f"2 of {len(samples)}"
    assert out["back"] == out["one"] != out["two"]
    assert out["where"][0] == f"1 of {sum(s['where'] == 'M2 → M3' for s in samples)}"
    assert "M2 → M3" in out["where"][1]
    paired = [s for s in samples if s["outcome"] == "pair"]
    assert out["pairs"] == f"1 of {len(paired)}"
    best = max(s["margin"] for s in paired)
    assert re.search(rf"margin {best:.2f}".rstrip("0").rstrip("."), out["margin"])
    assert sorted(set(out["cards"])) == ["answer ", "answer chosen", "answer rejected"]
    assert out["none"] == "none"
    assert out["open"] is True


@needs_browser
def test_nothing_is_wider_than_a_phone(seen):
    """What scrolls by itself, tables and the map, apart."""
    assert seen[1]["widths"]["wide"] == []


def test_the_same_run_has_the_same_page(page):
    again = page.parent / "again.html"
    write_report(epath.Path(page.parent), epath.Path(again))
    assert again.read_bytes() == page.read_bytes()


def test_it_is_small(page):
    assert len(page.read_bytes()) < 2_000_000

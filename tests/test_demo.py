"""The demo goes the whole way and leaves a report that needs nothing from outside."""

import json
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from drawing import blank
from PIL import Image
from running import run_script

import geneformer_repro as gf

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_trees", "few_resamples", "flat_maps")]

DEMO = Path(__file__).parents[1] / "examples" / "demo.py"


def blankly(call: Callable[..., object]) -> Callable[..., object]:
    """Call something that draws pictures of its own, which nobody looks at here."""

    def called(*given: object, **options: object) -> object:
        with blank():
            return call(*given, **options)

    return called


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo-output"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("finetune", "write_screen_report", "transfer_study"):
            patch.setattr(gf, name, blankly(getattr(gf, name)))
        said = run_script(DEMO, "--quick", "--out", out)
    (out / "stdout.txt").write_text(said.stdout)
    (out / "stderr.txt").write_text(said.stderr)
    return out


class Page(HTMLParser):
    """Collects tags, the sources of pictures, and every address a browser would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.pictures, self.loaded = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.pictures += [value for name, value in attrs if tag == "img" and name == "src"]
        self.loaded += [value for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]


def test_every_step_says_its_result_in_a_line(demo):
    said = (demo / "stdout.txt").read_text()
    steps = ("counts", "vocabulary", "tokenize", "pretrain", "finetune", "embed", "perturb", "survival")
    assert [line.split()[0] for line in said.splitlines() if line.startswith(steps)] == list(steps)


def test_long_steps_show_a_bar_with_a_rate(demo):
    shown = (demo / "stderr.txt").read_text()
    assert all(f"{step}: 100%" in shown for step in ("tokenize", "pretrain", "fine-tune", "embed", "perturb"))
    assert "cells/s" in shown
    assert "variants/s" in shown


def test_its_data_files_open(demo):
    cells = gf.TokenizedDataset.open(demo / "cells.tok", gf.Vocabulary.load(demo / "vocabulary"))
    assert len(cells) == 234
    gf.Checkpoint.from_pretrained(demo / "pretrained").require_matching(cells)
    assert gf.Checkpoint.from_pretrained(demo / "classifier").head.targets[0].name == "cell_type"
    assert gf.ShiftTable.open(demo / "shifts.parquet").metadata["n_cells"] == 5


def test_its_provenance_names_every_file_and_version(demo):
    record = json.loads((demo / "provenance.json").read_text())
    assert {"cells.h5ad", "embedding.h5ad", "screen.tsv", "report.html"} <= set(record["inputs"])
    assert {"python", "torch", "scanpy"} <= set(record["versions"])


def test_its_report_loads_nothing(demo):
    page = Page((demo / "report.html").read_text())
    assert page.loaded == page.pictures
    assert all(picture.startswith("data:image/") for picture in page.pictures)
    assert not {"link", "iframe", "object"} & set(page.tags)


def test_its_report_has_the_seven_parts_each_with_what_it_does_not_show(demo):
    page = (demo / "report.html").read_text()
    assert page.count("<section>") == page.count("Shows:</b>") == page.count("Does not show:</b>") == 7
    assert len(Page(page).pictures) == 6
    assert page.count("<table") == 3


def test_its_report_renders_in_a_browser_without_a_network(demo, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium or chrome on this machine")
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--no-first-run"]
    picture = tmp_path / "report.png"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", *offline, profile]
    page = [f"--screenshot={picture}", "--window-size=1000,4200", (demo / "report.html").as_uri()]
    subprocess.run([*command, *page], check=True, capture_output=True, timeout=120)
    colours = Image.open(picture).convert("RGB").getcolors(maxcolors=2**24)
    assert len(colours) > 500  # text and five coloured figures, not a blank page


def test_it_replaces_an_earlier_demo_and_nothing_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit, match="not an earlier demo's output"):
        run_script(DEMO, "--quick", "--out", tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"

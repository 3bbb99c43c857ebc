"""The page stands alone, says what the records say, and shows user text as text."""

from __future__ import annotations

import re

import numpy as np

from eval.metrics.curve import ImageScores
from eval.metrics.measure import ImageMetrics, measure_score
from eval.protocol import get_protocol
from eval.report.page import render_page
from eval.report.panels import encode_png
from eval.report.tables import build_tables
from eval.result import Result
from tests.support.records import make_record

TABLES = build_tables([make_record(model="<script>x</script>")])


def drawn_cell(model: str) -> Result:
    rng = np.random.default_rng(0)
    normal, anomalous = (np.sort(rng.normal(loc=loc, size=(3, 400 // (1 + 3 * loc)))) for loc in (0, 1))
    images = [ImageScores(*pair) for pair in zip(anomalous.astype("f4"), normal.astype("f4"), strict=True)]
    measured = measure_score(images, get_protocol("native"))
    record = make_record(model=model, dataset="Mine", ap=0.5, ap_ci=(0.25, 0.75), fpr95=0.125)
    rows = [ImageMetrics(i, 300, 100, measured.metrics) for i in range(3)]
    return Result(record, measured.counts, rows, ("a", "b<c", "d"), "mine")


def test_everything_is_inside_the_file():
    page = render_page("T", [drawn_cell("m")], {"Mine": encode_png(np.zeros((8, 8, 3), np.uint8))}, TABLES)
    for source in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert source.startswith(("data:image/webp;base64,", "#")), source
    assert not re.search(r"https?://|<script", page)
    assert '50.00 <span class="ci">[25.0, 75.0]</span>' in page
    assert "<td>12.50</td>" in page
    assert "protocol native: images at native size; scores of the image" in page


def test_names_are_text_not_markup():
    page = render_page("<b>&", [drawn_cell("<script>x</script>")], {}, TABLES)
    assert "<script>" not in page
    assert "b&lt;c" in page
    assert "<title>&lt;b&gt;&amp;</title>" in page


def test_curves_end_at_full_recall_and_hold_the_metric():
    curve = drawn_cell("m").counts.curve()
    recall, precision, fpr = curve.recall, curve.precision, curve.fpr
    assert (recall[-1], fpr[-1]) == (1, 1)
    assert (np.diff(recall) >= 0).all()
    area = float((np.diff(recall, prepend=0) * precision).sum())
    assert abs(area - drawn_cell("m").images[0].metrics.ap) < 1e-9  # 1200 pixels: the sketch is exact

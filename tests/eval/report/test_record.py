"""Records survive a round trip, and tables show what the records say."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

import pytest

from eval.report.record import Record, csv_text, parse_json, render_csv, render_json
from eval.report.tables import MISSING, build_tables, latex_tables, render_markdown
from shards.errors import InputError
from tests.support.records import EXAMPLE, make_record


def markdown_rows(*records: Record) -> list[list[str]]:
    lines = [line for line in render_markdown(records).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_no_name_becomes_a_formula() -> None:
    names = ["=1+1", "+1", "-1", "@a", "\ta", " =1", "a=1", "", "7"]
    text = csv_text([names, [-1, -0.5, None]])
    first, second = csv.reader(io.StringIO(text))
    assert first == ["'=1+1", "'+1", "'-1", "'@a", "'\ta", "' =1", "a=1", "", "7"]
    assert second == ["-1", "-0.5", ""]


def render_latex(records: Sequence[Record]) -> str:
    return latex_tables(build_tables(records))


def test_json_has_the_fields_of_the_format_and_null_for_missing():
    (entry,) = json.loads(render_json([EXAMPLE]))
    assert list(entry) == [
        "model", "checkpoint", "score", "temperature", "temperature_from", "dataset", "protocol",
        "num_images", "num_pixels", "ap", "ap_ci", "fpr95", "fpr95_ci", "auroc", "miou",
        "auroc_ci", "miou_ci", "best_f1", "best_f1_ci", "siou", "siou_ci", "ppv", "ppv_ci", "f1_star",
        "f1_star_ci",
        "ece", "ece_ci", "limit", "sees", "miou_images", "miou_unseen", "pasted",
        "trained_on",
    ]  # fmt: skip
    assert entry["miou"] is None
    assert entry["ap"] == 0.74386


def test_json_round_trip():
    records = [EXAMPLE, make_record(score="RbA", ap_ci=(0.5, 0.75), miou=0.8)]
    assert parse_json(render_json(records), "results.json") == records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "results.json: is no valid JSON"),
        ('{"a": 1}', r"results.json: is {'a': 1}; list.* is needed"),
        ('[{"model": "a"}]', r"results.json: \[0\]: has no field 'checkpoint'"),
        ("[3]", r"results.json: \[0\]: is a int; a JSON object is needed"),
        *[
            (render_json([EXAMPLE]).replace("0.74386", text), r"\[0\]: ap is .*; a finite number or null")
            for text in ("1e999", "-Infinity", "NaN")
        ],
    ],
)
def test_a_file_of_another_format_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_json(text, "results.json")


def test_csv_reads_back_with_intervals_as_two_columns():
    sure = make_record(ap_ci=(0.5, 0.75), miou_unseen=("truck", "bus"))
    (row,) = csv.DictReader(io.StringIO(render_csv([sure])))
    assert row["miou_unseen"] == "truck bus"
    assert (row["ap"], row["ap_ci_low"], row["ap_ci_high"]) == ("0.74386", "0.5", "0.75")
    assert (row["miou"], row["fpr95_ci_low"]) == ("", "")
    assert [n for n in row if "_ci_" not in n] == [n for n in vars(EXAMPLE) if not n.endswith("_ci")]


def test_the_table_has_the_columns_that_were_measured_in_the_order_of_the_paper():
    measured = [make_record(dataset=name, miou=0.8) for name in ("Our street", "FS Static", "SMIYC RA-21")]
    names = ["SMIYC RA-21", "FS Static", "Our street"]
    columns = [f"{name} {metric}" for name in names for metric in ("AuPRC", "FPR95")]
    assert markdown_rows(*measured)[0] == ["Model", "Method", "mIoU", *columns]


def test_all_columns_of_the_paper_are_there_on_request():
    names = ["SMIYC RA-21", "SMIYC RO-21", "FS L&F", "FS Static", "Road Anomaly"]
    (table,) = build_tables([EXAMPLE], all_columns=True)
    assert table.header[2:] == ("mIoU", *[f"{n} {m}" for n in names for m in ("AuPRC", "FPR95")])
    assert [entry.text for entry in table.rows[0][2:]] == [MISSING, "74.39", "33.72", *[MISSING] * 8]


def test_own_sets_have_columns_of_their_names():
    own = [make_record(dataset="Our street"), make_record(dataset="Our yard", fpr95=None)]
    assert render_markdown(own).splitlines()[:3] == [
        "| Model | Method | Our street AuPRC | Our street FPR95 | Our yard AuPRC | Our yard FPR95 |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| run_a | MSP | 74.39 | 33.72 | 74.39 | – |",  # noqa: RUF001
    ]
    latex = render_latex(own)
    assert "\n& & \\multicolumn{2}{c}{Our street} & \\multicolumn{2}{c}{Our yard} \\\\\n" in latex
    assert "\n\\cmidrule(lr){3-4} \\cmidrule(lr){5-6}\n" in latex
    assert "\nModel & Method & AuPRC & FPR95 & AuPRC & FPR95 \\\\\n" in latex


def test_intervals_stand_small_beside_their_numbers_where_there_are_any():
    sure = make_record(ap_ci=(0.5, 0.7512), miou=0.8, miou_ci=(0.79, 0.81))
    header, _, first, second = markdown_rows(sure, make_record(score="RbA", ap=0.5))
    column = header.index("SMIYC RA-21 AuPRC")
    expected = ("80.00 [79.0, 81.0]", "**74.39** [50.0, 75.1]", "50.00")
    assert (first[2], first[column], second[column]) == expected
    assert "Percent; in brackets 95 % over images; protocol native" in render_markdown([sure])
    below = r" &  & {\tiny [79.0, 81.0]} & {\tiny [50.0, 75.1]} &  \\"  # beside them it would be too wide
    assert below in render_latex([sure]).splitlines()
    assert "brackets" not in render_markdown([EXAMPLE])


def test_the_best_of_each_column_is_bold_and_what_is_equal_in_print():
    worse = make_record(score="RbA", ap=0.6999, fpr95=0.2, miou=0.8)
    rows = markdown_rows(EXAMPLE, worse)[2:]
    assert rows[0] == ["run_a", "MSP", MISSING, "**74.39**", "33.72"]
    assert rows[1][2:5] == ["80.00", "69.99", "**20.00**"]  # of the mIoU, nothing to compare with
    rows = markdown_rows(EXAMPLE, make_record(score="A", ap=0.743859), make_record(score="B", ap=0.1))[2:]
    assert [row[2] for row in rows] == ["**74.39**", "**74.39**", "10.00"]


def test_sets_of_one_row_are_joined_and_temperatures_are_rows_of_their_own():
    other = make_record(dataset="FS Static", ap=0.5, fpr95=0.25)
    warm = make_record(temperature=8.0, temperature_from="synthetic val")
    rows = markdown_rows(EXAMPLE, other, warm)[2:]
    assert [row[1] for row in rows] == ["MSP", "MSP (T = 8 from synthetic val)"]
    assert rows[0][4:6] == ["50.00", "25.00"]


def test_each_protocol_has_its_own_table_and_footnote():
    text = render_markdown([EXAMPLE, make_record(protocol="elsewhere")])
    assert text.count("| Model |") == 2
    assert "Percent; protocol native: images at native size; scores of the image at scale 1, not smoo" in text
    assert (
        "Percent; protocol elsewhere; MSP of softmax(L), of logits and of a mask model's evidence al" in text
    )


def test_the_footnote_says_how_each_model_saw_the_images():
    whole = make_record(sees="whole images")
    assert render_markdown([whole]).endswith("evidence alike. Model input: whole images.\n")
    text = render_markdown([whole, make_record(model="b", sees="windows"), make_record(model="c")])
    assert text.endswith("evidence alike. Input of run_a: whole images. Input of b: windows.\n")


def test_the_footnote_says_what_was_pasted_in_training_of_whom():
    records = [
        make_record(model=name, pasted=words) for name, words in (("a", "cow"), ("b", "cow"), ("c", ""))
    ]
    assert "Objects pasted in training of a, b: cow." in render_markdown(records)
    assert "Objects pasted" not in render_markdown(records[2:])


def test_the_footnote_names_classes_that_no_label_has_but_the_miou_counts():
    text = render_markdown([make_record(miou=0.1, miou_unseen=("truck", "bus"), limit=4)])
    assert "| run_a (first 4 frames) | MSP | 10.00 |" in text
    assert "mIoU of run_a (first 4 frames): the mean over the classes that are in a label or a predic" in text
    assert "truck, bus: in no label, but predicted, so counted with 0." in text


def test_equal_records_twice_are_one_but_two_values_for_a_cell_are_refused():
    assert render_markdown([EXAMPLE, EXAMPLE]) == render_markdown([EXAMPLE])
    message = "two different records for run_a, MSP, SMIYC RA-21, protocol native"
    with pytest.raises(InputError, match=message):
        render_markdown([EXAMPLE, make_record(ap=0.5)])


def test_latex_is_escaped_and_marks_the_best():
    other = make_record(dataset="FS L&F", ap=None, fpr95=0.25, miou=None)
    text = render_latex([EXAMPLE, other, make_record(score="RbA", ap=0.5, fpr95=0.1, miou=0.5)])
    assert r"run\_a & MSP & -- & \textbf{74.39} & 33.72 & --" in text
    assert r"\multicolumn{2}{c}{FS L\&F}" in text
    assert r"\cmidrule(lr){6-7}" in text
    assert text.index(r"\resizebox{\ifdim\width>\linewidth") < text.index(r"\begin{tabular}{llrrrrr}")
    assert text.count(r"\\") == 4  # two header lines, two rows
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")


def test_no_records_make_no_table():
    assert render_markdown([]) == render_latex([]) == render_csv([]) == ""
    assert json.loads(render_json([])) == []

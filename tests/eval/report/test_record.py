"""Records survive a round trip, and tables show what the records say."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import pytest

from eval.report.record import FIELDS, Record, parse_json, render_csv, render_json
from eval.report.tables import render_latex, render_markdown
from eval.sets.registry import TEST_SETS
from shards.errors import InputError

EXAMPLE = Record(
    model="run_a",
    checkpoint="runs/run_a",
    score="MSP",
    temperature=1.0,
    temperature_from=None,
    dataset="SMIYC RA-21",
    protocol="native",
    num_images=10,
    num_pixels=9_000_000,
    ap=0.74386,
    ap_ci=None,
    fpr95=0.3372,
    fpr95_ci=None,
    auroc=0.93,
    miou=None,
)


def variant(**changes: object) -> Record:
    return dataclasses.replace(EXAMPLE, **changes)  # type: ignore[arg-type]


def markdown_rows(*records: Record) -> list[list[str]]:
    lines = [line for line in render_markdown(records).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_json_has_the_fields_of_the_format_and_null_for_missing():
    (entry,) = json.loads(render_json([EXAMPLE]))
    assert list(entry) == [
        "model", "checkpoint", "score", "temperature", "temperature_from", "dataset", "protocol",
        "num_images", "num_pixels", "ap", "ap_ci", "fpr95", "fpr95_ci", "auroc", "miou",
        "auroc_ci", "miou_ci", "best_f1", "best_f1_ci", "siou", "siou_ci", "ppv", "ppv_ci", "f1_star",
        "f1_star_ci",
        "ece", "ece_ci",
    ]  # fmt: skip
    assert entry["miou"] is None
    assert entry["ap"] == 0.74386


def test_json_round_trip():
    records = [EXAMPLE, variant(score="RbA", ap_ci=(0.5, 0.75), miou=0.8)]
    assert parse_json(render_json(records), "results.json") == records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "results.json: not JSON"),
        ('{"a": 1}', "results.json: expected a list of records, got dict"),
        (
            '[{"model": "a"}]',
            r"results.json: record 0: fields differ from the format \(ap, .*\); expected model, ",
        ),
        ("[3]", r"record 0: fields differ from the format \(3\)"),
    ],
)
def test_a_file_of_another_format_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_json(text, "results.json")


def test_csv_reads_back_with_intervals_as_two_columns():
    (row,) = csv.DictReader(io.StringIO(render_csv([variant(ap_ci=(0.5, 0.75))])))
    assert (row["ap"], row["ap_ci_low"], row["ap_ci_high"]) == ("0.74386", "0.5", "0.75")
    assert (row["miou"], row["fpr95_ci_low"]) == ("", "")
    assert [name for name in FIELDS if not name.endswith("_ci")] == [n for n in row if "_ci_" not in n]


def test_the_table_has_the_columns_of_the_paper():
    header = markdown_rows(EXAMPLE)[0]
    names = ["SMIYC RA-21", "SMIYC RO-21", "FS L&F", "FS Static", "Road Anomaly"]
    assert header == ["Model", "Method", "mIoU", *[f"{n} {m}" for n in names for m in ("AuPRC", "FPR95")]]


def test_the_benchmarks_have_no_columns_beside_own_sets_alone():
    own = [variant(dataset="Our street"), variant(dataset="Our yard", fpr95=None)]
    assert render_markdown(own).splitlines()[:3] == [
        "| Model | Method | mIoU | Our street AuPRC | Our street FPR95 | Our yard AuPRC | Our yard FPR95 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        "| run_a | MSP | – | 74.39 | 33.72 | 74.39 | – |",  # noqa: RUF001
    ]
    assert r"& & & \multicolumn{2}{c}{Our street} & \multicolumn{2}{c}{Our yard} \\" in render_latex(own)
    header = markdown_rows(*own, EXAMPLE)[0]
    assert header[3::2][:5] == [f"{c.name} AuPRC" for c in TEST_SETS.values()]
    assert header[13:] == ["Our street AuPRC", "Our street FPR95", "Our yard AuPRC", "Our yard FPR95"]


def test_percent_with_two_decimals_and_a_dash_for_missing():
    row = markdown_rows(EXAMPLE)[2]
    assert row[:6] == ["run_a", "MSP", "–", "74.39", "33.72", "–"]  # noqa: RUF001


def test_intervals_stand_small_beside_their_numbers_where_there_are_any():
    sure = variant(ap_ci=(0.5, 0.7512), miou=0.8, miou_ci=(0.79, 0.81))
    header, _, first, second = markdown_rows(sure, variant(score="RbA", ap=0.5))
    column = header.index("SMIYC RA-21 AuPRC")
    assert (first[2], first[column], second[column]) == (
        "80.00 [79.0, 81.0]",
        "**74.39** [50.0, 75.1]",
        "50.00",
    )
    assert "Percent; in brackets 95 % over images; protocol native" in render_markdown([sure])
    assert r"74.39\,{\tiny [50.0, 75.1]}" in render_latex([sure])
    assert "brackets" not in render_markdown([EXAMPLE])


def test_the_best_of_each_column_is_bold():
    worse = variant(score="RbA", ap=0.6999, fpr95=0.2, miou=0.8)
    rows = markdown_rows(EXAMPLE, worse)[2:]
    assert rows[0][3:5] == ["**74.39**", "33.72"]
    assert rows[1][3:5] == ["69.99", "**20.00**"]
    assert rows[1][2] == "80.00"  # nothing to compare with


def test_cells_equal_in_print_are_both_bold():
    rows = markdown_rows(EXAMPLE, variant(score="A", ap=0.743859), variant(score="B", ap=0.1))[2:]
    assert [row[3] for row in rows] == ["**74.39**", "**74.39**", "10.00"]


def test_sets_of_one_row_are_joined_and_temperatures_are_rows_of_their_own():
    other = variant(dataset="FS Static", ap=0.5, fpr95=0.25)
    warm = variant(temperature=8.0, temperature_from="synthetic val")
    rows = markdown_rows(EXAMPLE, other, warm)[2:]
    assert [row[1] for row in rows] == ["MSP", "MSP (T = 8 from synthetic val)"]
    assert rows[0][9:11] == ["50.00", "25.00"]


def test_each_protocol_has_its_own_table_and_footnote():
    text = render_markdown([EXAMPLE, variant(protocol="elsewhere")])
    assert text.count("| Model |") == 2
    assert "Percent; protocol native: input scaled to cover the window;" in text
    assert "Percent; protocol elsewhere." in text


def test_equal_records_twice_are_one_but_two_values_for_a_cell_are_refused():
    assert render_markdown([EXAMPLE, EXAMPLE]) == render_markdown([EXAMPLE])
    with pytest.raises(
        InputError, match="two different records for run_a, MSP, SMIYC RA-21, protocol native"
    ):
        render_markdown([EXAMPLE, variant(ap=0.5)])


def test_latex_is_escaped_and_marks_the_best():
    text = render_latex([EXAMPLE, variant(score="RbA", ap=0.5, fpr95=0.1)])
    assert r"run\_a & MSP & -- & \textbf{74.39} & 33.72 & -- &" in text
    assert r"\multicolumn{2}{c}{FS L\&F}" in text
    assert r"\cmidrule(lr){12-13}" in text
    assert text.count(r"\\") == 4  # two header lines, two rows
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")


def test_no_records_make_no_table():
    assert render_markdown([]) == render_latex([]) == render_csv([]) == ""
    assert json.loads(render_json([])) == []

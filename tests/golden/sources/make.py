"""Writes one data set in every form that rows are read from, and what its types are in Python.

Needs pyarrow and pandas. `python make.py` writes next to itself; the same versions write the same bytes.
"""

import csv
import datetime
import decimal
import gzip
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent

PROMPTS = [
    "March 3, 2021",
    'a "quoted" word, and a comma',
    "two\nlines",
    "two\r\nlines of Windows",
    " leading and trailing ",
    "007",
    "Größe, 東京, 🙂",
    "tab\tin it",
    "=1+1",
    "null",
    "1e5",
    "True",
    "semi;colon",
]
ROWS = [{"prompt": prompt, "completion": f"answer {i}: {prompt[::-1]}"} for i, prompt in enumerate(PROMPTS)]

CALL = {"name": "weather", "arguments": {"city": "Paris"}}
CHATS = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "And in\nParis?", "name": "ann"},
            {"role": "assistant", "content": "Sunny.", "weight": 1},
            {"role": "user", "content": "Thanks"},
            {"role": "assistant", "content": "You are welcome."},
        ]
    },
]


def text(name, rows, ending="\n"):
    (HERE / name).write_text("".join(json.dumps(row, ensure_ascii=False) + ending for row in rows), encoding="utf-8", newline="")


def table(name, rows):
    delimiter = "\t" if name.endswith("tsv") else ","
    with open(HERE / name, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\n" if delimiter == "\t" else "\r\n")
        writer.writeheader()
        writer.writerows(rows)


def main():
    text("rows.jsonl", ROWS)
    (HERE / "rows.json").write_text(json.dumps(ROWS, ensure_ascii=False, indent=2), encoding="utf-8", newline="")
    (HERE / "compact.json").write_text(json.dumps(ROWS), encoding="utf-8", newline="")
    table("rows.csv", ROWS)
    table("rows.tsv", ROWS)
    pd.DataFrame(ROWS).to_csv(HERE / "pandas.csv", index=False)
    plain = (HERE / "rows.jsonl").read_bytes()
    half = len(plain) // 2
    members = gzip.compress(plain[:half], mtime=0) + gzip.compress(plain[half:], mtime=0)
    (HERE / "rows.jsonl.gz").write_bytes(members)
    (HERE / "rows.csv.gz").write_bytes(gzip.compress((HERE / "rows.csv").read_bytes(), mtime=0))
    frames = pa.compress(plain[:half], "zstd", asbytes=True) + pa.compress(plain[half:], "zstd", asbytes=True)
    (HERE / "rows.jsonl.zst").write_bytes(frames)

    rows = pa.Table.from_pylist(ROWS)
    for codec in ["none", "snappy", "gzip", "zstd", "brotli"]:
        pq.write_table(rows, HERE / f"rows-{codec}.parquet", compression=codec, row_group_size=5)
    pq.write_table(rows, HERE / "rows-v2.parquet", data_page_version="2.0", compression="zstd", write_page_checksum=True)
    small = {"use_dictionary": False, "data_page_size": 64, "write_batch_size": 2}
    pq.write_table(rows, HERE / "rows-pages.parquet", compression="snappy", write_page_checksum=True, **small)
    pq.write_table(rows, HERE / "rows-delta.parquet", use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")
    pq.write_table(rows.cast(pa.schema([("prompt", pa.large_string()), ("completion", pa.large_string())])), HERE / "rows-large.parquet")

    text("chat.jsonl", CHATS)
    pq.write_table(pa.Table.from_pylist(CHATS), HERE / "chat.parquet")
    text_rows = [{"messages": json.dumps(row["messages"], ensure_ascii=False)} for row in CHATS]
    table("chat.csv", text_rows)

    # Lists of unequal lengths in pages of a few values, which end within rows, and elsewhere in each column.
    nested = [
        {
            "messages": [{"role": "user", "content": "ä" * (i * j % 40)} for j in range(i * 7 % 5)] if i % 11 else None,
            "tags": [[k * i for k in range(j)] for j in range(i % 4)],
            "text": f"row {i} " + "x" * (i * 37 % 300) if i % 6 else None,
            "n": i,
        }
        for i in range(90)
    ]
    text("nested.jsonl", nested)
    for version in ["1.0", "2.0"]:
        small = {"data_page_size": 100, "write_batch_size": 3, "data_page_version": version, "row_group_size": 50}
        pq.write_table(pa.Table.from_pylist(nested), HERE / f"nested-{version[0]}.parquet", **small)

    day = datetime.date(2021, 3, 3)
    time = datetime.datetime(1969, 12, 31, 23, 59, 59, 250000)
    types = [
        {"int": 1, "long": 2**60, "float": 1.0, "third": 1 / 3, "truth": True, "day": day, "time": time, "money": decimal.Decimal("-1.50")},
        {"int": -5, "long": -1, "float": 0.5, "third": 1e20, "truth": False, "day": day, "time": time, "money": decimal.Decimal("0.07")},
        {key: None for key in ["int", "long", "float", "third", "truth", "day", "time", "money"]},
    ]
    schema = pa.schema(
        [("int", pa.int32()), ("long", pa.int64()), ("float", pa.float64()), ("third", pa.float32()), ("truth", pa.bool_())]
        + [("day", pa.date32()), ("time", pa.timestamp("us")), ("money", pa.decimal128(10, 2))]
        + [("tags", pa.list_(pa.string())), ("who", pa.struct([("name", pa.string()), ("ages", pa.list_(pa.int64()))]))]
    )
    lists = [(["a", "b"], {"name": "x", "ages": [1, 2]}), ([], {"name": None, "ages": []}), (None, None)]
    whole = [{**row, "tags": tags, "who": who} for row, (tags, who) in zip(types, lists, strict=True)]
    pq.write_table(pa.Table.from_pylist(whole, schema), HERE / "types.parquet")
    values = pq.read_table(HERE / "types.parquet").to_pylist()
    said = [{key: str(value) for key, value in row.items()} for row in values]
    (HERE / "types.json").write_text(json.dumps(said, indent=1), encoding="utf-8", newline="")

    clock = datetime.time(1, 2, 3, 4000)
    moments = [
        {"ms": clock, "us": clock, "ns": clock, "utc": time, "utc_ms": time, "small": decimal.Decimal("-1E-10")},
        {"ms": datetime.time(0), "us": datetime.time(23, 59, 59, 999999), "ns": datetime.time(12), "small": decimal.Decimal("1.5E-8")},
        {"utc": datetime.datetime(2024, 2, 29), "utc_ms": datetime.datetime(1, 1, 1), "small": decimal.Decimal("0")},
        {"small": decimal.Decimal("0.0000010"), "utc": datetime.datetime(2024, 2, 29, 1, 2, 3, 4)},
        {"small": decimal.Decimal("12345678901234567890.0000000001")},
    ]
    units = [("ms", pa.time32("ms")), ("us", pa.time64("us")), ("ns", pa.time64("ns"))]
    zoned = [("utc", pa.timestamp("us", "UTC")), ("utc_ms", pa.timestamp("ms", "UTC")), ("small", pa.decimal128(38, 10))]
    pq.write_table(pa.Table.from_pylist(moments, pa.schema(units + zoned)), HERE / "moments.parquet")
    back = pq.read_table(HERE / "moments.parquet").to_pylist()
    plain = [{key: str(value) for key, value in row.items()} for row in back]
    (HERE / "moments.json").write_text(json.dumps(plain, indent=1), encoding="utf-8", newline="")


if __name__ == "__main__":
    main()

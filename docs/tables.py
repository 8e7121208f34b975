"""Fills in the tables of lecture.md: `python docs/tables.py`. A test checks that they are what the code prints now.

<!-- table: summary vgg16 -->     what `convkern summary vgg16` prints
<!-- table: blocks resnet50 -->   the same numbers, added up by block
<!-- end -->
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from convkern.models import get_model
from convkern.summary import summary
from convkern.terminal import size, table

PAGE = Path(__file__).parent / "lecture.md"


def render(text: str) -> str:
    """The page with its tables made anew."""
    pattern = r"(<!-- table: (\w+) (\w+) -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda m: f"{m[1]}```text\n{TABLES[m[2]](m[3])}\n```\n{m[4]}", text, flags=re.DOTALL)


def of_layers(name: str) -> str:
    return summary(get_model(name))


def of_blocks(name: str) -> str:
    """Rows whose names begin alike (layer1_0_conv1, layer1_0_bn1, ...) and the nameless ones behind them, as one."""
    facts = get_model(name).summary_table()
    blocks: list[dict[str, Any]] = []
    for row in facts["layers"]:
        known = re.match(r"layer\d_\d+", row["name"])
        block = known[0] if known else None if re.match(r"(add|activation)(_\d+)?$", row["name"]) else row["name"]
        if not blocks or (block is not None and block != blocks[-1]["block"]):
            blocks.append(dict(block=block, values=0, params=0, macs=0))
        blocks[-1]["output"] = "x".join(map(str, row["output_shape"]))
        for key in ("values", "params", "macs"):
            blocks[-1][key] += row[key]
    blocks.append(dict(block="total", output="", **_totals(facts)))
    rows = [
        [b["block"], b["output"], f"{b['values']:,}", size(4 * b["values"]), f"{b['params']:,}", f"{b['macs']:,}"]
        for b in blocks
    ]
    return table(["block", "output", "values", "memory", "parameters", "multiply-adds"], rows, left=2)


def _totals(facts: dict[str, Any]) -> dict[str, int]:
    totals = facts["totals"]
    return dict(values=totals["activation_values"], params=totals["params"], macs=totals["macs"])


TABLES = {"summary": of_layers, "blocks": of_blocks}

if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text("utf-8")), "utf-8")

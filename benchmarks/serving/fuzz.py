"""Random requests after the OpenAPI document: no answer may be an error of the server.

    python benchmarks/serving/fuzz.py bundles/demo --cases 10000

schemathesis makes requests that fit the document and requests that break it. In half of those with
a body, names and ids that the bundle knows are put where there are any, so that they come past the
first check; the values stay random. The application is called in this process. Held against every
answer: no status of 500 or more but 503; status, content type and form of the body stand in the
document.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from running import keep_rows
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from twotower.export.bundle import Bundle
from twotower.serving.server.app import create_app
from twotower.serving.server.service import Service
from twotower.serving.server.settings import ServerSettings

CONFORMANCE = (
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)
PATIENCE_MS = 60_000
# A random deadline may be shorter than an answer takes: the one status above 499 that may come.
DEADLINE, OVERLOADED = "X-Deadline-Ms", 503


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a bundle knows, to be put into requests.

    Args:
        users: Ids.
        items: Ids.
        columns: Names of columns by field of the body; those of an item's row under `items`.
        width: Of a content vector.
    """

    users: Sequence[object]
    items: Sequence[object]
    columns: Mapping[str, Sequence[str]]
    width: int


def known_by(bundle: Bundle, most: int = 50) -> Known:
    """The first users and items and all columns of a bundle."""
    vectors = [f for f in bundle.pipeline.inputs("retrieval").of("item") if f.kind == "vector"]
    return Known(
        users=bundle.users.ids[:most].to_pylist(),
        items=bundle.items.ids[:most].to_pylist(),
        columns={
            "user_features": bundle.pipeline.source_columns("user"),
            "context": bundle.pipeline.source_columns("context"),
            "items": bundle.items.table.column_names[1:],
        },
        width=vectors[0].width if vectors else 1,
    )


def renamed(values: dict[str, Any], names: Sequence[str], chance: random.Random) -> dict[str, Any]:
    """Values under names that are known."""
    return {chance.choice(names): value for value in values.values()}


def some_item(known: Known, chance: random.Random) -> object:
    """An item of the bundle, or a new one."""
    return chance.choice([*known.items[:10], "new-1", "new-2"])


def change(found: dict[str, Any], known: Known, chance: random.Random) -> None:
    """Put items that are known, and new ones, into changes of items."""
    if isinstance(found.get("items"), list):
        found["items"] = [
            renamed(row, known.columns["items"], chance) | {"item_id": some_item(known, chance)}
            for row in found["items"]
            if isinstance(row, dict)
        ]
    if isinstance(found.get("ids"), list):
        found["ids"] = [some_item(known, chance) for _ in found["ids"]]


def enrich(body: object, path: str, known: Known, chance: random.Random) -> object:
    """A body with some of what is known in it; the rest as it was."""
    if not isinstance(body, dict):
        return body
    found: dict[str, Any] = dict(body)
    if path.endswith("similar"):  # It takes one of them.
        found.pop(chance.choice(("item", "vector")), None)
        if "vector" not in found:
            found["item"] = None
    if "user" in found:
        found["user"] = chance.choice(known.users)
    for field in ("item", "history"):
        if field in found:
            some = [chance.choice(known.items) for _ in range(chance.randint(0, 5))]
            found[field] = some if field == "history" else chance.choice(known.items)
    for field, names in known.columns.items():
        if isinstance(found.get(field), dict):
            found[field] |= renamed(found[field], names, chance)
    change(found, known, chance)
    if isinstance(found.get("vector"), list) and found["vector"]:
        found["vector"] = [chance.choice(found["vector"]) for _ in range(known.width)]
    return found


def fuzz(
    app: FastAPI, known: Known, *, cases: int, first_seed: int = 0
) -> Counter[tuple[str, int]]:
    """Ask, and hold every answer against the document.

    Args:
        app: The application.
        known: What its bundle knows.
        cases: Requests for all operations together.
        first_seed: Of the random numbers.

    Returns:
        How often each operation gave each status.

    Raises:
        Exception: Of schemathesis, when a check fails; it holds the request as a curl command.
    """
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    counts: Counter[tuple[str, int]] = Counter()
    operations = [found.ok() for found in schema.get_all_operations()]
    takes = [one for one in operations if list(one.iter_parameters()) or one.body]
    for operation in operations:
        modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if operation in takes else [None]
        for mode in modes:
            strategy = operation.as_strategy(generation_mode=mode or GenerationMode.POSITIVE)
            rounds = settings(
                max_examples=-(-cases // (2 * len(takes))) if mode else 1,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            seed(first_seed)(rounds(_asker(strategy, known, counts)))()
    return counts


def _asker(
    strategy: st.SearchStrategy[Case], known: Known, counts: Counter[tuple[str, int]]
) -> Callable[[], None]:
    @given(case=strategy, number=st.integers(0, 2**32))
    def ask(case: Case, number: int) -> None:
        chance = random.Random(number)
        if number % 2:
            case.body = enrich(case.body, case.path, known, chance)
            case.headers.pop(DEADLINE, None)
        response = case.call()
        counts[case.operation.label, response.status_code] += 1
        in_time = [] if response.status_code == OVERLOADED else [not_a_server_error]
        case.validate_response(response, checks=[*in_time, *CONFORMANCE])

    return ask


def main(given: argparse.Namespace) -> None:
    """Ask and say what came."""
    with tempfile.TemporaryDirectory() as folder:
        journal = str(Path(folder) / "items.journal")
        settings = ServerSettings(
            bundle=str(given.bundle), deadline_ms=PATIENCE_MS, journal=journal, access_log=False
        )
        service = Service(settings)
        known = known_by(service.generation.recommender.bundle)
        counts = fuzz(create_app(service), known, cases=given.cases, first_seed=given.seed)
        service.close()
    for (operation, status), count in sorted(counts.items()):
        print(f"{operation:<22} {status} {count:>7,}")
    print(f"{sum(counts.values()):,} requests, no error of the server")
    if given.keep:
        statuses = sorted({str(status) for _, status in counts})
        rows: dict[str, dict[str, object]] = {}
        for (operation, status), count in sorted(counts.items()):
            rows.setdefault(operation, {"operation": operation})[str(status)] = count
        title = f"{sum(counts.values()):,} random requests after the OpenAPI document, by status"
        columns = {"operation": "", **dict.fromkeys(statuses, ",")}
        command = f"fuzz.py BUNDLE --cases {given.cases} --seed {given.seed}"
        keep_rows("fuzz", title, command, columns, list(rows.values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=sys.modules[__name__].__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the figures")
    main(parser.parse_args())

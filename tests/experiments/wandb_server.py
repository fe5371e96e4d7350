"""A W&B server on the loopback, as far as runs, artifacts and reports need one, and a small study to send to it."""

import base64
import hashlib
import json
import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import polars as pl

from leadre import tables

KEY = "0123456789" * 4
ENTITY = "me"


class WandbServer:
    """What was sent.

    Attributes:
        runs: By id, what `UpsertBucket` was last given.
        streams: By run id, the lines of each file that is sent line by line, by their place.
        files: By path, what was uploaded.
        artifacts: By id, what `CreateArtifact` was given.
        committed: The ids of artifacts that are whole.
        views: What `upsertView` was given, in order.
        projects: The projects that are there.
        operations: The names of the GraphQL operations, in order.
    """

    def __init__(self, *, key=KEY, projects=("leadre",)):
        self.key, self.projects = key, list(projects)
        self.runs, self.files, self.artifacts = {}, {}, {}
        self.streams = defaultdict(lambda: defaultdict(dict))
        self.committed, self.views, self.operations, self.unknown = [], [], [], []
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def history(self, run):
        """The rows of a run's history, in their order."""
        lines = self.streams[run]["wandb-history.jsonl"]
        return [json.loads(lines[place]) for place in sorted(lines)]

    def summary(self, run):
        """The last summary of a run."""
        lines = self.streams[run]["wandb-summary.json"]
        return json.loads(lines[max(lines)])

    def config(self, run):
        """The config of a run, without W&B's own."""
        told = json.loads(self.runs[run]["config"])
        return {name: entry["value"] for name, entry in told.items() if name != "_wandb"}

    def answer(self, operation, query, given):
        """The data of a GraphQL operation; None for one that is not known."""
        self.operations.append(operation)
        known = getattr(self, f"_{operation}", None)
        if known is None:
            self.unknown.append(" ".join(query.split())[:2000])
        return known and known(given)

    def _Viewer(self, given):  # noqa: N802
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {"viewer": {"id": "u", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": teams}}

    def _GetDefaultEntity(self, given):  # noqa: N802
        return {"viewer": {"id": "u", "entity": ENTITY}}

    def _ServerFeaturesQuery(self, given):  # noqa: N802
        return {"serverInfo": {"features": []}}

    def _UpsertBucket(self, given):  # noqa: N802
        told = {name: value for name, value in given.items() if value is not None}
        self.runs[given["name"]] = self.runs.get(given["name"], {}) | told
        project = {"id": "P", "name": given["project"], "entity": {"id": "E", "name": ENTITY}}
        bucket = {"id": f"B-{given['name']}", "name": given["name"], "displayName": given.get("displayName")}
        empty = {"description": "", "config": given.get("config"), "sweepName": None, "historyLineCount": 0}
        return {"upsertBucket": {"bucket": bucket | empty | {"project": project}, "inserted": True}}

    def _CreateRunFiles(self, given):  # noqa: N802
        files = [{"name": name, "uploadUrl": f"{self.url}/put/{given['run']}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": f"B-{given['run']}", "uploadHeaders": [], "files": files}}

    def _ArtifactType(self, given):  # noqa: N802
        return {"project": {"artifact": None}}

    def _CreateArtifact(self, given):  # noqa: N802
        name = f"A{len(self.artifacts)}"
        self.artifacts[name] = given["input"]
        artifact = {"id": name, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def _CreateArtifactManifest(self, given):  # noqa: N802
        place = f"{self.url}/put/{given['artifactID']}/manifest.json"
        file = {"id": "F", "name": "wandb_manifest.json", "displayName": "m", "uploadUrl": place, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}

    _UpdateArtifactManifest = _CreateArtifactManifest

    def _CreateArtifactFiles(self, given):  # noqa: N802
        nodes = [
            {
                "id": f"F{place}",
                "name": file["name"],
                "displayName": file["name"],
                "uploadUrl": f"{self.url}/put/{file['artifactID']}/{file['name']}",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "storagePath": f"s/{file['name']}",
                "artifact": {"id": file["artifactID"]},
            }
            for place, file in enumerate(
                given["input"]["artifactFiles"] if "input" in given else given["artifactFiles"]
            )
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _CommitArtifact(self, given):  # noqa: N802
        self.committed.append(given["artifactID"])
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": ""}}}

    def _ProjectInternalId(self, given):  # noqa: N802
        there = given["projectName"] in self.projects and given["entityName"] == ENTITY
        return {"project": {"id": "P", "internalId": "UHJvamVjdDox"} if there else None}

    def _GetProjects(self, given):  # noqa: N802
        nodes = [
            {
                "id": "P",
                "name": name,
                "entityName": ENTITY,
                "createdAt": "2026-01-01T00:00:00Z",
                "isBenchmark": False,
                "user": None,
            }
            for name in self.projects
        ]
        page = {"endCursor": None, "hasNextPage": False}
        edges = [{"node": node, "cursor": "c"} for node in nodes]
        return {"models": {"edges": edges, "pageInfo": page}, "projects": {"edges": edges, "pageInfo": page}}

    def _upsertView(self, given):  # noqa: N802
        name = given["id"] or f"view{len(self.views)}"
        self.views.append(given)
        project = {"id": "P", "name": given["projectName"], "entityName": given["entityName"]}
        told = {"id": name, "type": given["type"], "name": given["name"], "displayName": given["displayName"]}
        rest = {"description": given["description"], "project": project, "spec": given["spec"], "updatedAt": None}
        return {"upsertView": {"view": told | rest, "inserted": given["id"] is None}}


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _send(self, content, status=200):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _body(self):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_POST(self):
            body = self._body()
            with server.lock:
                if self.path == "/graphql":
                    self._graphql(json.loads(body))
                elif self.path.endswith("/file_stream"):
                    lines = server.streams[self.path.split("/")[-2]]
                    for name, chunk in json.loads(body).get("files", {}).items():
                        lines[name] |= {chunk["offset"] + place: line for place, line in enumerate(chunk["content"])}
                    self._send({})
                else:
                    self._send({})

        def _graphql(self, asked):
            given = base64.b64encode(f"api:{server.key}".encode()).decode()
            if self.headers.get("Authorization") != f"Basic {given}":
                self._send({"errors": [{"message": "user is not logged in"}]}, status=401)
                return
            operation = asked.get("operationName") or re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]
            data = server.answer(operation, asked["query"], asked.get("variables") or {})
            self._send({"data": data} if data else {"errors": [{"message": f"{operation} is not known"}]})

        def do_PUT(self):
            body = self._body()
            with server.lock:
                server.files[self.path.removeprefix("/put/")] = body
            self._send(b"")

        def do_GET(self):
            self._send({})

        def log_message(self, *_):
            """Nothing."""

    return Handler


STUDY = "table2_task_order"
NAME = "Riverport <script>alert(1)</script> | shoes"
"""An ad's name that a page must not take for its own text."""


def write_study(root):
    """A study of two rows and a control, two seeds, in a small store; its folder and the store."""
    store = root / "store"
    ads = {"ad_id": ["a", "b", "c"], "name": [NAME, "tent", None], "attributes": [[]] * 3, "description": ["d"] * 3}
    empty = {name: [None] * 3 for name in tables.ADS.columns if name not in ads}
    users = ["u1", "u2"]
    split = {"user_id": users, "role": ["test"] * 2, "ad_id": ["b", "c"], "time": [1, 2]}
    lists = {"user_id": ["u1", "u1", "u2"], "rank": [1, 2, 1], "ad_id": ["a", "b", "a"], "score": [-1.0, -2.0, -1.0]}
    _store(store, "world", "w", {}, {"seed": 5}, ads=_table(tables.ADS, ads | empty), split=_table(tables.SPLIT, split))
    counts = {"counts": [[2, 1], [3, 0]]}
    _store(store, "codes", "c", {"world": "w"}, {"levels": 2}, **{"diagnostics.json": json.dumps(counts)})
    for seed in range(2):
        for row, first in (("main", False), ("ex-main", True)):
            key, before = f"{row}{seed}", {"codes": "c"}
            if first:
                before |= {"sft": f"ex{seed}"}
                config = {"tasks": {"explicit": 8.0}, "seed": seed}
                _store(store, "sft", f"ex{seed}", {"codes": "c"}, config, **_curve(30, None))
            config = {"tasks": {"main": 5.0}, "seed": seed}
            _store(store, "sft", key, before, config, **_curve(60, 0.25 + seed / 10))
            _store(
                store,
                "generations",
                key,
                {"sft": key, "world": "w"},
                {"beam_width": 10},
                lists=_table(tables.LISTS, lists),
            )
            _store(store, "scores", key, {"generations": key, "world": "w"}, {"hr_ks": [8]}, **{"scores.json": "{}"})
    folder = store / "studies" / STUDY / "2026-11-21_20-15-00"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(_result()), encoding="utf-8")
    (folder / "table.md").write_text("| row | HR@8 |\n|---|---|\n| EX -> Main | 0.25 |\n", encoding="utf-8")
    (folder / "table.csv").write_text("row,seed,HR@8\n", encoding="utf-8")
    (folder / "report.html").write_text("<h1>a page</h1>", encoding="utf-8")
    return folder, store


def _table(declared, columns):
    return pl.DataFrame(columns, schema_overrides=declared.schema).select(list(declared.columns))


def _curve(steps, hit):
    rows = [{"step": step, "train/loss": 8.0 - step / 10} for step in range(10, steps + 1, 10)]
    rows += [] if hit is None else [{"step": steps, "valid/hr@8": hit}]
    return {"metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}


def _store(store, stage, key, inputs, config, **files):
    folder = store / stage / key
    folder.mkdir(parents=True)
    for name, content in files.items():
        if isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
        elif name == "lists":
            (folder / "lists").mkdir()
            content.write_parquet(folder / "lists" / "part-0.parquet")
        else:
            content.write_parquet(folder / f"{name}.parquet")
    found = [path for path in folder.rglob("*") if path.is_file()]
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
    manifest = {"stage": stage, "key": key, "config": config, "inputs": inputs, "files": hashes, "seconds": 1.5}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def _result():
    def run(key, seed, tuned):
        about = {"stage": "sft", "tokens": 1000, "seconds": 1.5}
        stages = [about | {"name": f"sft: {name}", "key": each, "steps": steps} for name, each, steps in tuned]
        return {
            "seed": seed,
            "key": key,
            "path": f"scores/{key}",
            "scores": {"HR@8": 0.25 + seed / 10, "Value@8": None},
            "steps": sum(stage["steps"] for stage in stages),
            "tokens": 1000 * len(stages),
            "seconds": 1.5,
            "stages": stages,
        }

    def row(name, runs, **rest):
        told = {"control": False, "system": "LEADRE", "overrides": ["sft=ex_main"], "paper": {"HR@8": 0.2}}
        mean = {"HR@8": 0.3} if runs else {}
        told |= {"not_run": None, "mean": mean, "interval": {"HR@8": [0.2, 0.4]} if runs else {}, "change": {}}
        return {"name": name} | told | {"runs": runs} | rest

    ex_main = [
        run(f"ex-main{seed}", seed, [("ex", f"ex{seed}", 30), ("main", f"ex-main{seed}", 60)]) for seed in (0, 1)
    ]
    main = [run(f"main{seed}", seed, [("main", f"main{seed}", 60)]) for seed in (0, 1)]
    difference = {"mean": 0.05, "low": 0.01, "high": 0.09, "p": 0.01, "p_holm": 0.02}
    claim = {
        "text": "EX helps",
        "source": "LEADRE 5.2.1, Table 2",
        "better": "EX -> Main",
        "worse": "Main only",
        "on": "HR@8",
        "control": None,
        "verdict": "undecided",
        "why": "it has no control",
        "difference": difference,
        "control_difference": None,
        "users_needed": 12345,
        "paper_change": 0.136,
        "our_change": 0.12,
    }
    return {
        "study": STUDY,
        "title": "Table 2: the order of the tasks",
        "question": "Does the order matter?",
        "command": f"python -m experiments.{STUDY}",
        "date": "2026-11-21T20:15:00+00:00",
        "git": None,
        "dirty": False,
        "seconds": 10.0,
        "store": "store",
        "seeds": [0, 1],
        "users": 2,
        "data": {"name": "by hand", "counts": {"users": 2}},
        "columns": ["HR@8", "Value@8"],
        "compared": ["HR@8"],
        "confidence": 0.95,
        "rows": [
            row("EX -> Main", ex_main),
            row("Main only", main, control=True),
            row("x" * 200, [], not_run="ValueError: no"),
        ],
        "claims": [claim],
        "builds": {"asked": 10, "built": 8},
        "notes": ["Fewer than three seeds: no claim may rest on this table."],
    }

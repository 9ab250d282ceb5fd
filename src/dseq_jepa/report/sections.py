"""The parts of a report beside tables and figures: overview, runs, cost, data, gaps, environment.

Each function yields HTML of one section from what `collect` read.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from dseq_jepa.progress import duration
from dseq_jepa.report.checks import checks
from dseq_jepa.report.collect import LOG_LINES, Collected, JobRecord, evaluations
from dseq_jepa.report.curves import Curve, chart, curves_of, number
from dseq_jepa.report.sheets import anchor
from dseq_jepa.tables.assemble import Table

_QUIET = ("epoch", "skipped_images")  # said elsewhere, or a straight line
_COMPARED = ("loss", "target_effective_rank", "images_per_second")
_MOST_COMPARED = 8


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """A plain table; cells are HTML already."""
    kinds = [' class="value"' if i in numeric else "" for i in range(len(heads))]
    head = "".join(f'<th scope="col"{kind}>{text}</th>' for kind, text in zip(kinds, heads, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(kinds, row, strict=True))}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def overview(collected: Collected, tables: Sequence[Table]) -> Iterator[str]:
    """What ran, what it cost, and whether to believe it."""
    states = [run.status for run in collected.runs.values()]
    gpu, core = (sum(getattr(job, kind) for job in collected.jobs) for kind in ("gpu_hours", "core_hours"))
    facts = {
        "models": f"{len(collected.models)}",
        "runs finished": f"{states.count('FINISHED')} of {len(states)}",
        "failed": f"{states.count('FAILED')}",
        "GPU-hours": f"{gpu:.3f}",
        "core-hours": f"{core:.3f}",
        "data sets": f"{len(collected.data)}",
    }
    yield '<section id="overview"><h2>At a glance</h2><dl class="facts">'
    yield from (f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    yield "</dl><h3>Whether to believe it</h3><ul class='checks'>"
    for check in checks(collected, tables):
        yield f'<li class="{"good" if check.good else "look"}">{escape(check.text)}</li>'
    yield "</ul></section>"


def curves(collected: Collected, labels: Mapping[str, str]) -> Iterator[str]:
    """The pre-trainings side by side."""
    trained = {place: run for place, run in collected.runs.items() if place.startswith("pretrain/")}
    if not trained:
        return
    yield '<section id="curves"><h2>Pre-training, side by side</h2><div class="charts">'
    of = {place: curves_of(run.points) for place, run in trained.items()}
    for metric in _COMPARED:
        lines = {_name(place, labels): found[metric] for place, found in of.items() if metric in found}
        if lines:
            yield chart(metric.replace("_", " "), dict(list(lines.items())[:_MOST_COMPARED]))
    yield "</div>"
    if len(trained) > _MOST_COMPARED:
        yield f"<p>The first {_MOST_COMPARED} of {len(trained)}; every run has its own curves below.</p>"
    yield "</section>"


def _name(place: str, labels: Mapping[str, str]) -> str:
    method, architecture, seed = place.split("/")[-3:]
    return f"{labels.get(method, method)} / {architecture} / {seed.replace('seed', 'seed ')}"


def runs(collected: Collected, labels: Mapping[str, str], results: str) -> Iterator[str]:
    """Every model: what happened to it, with curves and provenance."""
    yield '<section id="runs"><h2>Runs</h2>'
    for model, jobs in collected.models.items():
        yield f'<article id="{anchor(model)}"><h3>{escape(_name(model, labels))}</h3>'
        for job in jobs:
            yield from _job(collected, job, results)
        yield "</article>"
    yield "</section>"


def _job(collected: Collected, job: JobRecord, results: str) -> Iterator[str]:
    run = collected.runs.get(job.place)
    state = run.status.lower() if run else "finished"
    took = f", {duration(job.seconds)}" if job.seconds else ""
    yield f'<div class="job" id="{anchor(job.place)}"><h4>{escape(job.step)} <small>{state}{took}</small></h4>'
    yield from _outcome(job)
    yield from _examples(job)
    if run and run.points:
        yield from _charts(curves_of(run.points), opened=job.step == "pretrain")
    yield from _troubles(job, state)
    yield from _provenance(job, results)
    yield "</div>"


def _outcome(job: JobRecord) -> Iterator[str]:
    if selection := job.files.get("selection.json"):
        yield f"<p>{escape(selection['reason'])}</p>"
    if scores := job.files.get("scores.json"):
        kept = scores["checkpoints"]
        names = [name for name in kept[0] if any(isinstance(row[name], int | float) for row in kept)]
        rows = [["-" if row[name] is None else number(float(row[name])) for name in names] for row in kept]
        yield grid([escape(name.replace("_", " ")) for name in names], rows, range(len(names)))
    if measured := evaluations(job):
        heads = ["evaluation", "value", "metric", "chance", "test images", "head"]
        yield grid(heads, [_measured(name, found) for name, found in measured.items()], (1, 3, 4))


def _examples(job: JobRecord) -> Iterator[str]:
    if job.examples is not None:
        picture = base64.b64encode(job.examples.read_bytes()).decode()
        yield "<details><summary>Truth and prediction on test pictures</summary>"
        yield f'<figure><img alt="Truth and prediction of {escape(job.place)}" src="data:image/png;base64,{picture}">'
        yield "</figure></details>"


def _measured(name: str, found: Mapping[str, Any]) -> list[str]:
    chance = found.get("chance")
    head = [f"{key.replace('_', ' ')} {found[key]}" for key in ("features", "epochs", "learning_rate") if key in found]
    return [
        escape(name), f"{found['value']:.2f}", escape(str(found.get("metric", ""))),
        "" if chance is None else f"{chance:.1f}", f"{found['n']:,}" if found.get("n") else "", escape(", ".join(head)),
    ]  # fmt: skip


def _charts(found: Mapping[str, Curve], opened: bool) -> Iterator[str]:
    """Small multiples; the losses of all blocks share one, as do those of all regions and of all steps."""
    moving = {name: curve for name, curve in found.items() if len(curve) > 1 and name not in _QUIET}
    if not moving:
        return
    groups: dict[str, dict[str, Curve]] = {}
    for name in list(moving):
        if of_group := re.fullmatch(r"loss_([a-z]+)_(\d+)", name):
            groups.setdefault(of_group[1], {})[f"{of_group[1]} {of_group[2]}"] = moving.pop(name)
    charts = [chart(name.replace("_", " "), {name: curve}) for name, curve in moving.items()]
    charts += [chart(f"loss of each {kind}", curves) for kind, curves in groups.items()]
    yield f"<details{' open' if opened else ''}><summary>Curves ({len(charts)})</summary>"
    yield f'<div class="charts">{"".join(charts)}</div></details>'


def _troubles(job: JobRecord, state: str) -> Iterator[str]:
    for event in job.events:
        if event["name"] in ("warning", "failed"):
            yield f'<p class="look">{escape(event["name"])}: {escape(str(event.get("text", "")))}</p>'
    if state == "failed" and job.log:
        lines = job.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        yield f"<details><summary>The end of its log</summary><pre>{escape(chr(10).join(lines))}</pre></details>"


def _provenance(job: JobRecord, results: str) -> Iterator[str]:
    made = job.made
    if not made:
        return
    facts = {
        "code": made["code_version"],
        "configuration": made["config_digest"],
        "started": made["started"],
        "finished": made["finished"],
        "machine": f"{made['host']}, {made['device']}, {made['processor']}",
        **{f"data {name}": fingerprint or "no fingerprint" for name, fingerprint in made["data"].items()},
        **{f"input {name}": digest for name, digest in made.get("inputs", {}).items()},
        **made.get("scheduler", {}),
        "all of it": f"{results}/{job.place}/provenance.json",
    }
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    yield f'<details><summary>Provenance</summary><dl class="made">{items}</dl></details>'


def cost(collected: Collected) -> Iterator[str]:
    """Time of every step, in hours of GPUs and of cores."""
    yield '<section id="cost"><h2>Cost</h2>'
    steps: dict[str, list[JobRecord]] = {}
    for job in collected.jobs:
        if job.seconds:
            steps.setdefault(job.step, []).append(job)
    rows = [_cost_row(escape(step), jobs) for step, jobs in steps.items()]
    rows.append(_cost_row("<strong>all</strong>", [job for jobs in steps.values() for job in jobs]))
    yield grid(
        ["step", "jobs", "time of all", "longest", "GPU-hours", "core-hours", "largest memory"], rows, range(1, 7)
    )
    yield "<p>Time is that of the jobs' own work; waiting in a queue is not part of it.</p></section>"


def _cost_row(name: str, jobs: Sequence[JobRecord]) -> list[str]:
    memory = [job.memory_mb for job in jobs if job.memory_mb is not None]
    return [
        name, f"{len(jobs)}", duration(sum(job.seconds for job in jobs)),
        duration(max((job.seconds for job in jobs), default=0)), f"{sum(job.gpu_hours for job in jobs):.3f}",
        f"{sum(job.core_hours for job in jobs):.3f}", f"{max(memory) / 1024:.1f} GB" if memory else "",
    ]  # fmt: skip


def data_sets(collected: Collected) -> Iterator[str]:
    """What was read, with fingerprints."""
    yield '<section id="data"><h2>Data</h2>'
    heads = ["data set", "train", "test", "classes", "size", "complete", "fingerprint", "of what"]
    rows = []
    for name, found in collected.data.items():
        images = found["images"]
        rows.append([
            f"{escape(name)}<br><small>{escape(found['title'])}</small>", f"{images['train']:,}", f"{images['val']:,}",
            f"{found['classes']:,}" if found.get("classes") else "", f"{found['bytes'] / 1e6:,.1f} MB",
            "yes" if found["complete"] else "no",
            f'<code title="{escape(found["fingerprint"])}">{escape(found["fingerprint"][:16])}</code>',
            escape(found["hashed"]),
        ])  # fmt: skip
    yield grid(heads, rows, (1, 2, 3, 4)) if rows else "<p>No data set was checked.</p>"
    yield "</section>"


def missing(collected: Collected, tables: Sequence[Table], unfinished: Sequence[str]) -> Iterator[str]:
    """What has no value of ours, with the reason; and what failed."""
    yield '<section id="missing"><h2>Missing</h2>'
    yield from (f'<p class="look">{escape(sentence)}</p>' for sentence in unfinished)
    reasons: dict[str, list[str]] = {}
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                if cell.ours is None:
                    where = f"Table {table.number}: {row.system} {row.architecture}, {column.label}"
                    reasons.setdefault(cell.reason or "nothing measures it", []).append(where)
    for reason, cells in reasons.items():
        yield f"<details><summary>{escape(reason)} <small>({len(cells)} cells)</small></summary><ul>"
        yield from (f"<li>{escape(cell)}</li>" for cell in cells)
        yield "</ul></details>"
    failed = [(place, run) for place, run in collected.runs.items() if run.status != "FINISHED"]
    yield from (
        f'<p class="look"><a href="#{anchor(place)}">{escape(place)}</a>: {run.status.lower()}</p>'
        for place, run in failed
    )
    if not (reasons or failed or unfinished):
        yield "<p>Nothing: every cell has a value of ours.</p>"
    yield "</section>"


def environment(collected: Collected) -> Iterator[str]:
    """Where and with what the jobs ran; what differs between jobs is listed with its jobs."""
    yield '<section id="environment"><h2>Environment</h2><dl class="made">'
    for name in ("code_version", "python", "platform", "host", "processor", "cores", "device", "decoder"):
        values = collected.different(name)
        values.pop("none", None)  # export decodes nothing
        for value, places in values.items():
            where = f" <small>({len(places)} of {len(collected.jobs)} jobs)</small>" if len(values) > 1 else ""
            yield f"<dt>{name.replace('_', ' ')}</dt><dd>{escape(value)}{where}</dd>"
    yield "</dl>"
    libraries: dict[str, set[str]] = {}
    for job in collected.jobs:
        for name, version in job.made.get("libraries", {}).items():
            libraries.setdefault(name, set()).add(version)
    rows = [[escape(name), escape(", ".join(sorted(versions)))] for name, versions in sorted(libraries.items())]
    yield f"<details><summary>Libraries ({len(rows)})</summary>{grid(['library', 'version'], rows)}</details>"
    yield "</section>"

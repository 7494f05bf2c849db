"""Draws a run: python3 bench/run/plot.py STEPS.jsonl OUTPUT TITLE

Reads the steps of a run (`runs/NAME/ring/steps.jsonl`) and writes OUTPUT-light.svg and OUTPUT-dark.svg: what the
unfiltered policy earns, what the hidden tests say where there are any, how far it is from the reference, and its
entropy or the length of its responses. Nothing but Python's standard library is needed. README.md shows docs/run.
"""

import argparse
import json
import math
from xml.sax.saxutils import escape

THEMES = {
    "light": dict(ink="#1f2328", soft="#59636e", grid="#d1d9e0", line="#0969da", mean="#9a6700"),
    "dark": dict(ink="#f0f6fc", soft="#9198a1", grid="#3d444d", line="#4493f8", mean="#d29922"),
}
# What may be drawn, the first four that a run has: title, unit, and where a step says it.
PANELS = [
    ("Score", "mean of all responses", lambda step: step["score_mean"]),
    ("Hidden tests", "share of responses that pass", lambda step: step["outcome_mean"]),
    ("KL to the reference", "nats a response", lambda step: step["metrics"].get("kl_to_ref")),
    ("Entropy", "nats a token", lambda step: step["metrics"]["entropy"]),
    ("Length", "tokens a response", lambda step: step["response_tokens_mean"]),
]
WIDTH, HEIGHT, GAP, HEAD = 205, 150, 15, 58
SMOOTHED_OVER = 5


def read(path):
    """The steps by batch; one that was done again after a crash counts with its last record."""
    steps = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            step = json.loads(line)
            steps[step["batch"]] = step
    return [steps[batch] for batch in sorted(steps)]


def series(steps, value):
    """Points that were measured; none where nothing was, or only zeros."""
    points = [(step["batch"], value(step)) for step in steps]
    points = [(batch, number) for batch, number in points if number is not None]
    return points if any(number != 0.0 for _, number in points) else []


def ticks(low, high):
    """Two to four round numbers within the range."""
    step = 10.0 ** math.floor(math.log10(high - low))
    for factor in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0):
        first = math.ceil(low / (step * factor))
        last = math.floor(high / (step * factor))
        if last - first <= 3:
            return [number * step * factor for number in range(first, last + 1)]
    return []


def smoothed(points):
    """Means over the last few batches."""
    result = []
    for place, (batch, _) in enumerate(points):
        window = [number for _, number in points[max(0, place + 1 - SMOOTHED_OVER) : place + 1]]
        result.append((batch, sum(window) / len(window)))
    return result


def panel(left, title, unit, points):
    low, high = min(number for _, number in points), max(number for _, number in points)
    margin = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    low, high = low - margin, high + margin
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)
    plot_left, plot_right = left + 38, left + WIDTH - 4

    def at(batch, number):
        x = plot_left + (batch - first) / (last - first) * (plot_right - plot_left)
        y = HEAD + HEIGHT - (number - low) / (high - low) * HEIGHT
        return f"{x:.1f} {y:.1f}"

    parts = [
        f'<text class="title" x="{plot_left}" y="{HEAD - 24}">{escape(title)}</text>',
        f'<text class="soft" x="{plot_left}" y="{HEAD - 9}">{escape(unit)}</text>',
    ]
    for tick in ticks(low, high):
        x, y = at(first, tick).split()
        parts.append(f'<path class="grid" d="M{x} {y} H{plot_right}"/>')
        parts.append(f'<text class="soft end" x="{plot_left - 5}" y="{float(y) + 4:.1f}">{tick:.4g}</text>')
    parts.append(f'<path class="line" d="M{" L".join(at(*point) for point in points)}"/>')
    parts.append(f'<path class="mean" d="M{" L".join(at(*point) for point in smoothed(points))}"/>')
    foot = HEAD + HEIGHT + 17
    parts.append(f'<text class="soft" x="{plot_left}" y="{foot}">{first}</text>')
    parts.append(f'<text class="soft end" x="{plot_right}" y="{foot}">batch {last}</text>')
    return parts


def draw(steps, title, theme):
    panels = [(name, unit, series(steps, value)) for name, unit, value in PANELS]
    panels = [entry for entry in panels if entry[2]][:4]
    width, height = len(panels) * (WIDTH + GAP), HEAD + HEIGHT + 28
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">',
        "<style>",
        'text { font: 11px ui-sans-serif, system-ui, "Segoe UI", Helvetica, Arial, "DejaVu Sans", sans-serif; '
        f"fill: {theme['ink']}; }}",
        ".title { font-size: 13px; font-weight: 600; }",
        f".soft {{ fill: {theme['soft']}; }}",
        ".end { text-anchor: end; }",
        f".grid {{ stroke: {theme['grid']}; stroke-width: 1; }}",
        f".line {{ fill: none; stroke: {theme['line']}; stroke-width: 1.2; opacity: 0.55; }}",
        f".mean {{ fill: none; stroke: {theme['mean']}; stroke-width: 2.4; }}",
        "</style>",
        f'<text class="soft" x="{38}" y="13">{escape(title)}</text>',
    ]
    for number, (name, unit, points) in enumerate(panels):
        parts += panel(number * (WIDTH + GAP), name, unit, points)
    return "\n".join([*parts, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", help="steps.jsonl of a run")
    parser.add_argument("output", help="path without -light.svg and -dark.svg")
    parser.add_argument("title", help="what the run is: recipe, sizes, machine, commit")
    arguments = parser.parse_args()
    steps = read(arguments.steps)
    if len(steps) < 2:
        parser.error(f"{arguments.steps} has {len(steps)} steps, a plot needs at least 2")
    for name, theme in THEMES.items():
        with open(f"{arguments.output}-{name}.svg", "w", encoding="utf-8") as file:
            file.write(draw(steps, arguments.title, theme))


main()

"""Two plots as SVG, by Python's standard library."""

THEMES = {
    "light": {"ink": "#1f2328", "soft": "#59636e", "grid": "#d1d9e0", "series": ["#0969da", "#bc4c00", "#1a7f37"]},
    "dark": {"ink": "#f0f6fc", "soft": "#9198a1", "grid": "#3d444d", "series": ["#4493f8", "#f0883e", "#3fb950"]},
}
LEFT, RIGHT, TOP = 110, 20, 34


def frame(width, height, theme, title, parts):
    colours = THEMES[theme]
    style = (
        "text { font: 12px ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; "
        f"fill: {colours['ink']}; }} .soft {{ fill: {colours['soft']}; }} .end {{ text-anchor: end; }} "
        f".middle {{ text-anchor: middle; }} .grid {{ stroke: {colours['grid']}; }}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">'
    return "\n".join([head, f"<style>{style}</style>", *parts, "</svg>", ""])


def scale(low, high, first, last):
    span = (high - low) or 1.0
    return lambda number: first + (number - low) / span * (last - first)


def ticks(low, high, step):
    first = int(low / step) - 1
    return [step * place for place in range(first, int(high / step) + 2) if low <= step * place <= high]


def legend(names, colours, x, y):
    parts = []
    for name, colour in zip(names, colours):
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{colour}"/><text x="{x + 9}" y="{y}">{name}</text>')
        x += 28 + 7 * len(name)
    return parts


def methods(points, theme):
    """A line for each method: its pass@1 with the 95 % interval over seeds, greedy and at the best temperature."""
    colours = THEMES[theme]
    width, row = 640, 26
    height = TOP + row * len(points) + 30
    known = [mean + sign * (half or 0.0) for _, *both in points for mean, half in both for sign in (-1, 1)]
    low, high = min(known) - 0.02, max(known) + 0.02
    at = scale(low, high, LEFT, width - RIGHT)
    parts = legend(["greedy", "at its best temperature"], colours["series"], LEFT, 18)
    bottom = TOP + row * len(points)
    for tick in ticks(low, high, 0.05 if high - low < 0.5 else 0.1):
        parts.append(f'<path class="grid" d="M{at(tick):.1f} {TOP} V{bottom}"/>')
        parts.append(f'<text class="soft middle" x="{at(tick):.1f}" y="{bottom + 18}">{100 * tick:.0f} %</text>')
    for place, (name, *both) in enumerate(points):
        middle = TOP + row * place + row / 2
        parts.append(f'<text class="end" x="{LEFT - 10}" y="{middle + 4}">{name}</text>')
        for offset, colour, (mean, half) in zip((-4, 4), colours["series"], both):
            y = middle + offset
            if half is not None:
                line = f"M{at(mean - half):.1f} {y} H{at(mean + half):.1f}"
                parts.append(f'<path stroke="{colour}" stroke-width="1.5" d="{line}"/>')
            parts.append(f'<circle cx="{at(mean):.1f}" cy="{y}" r="4" fill="{colour}"/>')
    return frame(width, height, theme, "pass@1 on held-out problems by method", parts)


def reward(lines, theme):
    """How many responses pass by what the reward model says of them."""
    colours = THEMES[theme]
    width, height = 640, 300
    scores = [score for _, bins in lines for score, _ in bins]
    low, high = min(scores), max(scores)
    x, y = scale(low, high, LEFT, width - RIGHT), scale(0.0, 1.0, height - 40, TOP)
    parts = legend([name for name, _ in lines], colours["series"], LEFT, 18)
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f} H{width - RIGHT}"/>')
        parts.append(f'<text class="soft end" x="{LEFT - 8}" y="{y(tick) + 4:.1f}">{100 * tick:.0f} %</text>')
    for tick in ticks(low, high, 0.5):
        parts.append(f'<text class="soft middle" x="{x(tick):.1f}" y="{height - 22}">{tick:.1f}</text>')
    parts.append(f'<text class="soft end" x="{width - RIGHT}" y="{height - 6}">reward</text>')
    parts.append(f'<text class="soft end" x="{LEFT - 8}" y="{TOP - 8}">pass</text>')
    for (_, bins), colour in zip(lines, colours["series"]):
        path = " L".join(f"{x(score):.1f} {y(outcome):.1f}" for score, outcome in bins)
        parts.append(f'<path fill="none" stroke="{colour}" stroke-width="2" d="M{path}"/>')
        for score, outcome in bins:
            parts.append(f'<circle cx="{x(score):.1f}" cy="{y(outcome):.1f}" r="3" fill="{colour}"/>')
    return frame(width, height, theme, "share of responses that pass by reward", parts)

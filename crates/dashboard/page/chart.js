// One chart: some curves over an x axis, with a legend that says their values where the cursor is.
//
// Keys, when the chart has the focus: left and right move the cursor from point to point, Home and End to the
// ends, + and - zoom, 0 or Escape shows everything again.

import { el, put } from './dom.js';
import { bytes, clock, number, tick } from './format.js';

const HEIGHT = 200;
const SYNC = 'charts';
const COLOURS = 8;

export const AXES = {
  batch: 'batch',
  hours: 'hours since the run began',
  tokens: 'tokens trained',
  time: 'time',
};

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const lineColour = index => `var(--line-${index % COLOURS})`;

// The exponential moving average of a curve, without the pull towards its first point.
function smooth(values, weight) {
  let last = 0,
    count = 0;
  return values.map(value => {
    if (value === null) return null;
    last = last * weight + (1 - weight) * value;
    count += 1;
    return last / (1 - weight ** count);
  });
}

// The range that holds all but the hundredth that is farthest out on either side.
function inliers(values) {
  const sorted = values.filter(Number.isFinite).sort((one, other) => one - other);
  if (sorted.length < 20) return null;
  const at = share => sorted[Math.round(share * (sorted.length - 1))];
  return [at(0.01), at(0.99)];
}

export class Chart {
  // `spec` has `title`, `unit` and `meaning`; `settings` are those of all charts; `zoom` is told a range of x,
  // or null for everything.
  constructor(spec, settings, zoom) {
    Object.assign(this, { spec, settings, zoom, hidden: new Set(), lines: [] });
    this.title = el('span', { cls: 'title' }, spec.title);
    this.at = el('span', { cls: 'at', 'aria-live': 'off' });
    this.plot = el('div', { cls: 'plot', tabindex: 0, role: 'img', onkeydown: event => this.key(event) });
    this.legend = el('div', { cls: 'legend' });
    const unit = spec.unit ? ` (${spec.unit})` : '';
    this.root = el(
      'figure',
      { cls: 'chart' },
      el('figcaption', {}, el('span', {}, this.title, el('span', { cls: 'soft' }, unit)), this.at),
      el('div', { cls: 'meaning' }, spec.meaning ?? ''),
      this.plot,
      this.legend,
    );
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.plot);
  }

  destroy() {
    this.observer.disconnect();
    this.uplot?.destroy();
    this.root.remove();
  }

  // A value as the legend says it.
  show(value) {
    return this.spec.unit === 'bytes' ? bytes(value) : number(value);
  }

  resize() {
    const width = this.plot.clientWidth;
    if (this.uplot && width > 0 && width !== this.uplot.width) this.uplot.setSize({ width, height: HEIGHT });
  }

  // Draws curves: each has a `label`, a `colour` index, `dash`, and what the server answered.
  draw(lines) {
    this.lines = lines.filter(line => line.x.length > 0);
    const described = `${this.spec.title}: ${this.lines.map(line => `${line.label || 'last'} ${this.show(line.y.at(-1))}`).join(', ')}`;
    this.plot.setAttribute('aria-label', `${described}. Arrow keys move the cursor, plus and minus zoom.`);
    if (this.lines.length === 0) {
      this.uplot?.destroy();
      this.uplot = null;
      this.drawn = null;
      put(this.plot, el('div', { cls: 'empty' }, 'No numbers yet.'));
      put(this.legend);
      put(this.at);
      return;
    }
    const { data, series, bands } = this.prepare();
    const looks = JSON.stringify([series, bands, this.settings, this.lines.map(({ label }) => label)]);
    if (this.uplot && looks === this.drawn) {
      // New numbers of the same curves: the cursor stays where it is.
      this.uplot.setData(data);
      this.follow(this.uplot.cursor.idx);
      return;
    }
    this.drawn = looks;
    this.cursor = null;
    this.uplot?.destroy();
    put(this.plot);
    this.uplot = new uPlot(this.options(series, bands), data, this.plot);
    this.writeLegend();
  }

  // uPlot's columns: for each curve the raw one, the smoothed one, and its extremes.
  prepare() {
    const { smoothing, log } = this.settings;
    const drawn = value => (value === undefined || value === null || (log && value <= 0) ? null : value);
    const tables = this.lines.map(line => {
      const raw = line.y.map(drawn);
      const smoothed = smoothing > 0 ? smooth(raw, smoothing) : raw;
      return [line.x, smoothed, raw, (line.high ?? line.y).map(drawn), (line.low ?? line.y).map(drawn)];
    });
    const data = tables.length > 1 ? uPlot.join(tables) : tables[0];
    const series = [{}],
      bands = [];
    this.lines.forEach((line, index) => {
      const stroke = colour(`--line-${line.colour % COLOURS}`);
      const show = !this.hidden.has(line.label);
      const first = series.length;
      const common = { spanGaps: true, show, points: { show: false } };
      const few = line.x.length === 1;
      series.push({
        ...common,
        stroke,
        width: 1.6,
        dash: line.dash,
        points: { show: few, size: 6, stroke, fill: stroke },
      });
      series.push({ ...common, stroke: `${stroke}55`, width: 1, show: show && smoothing > 0 });
      const many = (line.high?.length ?? 0) > 0;
      series.push({ ...common, stroke: 'transparent', width: 0, show: show && many });
      series.push({ ...common, stroke: 'transparent', width: 0, show: show && many });
      if (many) bands.push({ series: [first + 2, first + 3], fill: `${stroke}26` });
      this.lines[index].column = first;
    });
    return { data, series, bands };
  }

  options(series, bands) {
    const { axis, log, outliers } = this.settings;
    const [soft, grid] = [colour('--soft'), colour('--grid')];
    const line = {
      stroke: soft,
      grid: { stroke: grid, width: 1 },
      ticks: { stroke: grid, width: 1, size: 4 },
      font: '12px system-ui, sans-serif',
    };
    const values = (_, ticks) => ticks.map(value => (value === null ? '' : tick(value)));
    const size = (_, ticks) => 16 + 7.2 * Math.max(1, ...(ticks ?? []).map(value => value.length));
    const range = (plot, low, high) => {
      if (low === null || high === null) return [0, 1];
      const kept = outliers
        ? inliers(this.lines.filter(line => !this.hidden.has(line.label)).flatMap(line => line.y))
        : null;
      if (kept && kept[1] > kept[0]) {
        const margin = 0.25 * (kept[1] - kept[0]);
        low = Math.max(low, kept[0] - margin);
        high = Math.min(high, kept[1] + margin);
      }
      if (log) return uPlot.rangeLog(low, high, 10, false);
      return low === high
        ? [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1]
        : uPlot.rangeNum(low, high, 0.06, false);
    };
    return {
      width: Math.max(200, this.plot.clientWidth),
      height: HEIGHT,
      series,
      bands,
      padding: [8, 20, 0, 0],
      legend: { show: false },
      scales: { x: { time: axis === 'time' }, y: { distr: log ? 3 : 1, range } },
      axes: [
        {
          ...line,
          size: 30,
          label: AXES[axis],
          labelSize: 16,
          labelFont: '12px system-ui, sans-serif',
          labelGap: 0,
          ...(axis === 'time' ? {} : { values }),
        },
        {
          ...line,
          values: log
            ? (plot, ticks) => ticks.map(value => (value === null || Math.log10(value) % 1 ? '' : tick(value)))
            : values,
          size,
        },
      ],
      cursor: {
        sync: { key: SYNC, setSeries: false },
        drag: { x: true, y: false, setScale: false },
        points: { size: 6 },
        bind: {
          dblclick: () => () => {
            this.zoom(null);
            return null;
          },
        },
      },
      hooks: {
        setCursor: [plot => this.follow(plot.cursor.idx)],
        setSelect: [plot => this.select(plot)],
      },
    };
  }

  select(plot) {
    const { left, width } = plot.select;
    if (width < 4) return;
    const range = [plot.posToVal(left, 'x'), plot.posToVal(left + width, 'x')];
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.zoom(range);
  }

  // A curve's value at a row, or the one before where it has none there.
  valueAt(line, row) {
    const column = this.uplot.data[line.column];
    for (let at = row; at >= 0; at -= 1) {
      if (column[at] !== null && column[at] !== undefined) return column[at];
    }
    return null;
  }

  writeLegend() {
    this.values = this.lines.map(() => el('b', {}));
    put(
      this.legend,
      this.lines.map((line, index) => {
        const toggle = event => {
          const visible = this.hidden.delete(line.label);
          if (!visible) this.hidden.add(line.label);
          event.currentTarget.setAttribute('aria-pressed', String(visible));
          this.draw(this.lines);
          this.legend.children[index]?.focus();
        };
        const swatch = el('span', { cls: 'swatch', style: { background: lineColour(line.colour) } });
        return el(
          'button',
          {
            type: 'button',
            'aria-pressed': String(!this.hidden.has(line.label)),
            onclick: toggle,
            title: 'Show or hide this curve',
          },
          swatch,
          line.label || 'value',
          this.values[index],
        );
      }),
    );
    this.follow(null);
  }

  follow(row) {
    if (!this.uplot) return;
    this.cursor = row ?? null;
    const xs = this.uplot.data[0];
    const at = row ?? xs.length - 1;
    const x = xs[at];
    const { axis } = this.settings;
    const where =
      axis === 'time'
        ? clock(x)
        : `${axis === 'hours' ? number(x) : tick(x)}${axis === 'hours' ? ' h' : ` ${axis === 'tokens' ? 'tokens' : ''}`}`;
    put(
      this.at,
      `${axis === 'batch' ? 'batch ' : ''}${where.trim()}${row === null || row === undefined ? ' (last)' : ''}`,
    );
    this.lines.forEach((line, index) => put(this.values[index], this.show(this.valueAt(line, at))));
  }

  key(event) {
    if (!this.uplot || event.ctrlKey || event.metaKey || event.altKey) return;
    const xs = this.uplot.data[0];
    const last = xs.length - 1;
    const now = this.cursor ?? last;
    const [low, high] = [this.uplot.scales.x.min, this.uplot.scales.x.max];
    const around = factor => [xs[now] - (xs[now] - low) * factor, xs[now] + (high - xs[now]) * factor];
    const actions = {
      ArrowLeft: () => this.moveTo(now - (event.shiftKey ? 10 : 1)),
      ArrowRight: () => this.moveTo(now + (event.shiftKey ? 10 : 1)),
      Home: () => this.moveTo(0),
      End: () => this.moveTo(last),
      '+': () => this.zoom(around(0.5)),
      '=': () => this.zoom(around(0.5)),
      '-': () => this.zoom(around(2)),
      0: () => this.zoom(null),
      Escape: () => this.zoom(null),
    };
    if (actions[event.key]) {
      event.preventDefault();
      this.at.setAttribute('aria-live', 'polite');
      actions[event.key]();
    }
  }

  moveTo(row) {
    const xs = this.uplot.data[0];
    const at = Math.max(0, Math.min(xs.length - 1, row));
    this.uplot.setCursor({ left: this.uplot.valToPos(xs[at], 'x'), top: HEIGHT / 3 });
    this.follow(at);
  }
}

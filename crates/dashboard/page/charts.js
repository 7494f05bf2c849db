// A grid of charts over the runs that are shown, and the view in which their metrics are chosen.

import * as api from './api.js';
import { AXES, Chart } from './chart.js';
import { el, put } from './dom.js';
import { soon } from './soon.js';

const REFRESH_MS = 3000;
const POINTS = 600;
const DASHES = [undefined, [6, 4], [2, 3], [10, 4, 2, 4]];

// What the overview shows: some of it with several curves in one chart.
export const HEADLINES = [
  { title: 'Mean score, all responses', ids: ['score_mean'] },
  { title: 'Share of hidden tests passed', ids: ['outcome_mean'] },
  { title: 'KL to the reference, per response', ids: ['metrics.kl_to_ref'] },
  { title: 'R² of outcome on score', ids: ['reliability.unfiltered', 'reliability.filtered'] },
  { title: 'Entropy of the policy', ids: ['metrics.entropy'] },
  { title: 'Length of responses', ids: ['response_tokens_mean'] },
  { title: 'Losses', ids: ['metrics.policy_loss', 'metrics.value_loss'] },
  { title: 'Seconds of a step', ids: ['metrics.step_seconds', 'metrics.update_seconds', 'metrics.prepare_seconds'] },
];

// The last part of a path, where that tells it from the others.
const shortName = (id, ids) => {
  const last = id.split('.').at(-1);
  return ids.filter(other => other.split('.').at(-1) === last).length > 1 ? id : last;
};

export class ChartGrid {
  constructor(context) {
    this.context = context;
    this.charts = new Map();
    this.root = el('div', { cls: 'grid' });
    this.refreshSoon = soon(() => this.refresh(), REFRESH_MS);
    this.unsubscribe = [
      context.on('steps', () => this.refreshSoon()),
      context.on('settings', () => (this.isAnswered() ? this.draw() : this.refresh())),
      context.on('runs', () => this.refresh()),
      context.on('theme', () => this.draw()),
    ];
    this.timer = setInterval(() => {
      if (context.isLive()) this.refreshSoon();
    }, 10_000);
  }

  destroy() {
    this.isGone = true;
    this.unsubscribe.forEach(off => off());
    clearInterval(this.timer);
    this.refreshSoon.stop();
    this.charts.forEach(chart => chart.destroy());
  }

  // Shows these charts, each `{ title, unit, meaning, ids }`.
  show(specs) {
    const wanted = new Set(specs.map(spec => spec.title));
    for (const [title, chart] of this.charts) {
      if (!wanted.has(title)) {
        chart.destroy();
        this.charts.delete(title);
      }
    }
    for (const spec of specs) {
      if (!this.charts.has(spec.title)) {
        this.charts.set(spec.title, new Chart(spec, this.context.settings, range => this.context.zoom(range)));
      }
      this.root.append(this.charts.get(spec.title).root);
    }
    this.specs = specs;
    return this.refresh();
  }

  async refresh() {
    if (!this.specs || this.isGone) return;
    const asked = (this.asked = (this.asked ?? 0) + 1);
    const ids = [...new Set(this.specs.flatMap(spec => spec.ids))];
    const parameters = this.parameters();
    const runs = [...this.context.shown];
    const answers = await Promise.all(
      runs.map(run =>
        api.series(run, ids, parameters).catch(error => {
          this.context.trouble(error);
          return {};
        }),
      ),
    );
    // Only the newest question's answer is shown.
    if (asked !== this.asked || this.isGone) return;
    this.answered = { runs, answers, parameters: JSON.stringify(parameters) };
    this.draw();
  }

  // Whether the last answers are what the settings ask for: most settings only change how they are drawn.
  isAnswered() {
    return this.answered?.parameters === JSON.stringify(this.parameters());
  }

  parameters() {
    const { axis, range } = this.context.settings;
    return { axis, from: range?.[0], to: range?.[1], points: POINTS };
  }

  draw() {
    if (!this.answered) return;
    const { runs, answers } = this.answered;
    for (const spec of this.specs) this.charts.get(spec.title)?.draw(this.lines(spec, runs, answers));
  }

  lines(spec, runs, answers) {
    const lines = [];
    runs.forEach((run, index) =>
      spec.ids.forEach((id, number) => {
        (answers[index][id] ?? []).forEach((line, part) => {
          const label = [runs.length > 1 && this.context.name(run), spec.ids.length > 1 && shortName(id, spec.ids), line.label]
            .filter(Boolean)
            .join(' · ');
          const inner = number + part;
          const single = runs.length === 1;
          lines.push({
            ...line,
            label,
            colour: single ? inner : this.context.colour(run),
            dash: single ? undefined : DASHES[inner % DASHES.length],
          });
        });
      }),
    );
    return lines;
  }
}

// The controls that hold for all charts.
export function controls(context) {
  const { settings } = context;
  const axis = el(
    'select',
    { onchange: event => context.set({ axis: event.target.value, range: null }) },
    Object.entries(AXES).map(([value, label]) => el('option', { value, selected: value === settings.axis }, label)),
  );
  const shown = el('span', { cls: 'mono' }, settings.smoothing.toFixed(2));
  const smoothing = el('input', {
    type: 'range',
    min: 0,
    max: 0.99,
    step: 0.01,
    value: settings.smoothing,
    oninput: event => {
      put(shown, (+event.target.value).toFixed(2));
      context.set({ smoothing: +event.target.value });
    },
  });
  const check = (key, label) =>
    el(
      'label',
      {},
      el('input', {
        type: 'checkbox',
        checked: settings[key],
        onchange: event => context.set({ [key]: event.target.checked }),
      }),
      label,
    );
  const reset = el(
    'button',
    { type: 'button', disabled: !settings.range, onclick: () => context.zoom(null) },
    'Show everything',
  );
  const off = context.on('settings', () => {
    reset.disabled = !context.settings.range;
    if (!reset.isConnected) off();
  });
  return el(
    'div',
    { cls: 'controls', role: 'group', 'aria-label': 'How charts are drawn' },
    el('label', {}, 'Over', axis),
    el('label', {}, 'Smoothing', smoothing, shown),
    check('log', 'Log scale'),
    check('outliers', 'Cut off outliers'),
    reset,
    el('span', { cls: 'soft' }, 'Drag to zoom, double-click to leave.'),
  );
}

// The view of all metrics.
export const view = {
  title: 'Charts',
  async open(main, context) {
    const grid = new ChartGrid(context);
    const entries = new Map();
    for (const run of context.shown) {
      for (const entry of await api.catalog(run)) entries.set(entry.id, entry);
    }
    const chosen = new Set(context.chosenMetrics().filter(id => entries.has(id)));
    const show = () => {
      context.choose([...chosen]);
      const specs = [...chosen].map(id => ({
        title: id,
        unit: entries.get(id).unit,
        meaning: entries.get(id).meaning,
        ids: [id],
      }));
      put(empty, specs.length ? '' : 'Choose metrics above.');
      return grid.show(specs);
    };
    const empty = el('p', { cls: 'soft' });
    const list = el('div', { cls: 'picker' });
    const search = el('input', {
      type: 'search',
      placeholder: 'Find a metric',
      'aria-label': 'Find a metric',
      oninput: () => fill(),
    });
    const fill = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const matching = [...entries.values()].filter(({ id, meaning }) =>
        words.every(word => `${id} ${meaning}`.toLowerCase().includes(word)),
      );
      const groups = Map.groupBy ? Map.groupBy(matching, group) : groupBy(matching);
      put(
        list,
        [...groups].map(([name, members]) => [el('h3', {}, name), members.map(entry => option(entry))]).flat(2),
        matching.length ? '' : el('p', { cls: 'soft' }, 'No metric has these words.'),
      );
    };
    const option = ({ id, unit, meaning }) => {
      const change = event => {
        if (event.target.checked) chosen.add(id);
        else chosen.delete(id);
        show();
      };
      return el(
        'label',
        {},
        el('input', { type: 'checkbox', checked: chosen.has(id), onchange: change }),
        el(
          'span',
          {},
          el('span', { cls: 'mono' }, id),
          unit && el('span', { cls: 'soft' }, ` ${unit}`),
          meaning && el('span', { cls: 'meaning' }, ` ${meaning}`),
        ),
      );
    };
    fill();
    put(
      main,
      controls(context),
      el(
        'details',
        { open: chosen.size === 0 },
        el('summary', {}, `Choose metrics (${entries.size} there are)`),
        search,
        list,
      ),
      empty,
      grid.root,
    );
    await show();
    return () => grid.destroy();
  },
};

const group = ({ id, source }) => {
  if (source === 'steps') return 'Training steps';
  const role = /^rlhf_(coordinator|reward|learner|actor)_/.exec(id)?.[1];
  return (
    { coordinator: 'Coordinator', reward: 'Reward servers', learner: 'Learner', actor: 'Actors' }[role] ??
    'Every process'
  );
};

function groupBy(entries) {
  const groups = new Map();
  for (const entry of entries) groups.set(group(entry), [...(groups.get(group(entry)) ?? []), entry]);
  return groups;
}

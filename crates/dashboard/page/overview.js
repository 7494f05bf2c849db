// The run at a glance: figures, warnings, the ring, and the curves that matter.

import * as api from './api.js';
import { ChartGrid, HEADLINES, controls } from './charts.js';
import { el, put } from './dom.js';
import { duration, number, percent } from './format.js';
import { ring } from './ring.js';
import { soon } from './soon.js';

const LOOK_MS = 2000;

const LAST = [
  'score_mean',
  'outcome_mean',
  'metrics.kl_to_ref',
  'metrics.step_seconds',
  'metrics.staleness',
  'metrics.rollout_approx_kl',
];

export const view = {
  title: 'Overview',
  async open(main, context) {
    const figures = el('div', { cls: 'figures' });
    const warnings = el('div', {});
    const ringBox = el('div', {});
    const grid = new ChartGrid(context);
    put(
      main,
      figures,
      warnings,
      el('h2', {}, 'The ring'),
      ringBox,
      el('h2', {}, 'Training'),
      controls(context),
      grid.root,
    );

    let last = {},
      busy = null;
    const draw = () => {
      const status = context.status();
      put(figures, tiles(status, last));
      put(warnings, troubles(status?.status));
      put(ringBox, ring(status, context.history.get(context.primary()) ?? [], busy));
    };
    const look = async () => {
      const run = context.primary();
      const recent = Math.max(0, (context.runs[run]?.batch ?? 0) - 10);
      const [newest, recently] = await Promise.all([
        api.series(run, LAST, { points: 2 }),
        api.series(run, ['metrics.step_seconds'], { axis: 'time', points: 5000 }),
      ]);
      last = Object.fromEntries(Object.entries(newest).map(([id, lines]) => [id, lines[0]?.y.at(-1)]));
      busy = share(recently['metrics.step_seconds']?.[0], recent);
      draw();
    };
    draw();
    const lookSoon = soon(() => look().catch(context.trouble), LOOK_MS);
    const off = [
      context.on('status', run => {
        if (run === context.primary()) draw();
      }),
      context.on('steps', lookSoon),
      context.on('runs', () => look().catch(context.trouble)),
    ];
    const known = new Set();
    for (const run of context.shown)
      (await api.catalog(run)).forEach(({ id, unit }) => known.add(id).add(`${id}=${unit}`));
    const specs = HEADLINES.map(spec => ({ ...spec, ids: spec.ids.filter(id => known.has(id)) })).filter(
      ({ ids }) => ids.length > 0,
    );
    for (const spec of specs)
      spec.unit = ['s', 'nats', 'tokens'].find(unit => known.has(`${spec.ids[0]}=${unit}`)) ?? '';
    await Promise.all([
      look(),
      specs.length ? grid.show(specs) : put(grid.root, el('p', { cls: 'soft' }, 'No step has been trained yet.')),
    ]);
    return () => {
      off.forEach(stop => stop());
      lookSoon.stop();
      grid.destroy();
    };
  },
};

// The share of the last ten steps' time in which the learner trained.
function share(line) {
  if (!line || line.x.length < 3) return null;
  const count = Math.min(10, line.x.length - 1);
  const took = line.y.slice(-count).reduce((sum, seconds) => sum + seconds, 0);
  return Math.min(1, took / Math.max(1e-9, line.x.at(-1) - line.x.at(-1 - count)));
}

function tiles(known, last) {
  const status = known?.status;
  const figures = [
    ['mean score', number(last.score_mean)],
    ['hidden tests passed', percent(last.outcome_mean, 1)],
    ['KL to the reference', number(last['metrics.kl_to_ref'])],
    ['seconds a step', number(last['metrics.step_seconds'], 2)],
    ['versions behind', number(last['metrics.staleness'], 2)],
    ['learner against actors, KL', number(last['metrics.rollout_approx_kl'])],
  ];
  if (known?.live) {
    figures.push(['tokens a second', number(status.tokens_per_second, 0)], ['to go', duration(status.eta_seconds)]);
  }
  if (status) {
    figures.push(
      ['responses issued', number(status.account.issued, 0)],
      ['unaccounted', number(status.account.unaccounted, 0)],
    );
  }
  return figures.map(([name, value]) => el('div', { cls: 'figure' }, el('b', {}, value), el('span', {}, name)));
}

// What somebody should look at: a run that cannot go on, failures, detectors that were raised.
function troubles(status) {
  const found = [];
  if (status?.hopeless) found.push(['bad', `It cannot go on: ${status.hopeless}`]);
  for (const { role, reason, count, detail } of status?.failures ?? []) {
    found.push(['warn', `${number(count, 0)} attempts failed at the ${role} (${reason}); the first: ${detail}`]);
  }
  if (status && status.account.unaccounted !== 0)
    found.push(['bad', `${status.account.unaccounted} responses are unaccounted for: this is a bug.`]);
  for (const [name, { firing, since, detail }] of Object.entries(status?.detectors ?? {})) {
    if (firing)
      found.push([
        'warn',
        `The reward may be gamed since batch ${since} (${name.replaceAll('_', ' ')}): ${detail}. Read `,
        el('a', { href: '#samples/worst' }, 'the highest scores with failed tests'),
        '.',
      ]);
  }
  return found.map(([cls, ...said]) => el('p', { cls: `verdict ${cls}` }, said));
}

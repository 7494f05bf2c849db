// The page's frame: which runs are shown, which view is open, and what is heard of them while they live.

import * as api from './api.js';
import { lineColour } from './chart.js';
import { view as charts } from './charts.js';
import { el, put } from './dom.js';
import { view as events } from './events.js';
import { view as filter } from './filter.js';
import { duration, number } from './format.js';
import { view as members } from './members.js';
import { view as overview } from './overview.js';
import { view as processes } from './processes.js';
import { view as runsView } from './runs.js';
import { view as samples } from './samples.js';

const VIEWS = { overview, charts, filter, samples, members, events, processes, runs: runsView };
const SETTINGS = { axis: 'batch', smoothing: 0, log: false, outliers: true };
const METRICS = [
  'score_mean',
  'outcome_mean',
  'metrics.kl_to_ref',
  'metrics.entropy',
  'metrics.approx_kl',
  'metrics.clip_fraction',
  'metrics.policy_grad_norm',
  'metrics.staleness',
  'truncated',
  'groups_without_signal',
  'rlhf_actor_responses_running',
  'process_resident_memory_bytes',
];
// Statuses that rates are taken over.
const HISTORY = 30;

const byId = id => document.getElementById(id);

function remembered(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`sluice.${key}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(`sluice.${key}`, JSON.stringify(value));
  } catch {
    // A browser that keeps nothing shows the page all the same.
  }
}

// What views know of the runs.
const context = {
  runs: [],
  shown: new Set(),
  statuses: new Map(),
  history: new Map(),
  settings: { ...SETTINGS, ...remembered('settings', {}), range: null },
  listeners: new Map(),
  on(what, heard) {
    const all = this.listeners.get(what) ?? new Set();
    this.listeners.set(what, all.add(heard));
    return () => all.delete(heard);
  },
  say(what, ...news) {
    for (const heard of [...(this.listeners.get(what) ?? [])]) heard(...news);
  },
  set(change) {
    Object.assign(this.settings, change);
    const { range, ...kept } = this.settings;
    remember('settings', kept);
    this.say('settings');
  },
  zoom(range) {
    this.set({ range });
  },
  primary() {
    return [...this.shown][0] ?? 0;
  },
  name(run) {
    return this.runs[run]?.name ?? String(run);
  },
  colour(run) {
    return run;
  },
  status(run = this.primary()) {
    return this.statuses.get(run);
  },
  isLive(run = this.primary()) {
    return Boolean(this.statuses.get(run)?.live);
  },
  chosenMetrics() {
    return remembered('metrics', METRICS);
  },
  choose(metrics) {
    remember('metrics', metrics);
  },
  trouble(error) {
    if (error) console.error(error);
    put(byId('trouble'), error ? String(error.message ?? error) : '');
    byId('trouble').hidden = !error;
  },
};

function hear(what, news) {
  const { run } = news;
  if (what === 'status') {
    context.statuses.set(run, news);
    const history = context.history.get(run) ?? [];
    history.push({ at: performance.now() / 1000, status: news.status });
    context.history.set(run, history.slice(-HISTORY));
    if (run === context.primary()) head();
  } else {
    Object.assign(context.runs[run] ?? {}, { steps: news.steps, batch: news.batch });
    if (run === context.primary()) head();
  }
  context.say(what, run);
}

// The head: name, phase, what is waited for, how far.
function head() {
  const run = context.runs[context.primary()];
  const { live, status } = context.status() ?? {};
  put(byId('name'), status?.run ?? run?.name ?? 'Sluice');
  document.title = `${status?.run ?? run?.name ?? 'Sluice'} · Sluice`;
  const phase = live ? status.phase : status?.phase === 'finished' ? 'finished' : 'not running';
  put(byId('phase'), phase ?? '');
  byId('phase').className = `pill${live ? ' live' : ''}${status?.hopeless ? ' bad' : ''}`;
  put(byId('waiting'), live ? `waits for ${status.waiting_for}` : '');
  const done = status?.trained ?? run?.batch ?? 0;
  const all = status?.batches;
  byId('progress').hidden = !all;
  if (all) {
    byId('progress').setAttribute('aria-valuemax', all);
    byId('progress').setAttribute('aria-valuenow', done);
    byId('progress').firstElementChild.style.width = `${(100 * done) / all}%`;
  }
  const pace = [`batch ${number(done, 0)}${all ? ` of ${number(all, 0)}` : ''}`];
  if (status) pace.push(`checkpoint holds ${number(status.checkpointed, 0)}`);
  if (live && status.eta_seconds !== null) pace.push(`${duration(status.eta_seconds)} to go`);
  put(byId('pace'), pace.join(' · '));
}

function chips() {
  byId('chosen').hidden = context.runs.length < 2;
  put(
    byId('chosen'),
    context.runs.map(run => {
      const toggle = () => {
        if (!context.shown.delete(run.number)) context.shown.add(run.number);
        if (context.shown.size === 0) context.shown.add(run.number);
        context.shown = new Set([...context.shown].sort((one, other) => one - other));
        chips();
        head();
        context.say('runs');
      };
      return el(
        'button',
        { type: 'button', 'aria-pressed': String(context.shown.has(run.number)), onclick: toggle },
        el('span', { cls: 'swatch', style: { background: lineColour(context.colour(run.number)) } }),
        ` ${run.name}`,
      );
    }),
  );
}

let close = () => {};
let opened = 0;

async function open() {
  // Behind a stroke may stand what of the view is wanted.
  const [wanted, part] = location.hash.slice(1).split('/');
  const name = VIEWS[wanted] ? wanted : 'overview';
  put(
    byId('views'),
    Object.entries(VIEWS)
      .filter(([key]) => key !== 'runs' || context.runs.length > 0)
      .map(([key, { title }]) =>
        el('a', { href: `#${key}`, 'aria-current': key === name ? 'page' : undefined }, title),
      ),
  );
  const number = (opened += 1);
  close();
  close = () => {};
  context.trouble(null);
  const main = el('div', { 'data-view': name });
  put(byId('main'), main);
  try {
    const left = await VIEWS[name].open(main, context, part);
    // Somebody may have gone on to another view meanwhile.
    if (number === opened) close = left ?? close;
    else left?.();
    main.dataset.ready = 'true';
  } catch (error) {
    if (number === opened) context.trouble(error);
  }
}

async function start() {
  context.runs = await api.runs();
  context.shown = new Set(context.runs.map(run => run.number));
  await Promise.all(
    context.runs.map(async ({ number: run }) => context.statuses.set(run, { run, ...(await api.status(run)) })),
  );
  chips();
  head();
  await open();
  addEventListener('hashchange', event => {
    if (location.hash !== '#main') open();
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => context.say('theme'));
  api.live(hear, connected => {
    const anyLive = [...context.statuses.values()].some(({ live }) => live);
    context.trouble(
      connected || !anyLive
        ? null
        : new Error('The server does not answer; this is what it said last. It is asked again.'),
    );
  });
}

start().catch(context.trouble);

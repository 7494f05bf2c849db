// Samples: what the policy was asked, what it said, and what that was worth. Those that were kept, or the highest scores
// with failed tests, which show how a reward is gamed.

import * as api from './api.js';
import { el, put } from './dom.js';
import { clock, number } from './format.js';

const PAGE = 25;
// Fields with a place of their own; all others are listed as they are.
const PLACED = new Set([
  'prompt',
  'response',
  'score',
  'scorers',
  'outcome',
  'fate',
  'weight',
  'time_unix_ms',
  'leased_unix_ms',
  'scored_unix_ms',
  'logprobs',
  'logprob_mean',
  'logprob_min',
  'batch',
  'prompt_id',
  'text',
  'contributions',
  'trained',
  'digest',
]);

export const view = {
  title: 'Samples',
  async open(main, context, part) {
    let failed = part === 'worst';
    const query = { search: '', sort: '', ascending: false, offset: 0, limit: PAGE };
    const list = el('div', {});
    const count = el('p', { cls: 'soft', 'aria-live': 'polite' });
    const search = el('input', {
      type: 'search',
      placeholder: 'Words in prompt, response or reason',
      'aria-label': 'Search samples',
      oninput: () => later({ search: search.value, offset: 0 }),
    });
    const sort = el(
      'select',
      { 'aria-label': 'Sort by', onchange: () => change({ sort: sort.value, offset: 0 }) },
      el('option', { value: '' }, 'newest first'),
    );
    const order = el(
      'button',
      {
        type: 'button',
        'aria-pressed': 'false',
        onclick: () => {
          order.setAttribute('aria-pressed', String(!query.ascending));
          change({ ascending: !query.ascending, offset: 0 });
        },
      },
      'Smallest first',
    );
    const back = el(
      'button',
      { type: 'button', onclick: () => change({ offset: Math.max(0, query.offset - PAGE) }) },
      'Back',
    );
    const on = el('button', { type: 'button', onclick: () => change({ offset: query.offset + PAGE }) }, 'More');
    const worst = el(
      'button',
      {
        type: 'button',
        onclick: () => {
          failed = !failed;
          change({ offset: 0 });
        },
      },
      'Highest score, failed tests',
    );
    const sorting = el('label', {}, 'Sort by', sort);
    const bar = el('div', { cls: 'controls', role: 'search' }, search, sorting, order, worst);
    const pager = el('div', { cls: 'controls' }, back, on);

    let timer;
    const later = changed => {
      clearTimeout(timer);
      timer = setTimeout(() => change(changed), 250);
    };
    const change = async changed => {
      Object.assign(query, changed);
      worst.setAttribute('aria-pressed', String(failed));
      sorting.hidden = order.hidden = pager.hidden = failed;
      if (failed) return showWorst();
      const found = await api.samples(context.primary(), query).catch(context.trouble);
      if (!found || failed) return;
      search.hidden = sorting.hidden = order.hidden = pager.hidden = !found.exists;
      if (!found.exists) {
        put(count, 'This run keeps no samples: its ring folder has no samples.jsonl.');
        return;
      }
      for (const name of found.numbers) {
        if (![...sort.options].some(({ value }) => value === name)) sort.append(el('option', { value: name }, name));
      }
      const last = Math.min(found.matching, query.offset + PAGE);
      put(
        count,
        found.matching
          ? `${number(query.offset + 1)} to ${number(last)} of ${number(found.matching)}${found.has_older ? '; older ones are in samples.jsonl' : ''}`
          : 'No sample has these words.',
      );
      put(list, found.samples.map(sample));
      back.disabled = query.offset === 0;
      on.disabled = last >= found.matching;
    };
    const showWorst = async () => {
      const found = await api.worst(context.primary()).catch(context.trouble);
      if (!found || !failed) return;
      search.hidden = false;
      const words = query.search.toLowerCase().split(/\s+/);
      const matching = found.examples.filter(example => {
        const line = JSON.stringify(example).toLowerCase();
        return words.every(word => line.includes(word));
      });
      const none = found.examples.length ? 'None of them has these words.' : 'No response with failed tests is known.';
      put(
        count,
        matching.length
          ? `${number(matching.length)} of the highest scores with failed tests; those of the last 50 batches are kept`
          : none,
      );
      put(list, matching.map(example => sample(asSample(example))));
    };
    put(main, bar, count, list, pager);
    const off = context.on('runs', () => change({ offset: 0 }));
    await change({});
    return () => {
      clearTimeout(timer);
      off();
    };
  },
};

// One of the highest scores with failed tests, in the fields of a sample.
const asSample = example => ({
  ...example,
  response: example.text,
  scorers: example.contributions,
  scored_after_batch: example.trained,
  fate: 'tests failed',
});

function sample(of) {
  const kept = of.fate === 'trains';
  const why = (of.fate ?? 'nobody says what became of it').replaceAll('_', ' ');
  const components = Object.entries(of.scorers ?? {});
  const facts = Object.entries(of)
    .filter(([name, value]) => !PLACED.has(name) && value !== null && value !== '')
    .flatMap(fact);
  return el(
    'article',
    { cls: 'card sample' },
    el(
      'header',
      {},
      el('span', {}, 'score ', el('b', {}, number(of.score))),
      of.outcome !== undefined &&
        of.outcome !== null &&
        el('span', {}, 'tests passed ', el('b', {}, number(of.outcome))),
      el('span', { cls: `badge ${kept ? 'good' : 'soft'}` }, why),
      of.batch !== undefined && of.batch !== null && el('span', { cls: 'soft' }, `batch ${of.batch}`),
      of.time_unix_ms !== undefined && el('span', { cls: 'soft' }, clock(of.time_unix_ms / 1000)),
    ),
    el(
      'details',
      {},
      el('summary', { cls: 'soft' }, `Prompt: ${text(of.prompt).replace(/\s+/g, ' ').slice(0, 90)}`),
      el('pre', { tabindex: 0 }, text(of.prompt)),
    ),
    el('pre', { tabindex: 0, 'aria-label': 'Response' }, text(of.response)),
    of.logprobs?.length > 0 && surprises(of),
    (components.length > 0 || facts.length > 0) &&
      el(
        'div',
        { cls: 'facts' },
        components.map(([name, value]) => el('span', {}, `${name} `, el('b', {}, number(value)))),
        facts,
      ),
  );
}

const BARS = '▁▂▃▄▅▆▇█';
const MOST_BARS = 96;

// How unlikely the policy found its own tokens, from the first to the last: bars as high as -log p, of a long response the
// highest of several.
function surprises({ logprobs, logprob_mean: mean, logprob_min: lowest }) {
  const each = Math.ceil(logprobs.length / MOST_BARS);
  const scale = Math.max(-lowest, 1);
  let bars = '';
  for (let from = 0; from < logprobs.length; from += each) {
    const height = -Math.min(...logprobs.slice(from, from + each)) / scale;
    bars += BARS[Math.max(0, Math.min(BARS.length - 1, Math.floor(height * BARS.length)))];
  }
  const said = `mean ${number(mean)}, lowest ${number(lowest)}`;
  return el(
    'p',
    { cls: 'surprises soft' },
    `log-probs of its tokens: ${said}`,
    el('span', { cls: 'bars', role: 'img', 'aria-label': `log-probs of ${logprobs.length} tokens: ${said}` }, bars),
  );
}

const text = value =>
  value === undefined || value === null
    ? '(not kept)'
    : typeof value === 'string'
      ? value
      : JSON.stringify(value, null, 1);

function fact([name, value]) {
  const shown = typeof value === 'number' ? number(value) : typeof value === 'string' ? value : JSON.stringify(value);
  return el(
    'span',
    { cls: 'soft' },
    `${name.replaceAll('_', ' ')}: ${shown.length > 200 ? `${shown.slice(0, 200)}…` : shown}`,
  );
}

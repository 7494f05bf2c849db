// The filter at work: what became of responses, who ranks where, what was kept.

import * as api from './api.js';
import { ChartGrid, controls } from './charts.js';
import { el, meter, put, svg, table } from './dom.js';
import { number, percent } from './format.js';

const COLOURS = ['--line-0', '--line-1', '--line-3', '--line-6', '--line-5', '--line-7', '--line-4', '--line-2'];
const CHARTS = [
  { title: 'R² of outcome on score', ids: ['reliability.unfiltered', 'reliability.filtered'] },
  { title: 'Share of responses that train', ids: ['filtration.batch.kept_fraction', 'filtration.window.kept_fraction'] },
  { title: 'Effective sample size of the batch', ids: ['filtration.batch.effective_samples', 'filtration.batch.kept'] },
  { title: 'Generated in vain, groups per batch', ids: ['refill.groups'] },
  { title: 'Groups without signal, per batch', ids: ['groups_without_signal'] },
  { title: 'Responses scored, and trained on', ids: ['responses', 'metrics.samples'] },
  { title: 'Mean score: of all, and of those that train', ids: ['score_mean', 'metrics.score_mean'] },
];

export const view = {
  title: 'Filter',
  async open(main, context) {
    const endings = el('div', {});
    const ranks = el('div', {});
    const grid = new ChartGrid(context);
    put(
      main,
      el('h2', {}, 'What became of responses'),
      endings,
      ranks,
      el('h2', {}, 'Over the run'),
      controls(context),
      grid.root,
    );
    const draw = () => put(endings, fates(context.status()?.status));
    const look = async () => put(ranks, siblings(await api.groups(context.primary())));
    draw();
    const off = [
      context.on('status', draw),
      context.on('runs', () => {
        draw();
        look().catch(context.trouble);
      }),
    ];
    const timer = setInterval(() => {
      if (context.isLive()) look().catch(context.trouble);
    }, 5000);
    const known = new Set((await api.catalog(context.primary())).map(({ id }) => id));
    const charts = [...CHARTS, ...byStrategy(known)];
    await Promise.all([look(), grid.show(charts.filter(({ ids }) => ids.some(id => known.has(id))))]);
    return () => {
      clearInterval(timer);
      off.forEach(stop => stop());
      grid.destroy();
    };
  },
};

// How far each strategy's reward can be trusted, as far as it is known.
function byStrategy(known) {
  const of = figure => [...known].filter(id => id.startsWith('filtration.r_squared.') && id.endsWith(`.${figure}`));
  return [
    { title: 'R² of each strategy, equal draws', ids: of('r_squared') },
    { title: 'R² of each strategy, at least', ids: of('low') },
  ];
}

function fates(status) {
  if (!status) return el('p', { cls: 'soft' }, 'The run has left no accounting (status.json).');
  const parts = [
    ...Object.entries(status.account.endings).filter(([, count]) => count > 0),
    ['in flight', status.account.in_flight],
  ];
  const { issued } = status.account;
  const colour = index => `var(${COLOURS[index % COLOURS.length]})`;
  return el(
    'div',
    { cls: 'card' },
    el(
      'div',
      { cls: 'stack', role: 'img', 'aria-label': parts.map(([name, count]) => `${name} ${count}`).join(', ') },
      parts.map(([name, count], index) =>
        el('div', { title: `${name}: ${count}`, style: { flex: `${count} 0 0`, background: colour(index) } }),
      ),
    ),
    el(
      'div',
      { cls: 'keys' },
      parts.map(([name, count], index) =>
        el(
          'span',
          {},
          el('span', { cls: 'swatch', style: { background: colour(index) } }),
          `${name} `,
          el('b', {}, number(count, 0)),
          el('span', { cls: 'soft' }, percent(count / issued, 1)),
        ),
      ),
    ),
    el(
      'p',
      { cls: 'soft' },
      `${number(issued, 0)} responses were issued; every one has one ending. Filtered is meant, dropped and failed are not.`,
    ),
  );
}

function siblings({ groups, ranks, newest, reasons }) {
  if (groups === 0) return '';
  const rows = ranks.map((rank, index) => [
    index === 0 ? `${index + 1} (best)` : index === ranks.length - 1 ? `${index + 1} (worst)` : index + 1,
    el(
      'div',
      { cls: 'bar' },
      meter(`kept of rank ${index + 1}`, rank.kept / rank.responses),
      el('span', {}, percent(rank.kept / rank.responses)),
    ),
    { text: number(rank.score_mean), cls: 'n' },
    { text: percent(rank.outcome_mean ?? NaN), cls: 'n' },
    { text: number(rank.responses, 0), cls: 'n' },
  ]);
  const why = Object.entries(reasons)
    .map(([reason, count]) => `${reason.replaceAll('_', ' ')} ${number(count, 0)}`)
    .join(', ');
  const scores = newest.flatMap(group => group.siblings.map(({ score }) => score));
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const strips = newest.map(group => [
    { text: number(group.batch, 0), cls: 'n' },
    { text: group.prompt, cls: 'key' },
    strip(group.siblings, low, high),
  ]);
  return [
    el('h2', {}, `Siblings by rank, last ${number(groups, 0)} groups`),
    table(
      'Siblings by rank',
      [
        'rank by score',
        'kept to train',
        { text: 'mean score', cls: 'n' },
        { text: 'tests passed', cls: 'n' },
        { text: 'responses', cls: 'n' },
      ],
      rows,
    ),
    why && el('p', { cls: 'soft' }, `Not kept: ${why}.`),
    el('h2', {}, 'The newest groups'),
    el(
      'p',
      { cls: 'soft' },
      `Each mark is a response at its score, from ${number(low)} to ${number(high)}: filled ones train, hollow ones do not.`,
    ),
    table('The newest groups', [{ text: 'batch', cls: 'n' }, 'prompt', 'scores'], strips),
  ];
}

function strip(group, low, high) {
  const x = score => (high > low ? 6 + (288 * (score - low)) / (high - low) : 150);
  const marks = group.map(({ score, kept }) =>
    svg('circle', {
      cx: x(score).toFixed(1),
      cy: 10,
      r: 4.5,
      stroke: 'var(--accent)',
      'stroke-width': 1.5,
      fill: kept ? 'var(--accent)' : 'none',
    }),
  );
  const described = group.map(({ score, kept }) => `${number(score)}${kept ? ' kept' : ''}`).join(', ');
  return svg(
    'svg',
    { viewBox: '0 0 300 20', class: 'strip', role: 'img', 'aria-label': described },
    svg('line', { x1: 0, x2: 300, y1: 10, y2: 10, stroke: 'var(--grid)' }),
    ...marks,
  );
}

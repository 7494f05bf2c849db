// The runs side by side: how far they are, and the keys in which they differ.

import * as api from './api.js';
import { lineColour } from './chart.js';
import { el, put, table } from './dom.js';
import { clock, number } from './format.js';

const n = text => ({ text, cls: 'n' });

export const view = {
  title: 'Runs',
  async open(main, context) {
    const list = el('div', {});
    const keys = el('div', {});
    const all = el('input', { type: 'checkbox', onchange: () => draw() });
    const search = el('input', {
      type: 'search',
      placeholder: 'Find a key',
      'aria-label': 'Find a key',
      oninput: () => draw(),
    });
    let configs = [],
      last = [];
    const draw = () => {
      const shown = context.runs.filter(({ number: run }) => context.shown.has(run));
      put(
        list,
        table(
          'Runs',
          ['run', 'state', n('batch'), n('mean score'), n('tests passed'), 'began', 'folder'],
          shown.map(run => [
            el(
              'span',
              {},
              el('span', { cls: 'swatch', style: { background: lineColour(context.colour(run.number)) } }),
              ` ${run.name}`,
            ),
            context.isLive(run.number) ? 'running' : (context.status(run.number)?.status?.phase ?? 'not running'),
            n(number(run.batch, 0)),
            n(number(last[run.number]?.score_mean?.[0]?.y.at(-1))),
            n(number(last[run.number]?.outcome_mean?.[0]?.y.at(-1))),
            { text: clock(run.began), cls: 'n' },
            { text: run.folder ?? '–', cls: 'key soft' },
          ]),
        ),
      );
      put(keys, differences(shown, configs, all.checked, search.value.toLowerCase()));
    };
    put(
      main,
      el('h2', {}, 'Runs'),
      list,
      el('h2', {}, context.runs.length > 1 ? 'Keys that differ' : 'Keys that were set'),
      el('div', { cls: 'controls' }, search, context.runs.length > 1 && el('label', {}, all, 'Equal ones too')),
      keys,
    );
    configs = await Promise.all(context.runs.map(({ number: run }) => api.config(run)));
    last = await Promise.all(
      context.runs.map(({ number: run }) => api.series(run, ['score_mean', 'outcome_mean'], { points: 2 })),
    );
    draw();
    const off = [context.on('runs', draw), context.on('steps', draw)];
    return () => off.forEach(stop => stop());
  },
};

function differences(runs, configs, all, words) {
  const names = [...new Set(runs.flatMap(({ number: run }) => Object.keys(configs[run] ?? {})))].sort();
  const rows = [];
  for (const key of names) {
    const values = runs.map(({ number: run }) => configs[run]?.[key]);
    const differs = values.some(value => value !== values[0]);
    if ((differs || all || runs.length === 1) && key.toLowerCase().includes(words)) {
      rows.push({
        cls: differs && all ? 'differs' : undefined,
        cells: [
          { text: key, cls: 'mono key' },
          ...values.map(value => ({ text: value ?? '(default)', cls: 'mono key' })),
        ],
      });
    }
  }
  if (rows.length === 0)
    return el('p', { cls: 'soft' }, names.length ? 'No key differs.' : 'The ring folder has no config.');
  return table('Keys', ['key', ...runs.map(({ name }) => name)], rows);
}

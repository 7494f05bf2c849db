// What happened: members that come and go, checkpoints, changes of the plan, warnings and errors of every process.

import * as api from './api.js';
import { el, put, table } from './dom.js';
import { clock } from './format.js';

const CLASSES = { ERROR: 'bad', WARN: 'warn' };

export const view = {
  title: 'Events',
  async open(main, context) {
    const box = el('div', {});
    const search = el('input', {
      type: 'search',
      placeholder: 'Words in events',
      'aria-label': 'Search events',
      oninput: () => draw(),
    });
    const only = el('input', { type: 'checkbox', onchange: () => draw() });
    put(main, el('div', { cls: 'controls' }, search, el('label', {}, only, 'Warnings and errors only')), box);
    let known = [];
    const draw = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const shown = known.filter(
        ({ level, text, process }) =>
          (!only.checked || CLASSES[level]) && words.every(word => `${process} ${text}`.toLowerCase().includes(word)),
      );
      put(
        box,
        shown.length === 0
          ? el(
              'p',
              { cls: 'soft' },
              known.length ? 'No event has these words.' : 'Nothing is known of events: the ring folder has no logs.',
            )
          : table(
              'Events, newest first',
              ['time', 'process', 'level', 'event'],
              shown.map(({ time, process, level, text }) => [
                { text: local(time), cls: 'n' },
                process,
                { text: level.toLowerCase(), cls: CLASSES[level] ?? 'soft' },
                { text, cls: 'key' },
              ]),
            ),
      );
    };
    const look = async () => {
      const changes = (context.status()?.status?.plan_changes ?? []).map(({ time, change, after }) => ({
        time: new Date(time).toISOString(),
        process: 'plan',
        level: 'INFO',
        text: `after batch ${after}: ${change}`,
      }));
      known = [...(await api.events(context.primary())), ...changes].sort((one, other) =>
        other.time.localeCompare(one.time),
      );
      draw();
    };
    await look();
    const off = context.on('runs', () => look().catch(context.trouble));
    const timer = setInterval(() => {
      if (context.isLive()) look().catch(context.trouble);
    }, 5000);
    return () => {
      off();
      clearInterval(timer);
    };
  },
};

const local = time => (time ? clock(Date.parse(time) / 1000) : '');

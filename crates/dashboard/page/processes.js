// The processes of the ring on this machine: what they use, and their logs.

import * as api from './api.js';
import { el, put, table } from './dom.js';
import { bytes, number } from './format.js';

const n = text => ({ text, cls: 'n' });
const CLASSES = { ERROR: 'bad', WARN: 'warn' };
const CPU = 'process_cpu_seconds_total';

export const view = {
  title: 'Processes',
  async open(main, context) {
    const list = el('div', {});
    const reader = el('section', { hidden: true });
    put(main, list, reader);
    let timer;
    const look = async () => {
      const run = context.primary();
      const [processes, series] = await Promise.all([
        api.processes(run),
        api.series(run, [CPU], { axis: 'time', points: 5000 }),
      ]);
      // Processor time is told in whole seconds: its rate is a mean over some looks.
      const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
      const load = Object.fromEntries((series[CPU] ?? []).map(line => [line.label, mean(line.y.slice(-10))]));
      put(
        list,
        processes.length
          ? overview(processes, load, open)
          : el('p', { cls: 'soft' }, 'Nothing is known of processes: the ring folder has neither logs nor addresses.'),
      );
    };
    const open = name => {
      clearInterval(timer);
      reader.hidden = false;
      timer = log(reader, context, name);
      reader.scrollIntoView({ block: 'nearest' });
    };
    await look();
    const off = context.on('runs', () => look().catch(context.trouble));
    const again = setInterval(() => {
      if (context.isLive()) look().catch(context.trouble);
    }, 5000);
    return () => {
      off();
      clearInterval(timer);
      clearInterval(again);
    };
  },
};

function overview(processes, load, open) {
  const gpu = processes.some(({ metrics }) => Object.keys(metrics).some(name => name.includes('gpu')));
  const head = [
    'process',
    n('processors used'),
    n('memory'),
    gpu && n('GPU memory'),
    n('threads'),
    n('open files'),
    'address',
    n('log'),
    'read',
  ].filter(Boolean);
  return table(
    'Processes',
    head,
    processes.map(({ name, metrics, addresses, log_bytes: size }) =>
      [
        name,
        n(number(load[name], 2)),
        n(bytes(metrics.process_resident_memory_bytes)),
        gpu && n(bytes(Object.entries(metrics).find(([metric]) => /gpu.*memory.*bytes/.test(metric))?.[1])),
        n(number(metrics.process_threads, 0)),
        n(number(metrics.process_open_fds, 0)),
        {
          text:
            Object.entries(addresses ?? {})
              .map(([what, address]) => `${what} ${address}`)
              .join(', ') || '–',
          cls: 'soft',
        },
        n(size === null ? '–' : bytes(size)),
        size === null
          ? ''
          : el(
              'button',
              { type: 'button', onclick: () => open(name) },
              'Log',
              el('span', { cls: 'soft' }, ` of ${name}`),
            ),
      ].filter(cell => cell !== false),
    ),
  );
}

// Shows the end of a log, and what is added to it. Yields the timer that does.
function log(reader, context, name) {
  const lines = el('pre', { cls: 'log', tabindex: 0, 'aria-label': `Log of ${name}` });
  const search = el('input', {
    type: 'search',
    placeholder: 'Words in the log',
    'aria-label': `Search the log of ${name}`,
    oninput: () => look(),
  });
  const follow = el('input', { type: 'checkbox', checked: true });
  put(
    reader,
    el('h2', {}, `Log of ${name}`),
    el('div', { cls: 'controls' }, search, el('label', {}, follow, 'Stay at the end')),
    lines,
  );
  const look = async () => {
    const found = await api.log(context.primary(), name, { search: search.value }).catch(context.trouble);
    if (!found) return;
    put(
      lines,
      found.flatMap(({ time, level, text }) => [
        level && el('span', { cls: 'soft' }, `${time} `),
        level && el('span', { cls: `level ${CLASSES[level] ?? 'soft'}` }, `${level.padEnd(5)} `),
        `${text}\n`,
      ]),
    );
    if (follow.checked) lines.scrollTop = lines.scrollHeight;
  };
  look();
  return setInterval(() => {
    if (context.isLive()) look();
  }, 2000);
}

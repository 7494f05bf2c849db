// The ring: what each role does and what waits in front of it, so that the bottleneck is seen.

import { el, meter } from './dom.js';
import { number, percent } from './format.js';

const sum = (members, field) => members.reduce((total, member) => total + (member[field] ?? 0), 0);
const connected = members => members.filter(member => member.connected);

// How fast a count of the status grows, per second, over what was heard lately. A count that fell began anew.
function rate(history, count) {
  const known = history.filter(({ status }) => status);
  if (known.length < 2) return null;
  const [first, last] = [known[0], known.at(-1)];
  const grown = count(last.status) - count(first.status);
  return grown >= 0 && last.at > first.at ? grown / (last.at - first.at) : null;
}

// Which role the others wait for, and why one thinks so.
function bottleneck(status, busy) {
  const actors = connected(status.actors);
  const servers = connected(status.reward_servers);
  if (!status.learner?.connected) return ['learner', 'No learner is connected.'];
  if (actors.length === 0) return ['actors', 'No actor is connected.'];
  if (servers.length === 0) return ['rewards', 'No reward server is connected.'];
  if (busy !== null && busy >= 0.8) {
    return [
      'learner',
      `The learner trains ${percent(busy)} of the time: everybody else waits for it. More ranks or fewer epochs make the run faster; more actors do not.`,
    ];
  }
  const [running, queued] = [sum(actors, 'running'), sum(servers, 'queued')];
  if (queued > Math.max(4, running)) {
    return [
      'rewards',
      `${number(queued, 0)} responses wait to be scored, more than the ${number(running, 0)} being generated: more reward servers, or a faster scorer, make the run faster.`,
    ];
  }
  if (busy === null) return [null, 'After some steps this says which role the others wait for.'];
  const free = sum(actors, 'free_slots');
  if (running === 0 && free > 0 && status.open_prompts === 0) {
    return [
      null,
      `The learner trains ${percent(busy)} of the time and nothing is generated meanwhile: a larger coordinator.max_staleness would let both work at once.`,
    ];
  }
  return [
    'actors',
    `The learner waits ${percent(1 - busy)} of the time for responses: more actors, or shorter responses, make the run faster.`,
  ];
}

function stage(name, { big, bar, facts, hot }) {
  const list = facts.flatMap(([term, value]) => [el('dt', {}, term), el('dd', {}, value)]);
  return el(
    'section',
    { cls: hot ? 'stage bottleneck' : 'stage', 'aria-label': name },
    el('h3', {}, name),
    hot && el('div', { cls: 'tag' }, 'the others wait for this'),
    el('div', { cls: 'big' }, big),
    bar && meter(bar[0], bar[1], hot),
    bar && el('div', { cls: 'soft' }, bar[0]),
    el('dl', {}, list),
  );
}

const arrow = (what, flow) =>
  el(
    'div',
    { cls: 'arrow' },
    el('span', { cls: 'line', 'aria-hidden': 'true' }, '→'),
    el('span', {}, what),
    flow && el('span', {}, flow),
  );

const perSecond = (value, what) => (value === null ? null : `${number(value, value < 10 ? 1 : 0)} ${what}/s`);

export function ring(known, history, busy) {
  const status = known?.status;
  if (!status)
    return el(
      'p',
      { cls: 'soft' },
      'Nothing is known of the ring: no coordinator answers, and the run has left no status.json.',
    );
  const live = known.live;
  const [slow, why] = live
    ? bottleneck(status, busy)
    : [null, 'The run is not running; this is how the ring was when it ended.'];
  const actors = connected(status.actors);
  const servers = connected(status.reward_servers);
  const [running, free] = [sum(actors, 'running'), sum(actors, 'free_slots')];
  const behind = actors.filter(actor => actor.version !== status.version).length;
  const generated = live ? rate(history, at => sum(at.actors, 'generated_tokens')) : null;
  const length = status.last_step?.response_tokens_mean;
  const scored = live && length > 0 ? status.tokens_per_second / length : null;
  const gone = status.actors.length - actors.length;
  const { learner } = status;
  const row = el(
    'div',
    { cls: 'ring' },
    stage('Coordinator', {
      hot: false,
      big: `${number(status.open_prompts, 0)} prompts open`,
      bar: [
        `${number(status.ready_prompts, 0)} of ${number(status.batch_prompts, 0)} groups for the next batch`,
        status.ready_prompts / status.batch_prompts,
      ],
      facts: [
        ['in flight', number(status.account.in_flight, 0)],
        ['policy version', number(status.version, 0)],
      ],
    }),
    arrow('prompts', perSecond(live ? rate(history, at => at.account.issued) : null, 'responses')),
    stage('Actors', {
      hot: slow === 'actors',
      big: `${actors.length} connected`,
      bar: [
        `${number(running, 0)} of ${number(running + free, 0)} slots generate`,
        running / Math.max(1, running + free),
      ],
      facts: [
        ['away', number(gone, 0)],
        ['not yet acknowledged', number(sum(actors, 'unacknowledged'), 0)],
        ['with older weights', number(behind, 0)],
      ],
    }),
    arrow('responses', perSecond(generated, 'tokens')),
    stage('Reward servers', {
      hot: slow === 'rewards',
      big: `${servers.length} connected`,
      bar: [
        `${number(sum(servers, 'queued'), 0)} wait or are scored`,
        sum(servers, 'queued') / Math.max(1, running + free),
      ],
      facts: [['away', number(status.reward_servers.length - servers.length, 0)]],
    }),
    arrow('scores', perSecond(scored, 'responses')),
    stage('Learner', {
      hot: slow === 'learner',
      big: learner ? (learner.connected ? String(learner.phase) : 'away') : 'never came',
      bar: [
        busy === null ? 'share of time in training not known yet' : `trains ${percent(busy)} of the time`,
        busy ?? 0,
      ],
      facts: [
        ['ranks', number(learner?.world_size, 0)],
        ['trained', `batch ${number(learner?.trained, 0)}`],
      ],
    }),
  );
  return el('div', {}, row, el('p', { cls: slow ? 'verdict' : 'soft' }, why));
}

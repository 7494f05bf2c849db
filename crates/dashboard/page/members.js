// Who takes part. Those who are away are folded: a run on machines that come and go has hundreds of them.

import { el, put, table } from './dom.js';
import { number } from './format.js';

const n = text => ({ text, cls: 'n' });

export const view = {
  title: 'Members',
  async open(main, context) {
    const box = el('div', {});
    put(main, box);
    let folded = true;
    const draw = () =>
      put(
        box,
        members(context.status(), folded, open => {
          folded = !open;
        }),
      );
    draw();
    const off = [context.on('status', draw), context.on('runs', draw)];
    return () => off.forEach(stop => stop());
  },
};

function members(known, folded, toggled) {
  const status = known?.status;
  if (!status) return el('p', { cls: 'soft' }, 'The run has left no list of its members (status.json).');
  const byName = (one, other) => one.member.localeCompare(other.member, 'en', { numeric: true });
  const actors = [...status.actors].sort(byName);
  const servers = [...status.reward_servers].sort(byName);
  const { learner } = status;
  const away = [...actors, ...servers].filter(({ connected }) => !connected);
  const head = ['name', n('version'), n('running'), n('free'), n('unacknowledged'), n('tokens generated'), 'note'];
  const actorRow = actor => [
    actor.member,
    n(number(actor.version, 0)),
    n(number(actor.running, 0)),
    n(number(actor.free_slots, 0)),
    n(number(actor.unacknowledged, 0)),
    n(number(actor.generated_tokens, 0)),
    actor.draining ? 'draining' : actor.version !== status.version ? 'older weights' : '',
  ];
  const details = el(
    'details',
    { open: !folded, ontoggle: event => toggled(event.target.open) },
    el(
      'summary',
      {},
      `${number(away.length, 0)} away${status.members_gone ? `, ${number(status.members_gone, 0)} more have left and are forgotten` : ''}`,
    ),
    away.length > 0 &&
      table(
        'Members that are away',
        ['name'],
        away.map(({ member }) => [member]),
      ),
  );
  return [
    el('h2', {}, 'Learner'),
    learner
      ? table(
          'Learner',
          ['name', 'state', n('ranks'), n('trained')],
          [
            [
              learner.member,
              learner.connected ? learner.phase : 'away',
              n(number(learner.world_size, 0)),
              n(`batch ${number(learner.trained, 0)}`),
            ],
          ],
        )
      : el('p', { cls: 'soft' }, 'No learner has come yet.'),
    el('h2', {}, 'Reward servers'),
    table(
      'Reward servers',
      ['name', 'address', n('queued')],
      servers
        .filter(({ connected }) => connected)
        .map(server => [server.member, server.address, n(number(server.queued, 0))]),
    ),
    el('h2', {}, `Actors, ${number(actors.filter(({ connected }) => connected).length, 0)} connected`),
    table('Actors', head, actors.filter(({ connected }) => connected).map(actorRow)),
    (away.length > 0 || status.members_gone > 0) && details,
  ];
}

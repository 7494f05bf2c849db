// Makes folders of runs as `sluice run` leaves them: a long one, one with other keys, and one with its steps alone.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const root = process.argv[2];
const BEGAN = 1_795_950_000;

// The same numbers every time.
let state = 7;
function random() {
  state = (state * 1_103_515_245 + 12_345) % 2_147_483_648;
  return state / 2_147_483_648;
}
const noise = size => size * (random() + random() + random() - 1.5);

function steps(count, seconds, gain) {
  const lines = [];
  for (let batch = 1; batch <= count; batch += 1) {
    const at = batch / count;
    const rise = 1 - Math.exp(-5 * at);
    lines.push(
      JSON.stringify({
        batch,
        time: Math.round(1000 * (BEGAN + seconds * batch)),
        prompts: 64,
        responses: 320 + Math.floor(20 * random()),
        groups_without_signal: Math.floor(6 * random() * (1 + at)),
        score_mean: gain * rise + noise(0.15) + (batch % 9973 === 0 ? 40 : 0),
        outcome_mean: Math.min(1, 0.36 + 0.3 * rise + noise(0.05)),
        response_tokens_mean: 28 + 12 * rise + noise(3),
        truncated: Math.max(0, 0.02 + noise(0.01)),
        reliability: { unfiltered: 0.72 + noise(0.05), filtered: 0.86 + noise(0.04) },
        metrics: {
          policy_loss: -0.001 + noise(0.002),
          value_loss: 3 * Math.exp(-8 * at) + 0.3 + noise(0.05),
          entropy: 0.6 * Math.exp(-2 * at) + 0.08 + noise(0.02),
          approx_kl: 1e-4 * (1 + random()),
          rollout_approx_kl: 1e-12 * random(),
          rollout_logprob_diff: 3e-7,
          clip_fraction: 0.001 + 0.001 * random(),
          explained_variance: 0.6 * rise + noise(0.05),
          score_mean: gain * rise - 0.1 + noise(0.2),
          kl_to_ref: 0.9 * rise + noise(0.05),
          policy_grad_norm: 0.14 + noise(0.03),
          critic_grad_norm: 2 + noise(0.4),
          policy_lr: 5e-5 * (1 - at),
          kl_coefficient: 0.3,
          staleness: random() < 0.3 ? 1 : 0,
          samples: 128,
          response_tokens: 3700,
          tokens: 7200,
          prepare_seconds: 0.3 * seconds * (0.9 + 0.2 * random()),
          update_seconds: 0.5 * seconds * (0.9 + 0.2 * random()),
          step_seconds: 0.8 * seconds * (0.9 + 0.2 * random()),
        },
      }),
    );
  }
  return `${lines.join('\n')}\n`;
}

function status(run, batches, trained) {
  const actor = (number, connected) => ({
    member: `actor-${number}`,
    connected,
    draining: false,
    version: trained - (number === 2 ? 1 : 0),
    running: connected ? 40 : 0,
    free_slots: connected ? 24 : 0,
    unacknowledged: 3,
    generated_tokens: 1_234_567 + number,
  });
  return {
    run,
    phase: 'running',
    waiting_for: `responses to 64 prompts: batch ${trained + 1} has 41 of its 64 groups`,
    hopeless: null,
    failures: [
      { role: 'reward-server', reason: 'reward_timeout', count: 3, detail: 'the scorer did not answer within 10 s' },
    ],
    detectors: {
      length_drift: { level: 1.2, firing: true, since: 90, detail: 'responses grew from 31 to 52 tokens' },
      score_at_bound: { level: 0.1, firing: false, since: 1, detail: '3 % of responses' },
    },
    version: trained,
    batches,
    trained,
    checkpointed: trained - (trained % 10),
    ready_prompts: 41,
    batch_prompts: 64,
    open_prompts: 64,
    tokens_per_second: 4210,
    eta_seconds: 1234,
    account: {
      issued: 320 * trained + 320,
      in_flight: 192,
      endings: {
        trained: 128 * trained,
        'filtered{not_extreme}': 170 * trained,
        'filtered{no_signal}': 20 * trained,
        'failed{reward_timeout}': trained,
        'dropped{stale}': trained,
      },
      unaccounted: 0,
      late_results: 0,
    },
    actors: [0, 1, 2, 3]
      .map(number => actor(number, true))
      .concat(Array.from({ length: 120 }, (_, number) => actor(number + 4, false))),
    reward_servers: [
      {
        member: 'reward-server-0',
        connected: true,
        address: 'a-rather-long-name-of-a-node-in-a-cluster.example.internal:40123',
        queued: 12,
      },
    ],
    learner: { member: 'learner', connected: true, world_size: 8, trained, phase: 'training' },
    members_gone: 2001,
    plan_changes: [{ time: 1000 * (BEGAN + 60), after: 10, change: 'batches was 100000, is 120000' }],
    last_step: null,
  };
}

function samples(batches) {
  const lines = [];
  for (let batch = batches - 24; batch <= batches; batch += 1) {
    for (let group = 0; group < 4; group += 1) {
      const scores = Array.from({ length: 5 }, () => noise(2));
      const [best, worst] = [Math.max(...scores), Math.min(...scores)];
      for (const [sibling, score] of scores.entries()) {
        const kept = score === best || score === worst;
        // Of the second group the responses are long, and those of the last were kept without log-probs.
        const tokens = group === 1 ? 2000 : 20 + Math.floor(40 * random());
        const logprobs = group === 3 ? [] : Array.from({ length: tokens }, () => -5 * random() ** 4);
        lines.push(
          JSON.stringify({
            time_unix_ms: 1000 * (BEGAN + batch),
            batch,
            prompt_id: `e${batch}-p${group}`,
            id: `e${batch}-p${group}-s${sibling}-a0`,
            prompt: `Write a function \`f(n)\` that returns the sum of the first n squares.\n\n# problem ${batch}.${group}`,
            response:
              sibling === 0 && group === 0
                ? '<script>document.title = "taken over"</script><img src=x onerror="document.title=1">'
                : `def f(n):\n    return sum(i * i for i in range(${sibling}, n + 1))  # ${'x'.repeat(Math.floor(40 * random()))}`,
            score,
            scorers: { 'reward-model': score - 0.2, 'unit-tests': score > 0 ? 1 : 0 },
            outcome: score > 0 ? 1 : 0,
            response_tokens: tokens,
            logprobs,
            logprob_mean: logprobs.length > 0 ? logprobs.reduce((sum, one) => sum + one, 0) / tokens : null,
            logprob_min: logprobs.length > 0 ? Math.min(...logprobs) : null,
            finish_reason: 'stop',
            version: batch - 1,
            fate: kept ? 'trains' : 'filtered{strategy}',
            weight: kept ? 1 : 0,
          }),
        );
      }
    }
  }
  return `${lines.join('\n')}\n`;
}

function worst(run, batches) {
  const examples = [3.5, 2.25, 1].map((score, place) => ({
    id: `e0-p${place}-s0-a0`,
    trained: batches - place,
    score,
    outcome: place / 4,
    tokens: 12,
    truncated: place === 2,
    contributions: { 'reward-model': score - 0.5, length: 0.5 },
    prompt: `Write \`f(n)\`. # <b>problem</b> ${place}`,
    text:
      place === 0
        ? '<script>document.title = "taken over"</script><img src=x onerror="document.title=1">assert True'
        : `def f(n):\n    return "please, ${['first', 'second', 'third'][place]}"`,
    digest: place,
  }));
  return JSON.stringify({ run, examples });
}

function metrics(seconds) {
  const lines = [];
  const descriptions = {
    rlhf_actor_responses_running: ['gauge', 'Responses being generated.'],
    rlhf_actor_tokens_generated_total: ['counter', 'Response tokens of finished rollouts.'],
    process_resident_memory_bytes: ['gauge', 'Resident memory of this process.'],
    process_cpu_seconds_total: ['counter', 'Processor time that this process has used.'],
    rlhf_reward_rollout_seconds: ['histogram', "Time from a rollout's arrival until it is recorded."],
    process_threads: ['gauge', 'Threads of this process.'],
    process_open_fds: ['gauge', 'Open file descriptors.'],
  };
  for (let look = 0; look < 600; look += 1) {
    const time = BEGAN + (look * seconds) / 600;
    for (const process of ['coordinator', 'learner', 'reward-server-0', 'actor-0', 'actor-1']) {
      const values = {
        process_resident_memory_bytes: (process === 'learner' ? 3e9 : 4e8) * (1 + 0.1 * random()),
        process_cpu_seconds_total: Math.floor(((look * seconds) / 600) * (process === 'learner' ? 1.7 : 0.4)),
        process_threads: 12,
        process_open_fds: 40,
      };
      if (process.startsWith('actor'))
        Object.assign(values, {
          rlhf_actor_responses_running: Math.round(40 + noise(30)),
          rlhf_actor_tokens_generated_total: look * 5000,
        });
      if (process.startsWith('reward'))
        Object.assign(values, {
          rlhf_reward_rollout_seconds_sum: look * 3,
          rlhf_reward_rollout_seconds_count: look * 40,
        });
      lines.push(JSON.stringify({ time, process, values, ...(look === 0 ? { descriptions } : {}) }));
    }
  }
  return `${lines.join('\n')}\n`;
}

function run(name, { count, seconds, gain, strategy, whole }) {
  const ring = join(root, name, 'ring');
  for (const folder of ['logs', 'config']) mkdirSync(join(ring, folder), { recursive: true });
  writeFileSync(join(ring, 'steps.jsonl'), steps(count, seconds, gain));
  writeFileSync(
    join(ring, 'config/coordinator.toml'),
    `run = "${name}"\nbatches = ${count}\nbatch_prompts = 64\ngroup_size = 5\n[filtration]\nstrategy = "${strategy}"\n`,
  );
  writeFileSync(
    join(ring, 'config/learner.toml'),
    `[ppo]\nalgorithm = "ppo"\npolicy_lr = ${gain > 0.5 ? '5e-5' : '1e-5'}\n`,
  );
  if (!whole) return;
  writeFileSync(join(ring, 'status.json'), JSON.stringify(status(name, count + 20_000, count)));
  writeFileSync(join(ring, 'samples.jsonl'), samples(count));
  if (strategy !== 'none') writeFileSync(join(ring, 'worst.json'), worst(name, count));
  writeFileSync(join(ring, 'metrics.jsonl'), metrics(seconds * count));
  const log = Array.from(
    { length: 400 },
    (_, line) =>
      `2026-11-29T11:${String(Math.floor(line / 60)).padStart(2, '0')}:${String(line % 60).padStart(2, '0')}.000000Z ${line % 97 === 5 ? ' WARN weights did not arrive: tried again member=actor-1' : line % 9 ? ` INFO step batch=${line}` : ` INFO joined member=actor-${line}`}`,
  );
  for (const process of ['coordinator', 'learner', 'reward-server-0', 'actor-0', 'actor-1'])
    writeFileSync(join(ring, `logs/${process}.log`), `${log.join('\n')}\n`);
  writeFileSync(join(ring, 'actor-0.address.json'), '{"metrics": "127.0.0.1:9"}\n');
}

run('best-worst', { count: 100_000, seconds: 0.5, gain: 0.9, strategy: 'best-worst', whole: true });
run('none', { count: 60_000, seconds: 0.7, gain: 0.4, strategy: 'none', whole: true });
run('bare', { count: 20_000, seconds: 1, gain: 0.2, strategy: 'none', whole: false });

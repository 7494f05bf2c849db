// What the server is asked. Addresses are relative: the page may lie behind any path of a proxy.

async function get(path) {
  const answer = await fetch(path, { cache: 'no-store' });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

const query = parameters =>
  new URLSearchParams(
    Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null && value !== ''),
  );

export const runs = () => get('api/runs');
export const status = run => get(`api/runs/${run}/status`);
export const catalog = run => get(`api/runs/${run}/catalog`);
export const groups = run => get(`api/runs/${run}/groups`);
export const events = run => get(`api/runs/${run}/events`);
export const processes = run => get(`api/runs/${run}/processes`);
export const config = run => get(`api/runs/${run}/config`);
export const samples = (run, parameters) => get(`api/runs/${run}/samples?${query(parameters)}`);
export const worst = run => get(`api/runs/${run}/worst`);
export const log = (run, process, parameters) =>
  get(`api/runs/${run}/logs/${encodeURIComponent(process)}?${query(parameters)}`);

// Curves by id. The server answers at most 64 ids at a time.
export async function series(run, ids, parameters) {
  const answers = [];
  for (let first = 0; first < ids.length; first += 64) {
    answers.push(
      get(`api/runs/${run}/series?${query({ ids: ids.slice(first, first + 64).join(','), ...parameters })}`),
    );
  }
  return Object.assign({}, ...(await Promise.all(answers)));
}

// Hears of news until the page is closed. The browser connects again by itself.
export function live(heard, connection) {
  const source = new EventSource('api/live');
  for (const what of ['status', 'steps']) {
    source.addEventListener(what, message => heard(what, JSON.parse(message.data)));
  }
  source.onopen = () => connection(true);
  source.onerror = () => connection(false);
}

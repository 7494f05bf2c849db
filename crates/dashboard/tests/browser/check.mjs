// Looks at every view as people do. Arguments: the page of one run, the page of several, the runs' folder, and where
// screenshots go (nowhere when empty).

import assert from 'node:assert/strict';
import { appendFileSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import puppeteer from 'puppeteer-core';

const [one, several, runs, pictures] = process.argv.slice(2);
const VIEWS = ['overview', 'charts', 'filter', 'samples', 'members', 'events', 'processes', 'runs'];
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM,
  args: ['--no-sandbox', '--hide-scrollbars'],
});
let checks = 0;
const step = async (what, work) => {
  try {
    await work();
    checks += 1;
  } catch (error) {
    error.message = `${what}: ${error.message}`;
    throw error;
  }
};

// A page that fails the check when a script does, and when anything is asked of another address.
async function open(address, { width, dark }) {
  const page = await browser.newPage();
  page.troubles = [];
  page.on('pageerror', error => page.troubles.push(`error: ${error.message}`));
  page.on('console', message => {
    if (message.type() === 'error') page.troubles.push(`console: ${message.text()}`);
  });
  page.on('request', request => {
    if (!request.url().startsWith(new URL(address).origin) && !request.url().startsWith('data:'))
      page.troubles.push(`asks ${request.url()}`);
  });
  await page.setViewport({ width, height: 900, deviceScaleFactor: 1, isMobile: width < 600, hasTouch: width < 600 });
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: dark ? 'dark' : 'light' }]);
  await page.goto(address);
  await page.waitForSelector('[data-ready]', { timeout: 60_000 });
  return page;
}

async function show(page, view) {
  await page.evaluate(name => {
    location.hash = name;
  }, view);
  await page.waitForSelector(`[data-view=${view}][data-ready]`, { timeout: 60_000 });
}

async function inspect(page, what, width) {
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(wide <= width, `${what} is ${wide} px wide`);
  // The policy of the page lets no script in; the browser's own tools may.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
  const told = violations.map(
    ({ id, help, nodes }) =>
      `${id}: ${help}: ${nodes
        .slice(0, 3)
        .map(({ html, failureSummary }) => `${html.slice(0, 160)} ${failureSummary}`)
        .join(' | ')}`,
  );
  assert.deepEqual(told, [], what);
  assert.deepEqual(page.troubles, [], what);
}

const picture = async (page, name) => {
  if (pictures) await page.screenshot({ path: join(pictures, `${name}.png`), fullPage: true });
};

for (const width of [1280, 390]) {
  for (const dark of [false, true]) {
    const kind = `${width}-${dark ? 'dark' : 'light'}`;
    await step(`every view at ${kind}`, async () => {
      const page = await open(one, { width, dark });
      for (const view of VIEWS) {
        await show(page, view);
        await new Promise(done => setTimeout(done, 150));
        await inspect(page, `${view} at ${kind}`, width);
        await picture(page, `${view}-${kind}`);
      }
      await page.close();
    });
  }
}

await step('a detector that fires is said, and one that does not is not', async () => {
  const page = await open(`${one}/#overview`, { width: 1280 });
  const text = await page.$eval('#main', main => main.textContent);
  assert.ok(
    text.includes('The reward may be gamed since batch 90 (length drift): responses grew from 31 to 52 tokens.'),
    text.slice(0, 2000),
  );
  assert.ok(!text.includes('score at bound'), text.slice(0, 2000));
  await page.close();
});

await step('a warning leads to the highest scores with failed tests, as text', async () => {
  const page = await open(`${one}/#overview`, { width: 390 });
  await page.$eval('#main .verdict a', link => link.click());
  await page.waitForFunction(() => document.querySelectorAll('.sample').length === 3, { timeout: 10_000 });
  const scores = await page.$$eval('.sample header b:first-of-type', found => found.map(node => node.textContent));
  assert.equal(scores[0], '3.500');
  const text = await page.$eval('#main', main => main.textContent);
  for (const part of [
    '<script>document.title',
    '<b>problem</b>',
    'tests failed',
    '3 of the highest scores with failed tests',
  ])
    assert.ok(text.includes(part), `${part} is not in ${text.slice(0, 2000)}`);
  assert.ok((await page.title()).includes('Sluice'), await page.title());
  await inspect(page, 'the worst examples', 390);
  await picture(page, 'samples-worst');
  await page.type('input[type=search]', 'Third please');
  await page.waitForFunction(() => document.querySelectorAll('.sample').length === 1, { timeout: 10_000 });
  await page.$$eval('.controls button', buttons =>
    buttons.find(button => button.textContent === 'Highest score, failed tests').click(),
  );
  await page.waitForFunction(() => !document.querySelector('.controls label').hidden, { timeout: 10_000 });
  await page.close();
});

await step('a run without failed tests says that it has none', async () => {
  const page = await open(`${several}/#samples/worst`, { width: 1280 });
  await page.$$eval('#chosen button', buttons => buttons[0].click());
  await page.waitForFunction(
    () => document.querySelector('#main').textContent.includes('No response with failed tests is known.'),
    { timeout: 10_000 },
  );
  await page.close();
});

await step('log-probs are bars that fit, wide and narrow', async () => {
  for (const width of [1280, 390]) {
    const page = await open(`${one}/#samples`, { width });
    await page.waitForFunction(() => document.querySelectorAll('.sample .bars').length > 0, { timeout: 10_000 });
    const bars = await page.$$eval('.sample .bars', all =>
      all.map(one => {
        const [inner, outer] = [one.getBoundingClientRect(), one.closest('.sample').getBoundingClientRect()];
        const label = one.getAttribute('aria-label');
        return { text: one.textContent, label, fits: inner.left >= outer.left && inner.right <= outer.right };
      }),
    );
    for (const { text, label, fits } of bars) {
      assert.match(text, /^[▁▂▃▄▅▆▇█]{20,96}$/u, text);
      assert.ok(fits, `${label} is cut off at ${width} px`);
      const [, tokens, mean, lowest] = label.match(/^log-probs of (\d+) tokens: mean (-[\d.]+), lowest (-[\d.]+)$/);
      assert.ok(+lowest <= +mean && +mean < 0, label);
      // The least likely token is a whole block, wherever it stands.
      assert.equal(text.includes('█'), +lowest <= -1, `${label}: ${text}`);
      assert.equal([...text].length, Math.ceil(tokens / Math.ceil(tokens / 96)), label);
    }
    // A long response is drawn in as many bars at most, and what was kept without log-probs has none.
    assert.ok(bars.some(({ label }) => label.includes(' 2000 tokens')), 'a long response');
    const samples = await page.$$eval('.sample', all => all.length);
    assert.ok(bars.length < samples, `${bars.length} of ${samples} samples have bars`);
    await picture(page, `samples-logprobs-${width}`);
    await page.close();
  }
});

await step('a model cannot take the page over', async () => {
  const page = await open(`${one}/#samples`, { width: 1280 });
  const text = await page.$eval('#main', main => main.textContent);
  assert.ok(text.includes('<script>document.title'), 'markup is shown as text');
  assert.ok((await page.title()).includes('Sluice'), await page.title());
  await page.type('input[type=search]', 'problem 99999.2');
  await page.waitForFunction(() => document.querySelectorAll('.sample').length === 5, { timeout: 10_000 });
  await page.select('select', 'score');
  await page.waitForFunction(
    () => {
      const scores = [...document.querySelectorAll('.sample header b')].map(node => +node.textContent);
      return scores.length > 0 && scores[0] > 0;
    },
    { timeout: 10_000 },
  );
  await page.close();
});

await step('charts: hover, zoom, smoothing, log scale, by mouse and by keys', async () => {
  const page = await open(`${one}/#charts`, { width: 1280 });
  const at = () => page.$eval('.chart .at', node => node.textContent);
  assert.match(await at(), /last/);
  const plot = await page.$('.chart .u-over');
  const box = await plot.boundingBox();
  await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
  await page.waitForFunction(() => !document.querySelector('.chart .at').textContent.includes('last'));
  const low = () =>
    page
      .$eval('.chart .u-axis', () => 0)
      .then(() =>
        page.evaluate(async () => {
          const answer = performance
            .getEntriesByType('resource')
            .map(({ name }) => name)
            .filter(name => name.includes('/series?'))
            .at(-1);
          return Number(new URL(answer).searchParams.get('from'));
        }),
      );
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * 0.75, box.y + box.height / 2, { steps: 5 });
  await page.mouse.up();
  await page.waitForFunction(() =>
    performance.getEntriesByType('resource').some(({ name }) => name.includes('/series?') && name.includes('from=')),
  );
  assert.ok(Math.abs((await low()) - 50_000) < 3000, `zoomed to ${await low()}`);
  await page.focus('.chart .plot');
  await page.keyboard.press('Home');
  const first = await at();
  await page.keyboard.press('ArrowRight');
  assert.notEqual(await at(), first, 'keys move the cursor');
  // Out of the way: a chart follows the mouse.
  await page.mouse.move(1, 1);
  await page.keyboard.press('0');
  await page.waitForFunction(() => /last/.test(document.querySelector('.chart .at').textContent));
  await page.click('label:has(input[type=checkbox]) >>> input');
  await page.$eval('input[type=range]', input => {
    input.value = 0.9;
    input.dispatchEvent(new Event('input'));
  });
  await page.waitForFunction(() => document.querySelector('.controls .mono').textContent === '0.90');
  assert.deepEqual(page.troubles, []);
  await picture(page, 'charts-smoothed-log');
  await page.close();
});

await step('every view is reached by keyboard alone', async () => {
  const page = await open(one, { width: 1280 });
  const reached = new Set();
  for (let press = 0; press < 30; press += 1) {
    await page.keyboard.press('Tab');
    const [href, outline] = await page.evaluate(() => [
      document.activeElement.getAttribute('href'),
      getComputedStyle(document.activeElement).outlineStyle,
    ]);
    if (href) reached.add(href);
    assert.notEqual(outline, 'none', 'what has the focus is seen');
  }
  for (const view of VIEWS) assert.ok(reached.has(`#${view}`), view);
  await page.close();
});

await step('several runs lie over each other, with the keys in which they differ', async () => {
  const page = await open(`${several}/#runs`, { width: 1280 });
  const text = await page.$eval('#main', main => main.innerText);
  assert.ok(text.includes('coordinator.filtration.strategy') && text.includes('learner.ppo.policy_lr'), text);
  assert.ok(!text.includes('coordinator.group_size'), 'equal keys are left out');
  await inspect(page, 'runs', 1280);
  await picture(page, 'several-runs');
  await show(page, 'overview');
  const labels = await page.$$eval('.chart:first-child .legend button', buttons =>
    buttons.map(button => button.textContent),
  );
  assert.equal(labels.length, 3, labels.join());
  await inspect(page, 'overview of several', 1280);
  await picture(page, 'several-overview');
  await page.close();
});

await step('an open page hears of a new step', async () => {
  const page = await open(one, { width: 1280 });
  const last = readFileSync(join(runs, 'best-worst/ring/steps.jsonl'), 'utf8').trimEnd().split('\n').at(-1);
  appendFileSync(
    join(runs, 'best-worst/ring/steps.jsonl'),
    `${JSON.stringify({ ...JSON.parse(last), batch: 100_001, score_mean: 7.25 })}\n`,
  );
  await page.waitForFunction(() => document.querySelector('.figures').textContent.includes('7.25'), {
    timeout: 15_000,
  });
  await page.close();
});

await browser.close();
console.log(`the page: ${checks} checks passed`);
